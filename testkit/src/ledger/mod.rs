//! The ledger: whether a provider lost, doubled, reordered or held back a single event under overlapping faults.

mod check;
mod finale;
mod journal;
mod load;
mod nemesis;
mod program;
mod verdict;
mod work;

pub use check::{Figures, check, summary};
pub use finale::{Finale, Letter, Position, Stored};
pub use journal::{Entry, Exit, Fact, Journal, Lines, Terms};
pub use load::Load;
pub use nemesis::Nemesis;
pub use program::program;
pub use verdict::{Evidence, Kind, Verdict};
pub use work::{Phase, Worker};
