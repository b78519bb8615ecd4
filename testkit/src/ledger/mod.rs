//! The ledger: tells whether a bus lost, doubled, reordered or held back a single event under overlapping faults.
//!
//! The conformance cases check one promise at a time. The ledger checks all of them at once, while processes and
//! servers are killed, suspended and cut off. Run the program on your provider before you trust it:
//!
//! ```text
//! cargo run -p a3s-event-testkit --features ledger,providers --bin a3s-event-ledger -- run sqlite:ledger.db
//! cargo run -p a3s-event-testkit --features ledger,providers --bin a3s-event-ledger -- run --server nats --rounds 10
//! ```
//!
//! `run` starts worker processes on a fresh stream beside that of the URL. Each worker publishes without a pause, and
//! consumes with two durable consumers: one that all workers share, and one of its own that handles one event per key
//! at a time. Some events fail once, always or for good. Meanwhile the driver strikes the workers and the backend:
//!
//! | nemesis | strikes | needs |
//! |---|---|---|
//! | `kill`, `term`, `pause` | a worker: SIGKILL, SIGTERM, SIGSTOP for longer than its leases | |
//! | `eio-write`, `eio-sync` | a worker: one write or sync fails | a stream in files, strace |
//! | `clock-forward`, `clock-back` | a worker: its clock is wrong by an hour for a while | a stream in files, libfaketime |
//! | `disk-full` | the files of the stream | a stream in files, the right to mount a file system |
//! | `server-kill`, `server-freeze`, `leader-kill` | a server that the driver started | `--server` |
//! | `promotion` | the leader: a replica that stopped copying replaces it | `--server redis-pair` |
//! | `slot-move` | the stream: it moves to another server | `--server redis-cluster` |
//! | `network-hold`, `network-reset` | the connections to it | `--server` with a proxy |
//!
//! Every worker and the backend have a schedule of their own, so that nemeses overlap. It depends only on the seed,
//! which each round prints: `--seed 17 --rounds 1` repeats the schedule of that round. The program names the nemeses
//! that it leaves out because a tool is missing. It fails if you asked for them with `--nemeses`.
//!
//! `--server` starts `nats`, `nats-cluster`, `redis`, `redis-pair` or `redis-cluster`; `run --help` describes them. The
//! servers of a cluster or a pair are struck one at a time. What a provider documents about the loss of a server is
//! part of the [`Terms`] of the round.
//!
//! After the last nemesis the publishers end, and everything must be delivered and settled within
//! `--recovery-seconds`. Then the driver [checks](check) the [journals](Journal) of all processes. A broken promise is
//! a [`Verdict`] with the event, the lines and their times. The documentation of each [`Kind`] lists the exceptions
//! that [the delivery contract](a3s_event::docs::delivery) allows. The exit code is 1, and the folder with the
//! journals and the files of the stream is kept; `check FOLDER` reads it again.
//!
//! # A provider of your own
//!
//! The program in this package has the built-in providers. For yours, write a program of three lines:
//!
//! ```no_run
//! use a3s_event::ProviderRegistry;
//!
//! #[tokio::main]
//! async fn main() -> std::process::ExitCode {
//!     let registry = ProviderRegistry::builtin();
//!     // registry.register(Scheme::new("mine", …).isolated_by(…));
//!     a3s_event_testkit::ledger::program(registry).await
//! }
//! ```
//!
//! The scheme needs an [`isolated_by`](a3s_event::provider::Scheme::isolated_by) function, and the provider the
//! capabilities `durable`, `shared_consumers`, `dedup`, `history_query` and `consumer_info`. Workers are processes of
//! the same program.
//!
//! To let the driver start and strike your server, implement the trait `Server` in `ledger/program/backend/`.
//!
//! # Parts
//!
//! [`Worker`] is one life of a worker, also without a process. [`Lines::read_all`], [`Finale::load`] and [`check`] are
//! the checker, for journals that you keep by other means.

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
