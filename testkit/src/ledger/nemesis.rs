//! Kinds of faults that the driver causes.

use std::fmt;

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

/// A kind of fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Nemesis {
    /// SIGKILL a worker, and start it again
    Kill,
    /// SIGTERM a worker, wait for its orderly stop, and start it again
    Term,
    /// SIGSTOP a worker for longer than its leases, then SIGCONT
    Pause,
    /// One write of a worker fails with EIO
    EioWrite,
    /// One sync of a worker fails with EIO
    EioSync,
    /// The clock of a worker is an hour ahead for a while
    ClockForward,
    /// The clock of a worker is an hour behind for a while
    ClockBack,
    /// The disk of the stream's files is full for a while
    DiskFull,
    /// SIGKILL a server, and start it again
    ServerKill,
    /// SIGSTOP a server, then SIGCONT
    ServerFreeze,
    /// SIGKILL the leader of the stream, and start it again
    LeaderKill,
    /// The replica stops copying for a while, then replaces the leader
    Promotion,
    /// The stream moves to another server, one part after the other
    SlotMove,
    /// No byte passes between workers and server for a while
    NetworkHold,
    /// Every connection to the server is reset
    NetworkReset,
}

impl Nemesis {
    /// Returns true if it strikes one worker; others strike the backend.
    pub fn strikes_a_worker(self) -> bool {
        use Nemesis::{ClockBack, ClockForward, EioSync, EioWrite, Kill, Pause, Term};
        matches!(self, Kill | Term | Pause | EioWrite | EioSync | ClockForward | ClockBack)
    }

    /// Returns true if everyone's leases may expire early or cannot be extended while it lasts.
    pub fn disturbs_everyone(self) -> bool {
        // Programs that share a file compare their own clocks with its times.
        !self.strikes_a_worker() || self.moves_a_clock()
    }

    /// Returns true if a process has a wrong wall clock while it lasts.
    pub fn moves_a_clock(self) -> bool {
        matches!(self, Self::ClockForward | Self::ClockBack)
    }

    /// Returns true if deliveries on their way to a process may be lost.
    pub fn cuts_connections(self) -> bool {
        !self.strikes_a_worker() && self != Self::DiskFull
    }

    /// Returns true if what a process writes may fail while it lasts.
    pub fn prevents_writes(self) -> bool {
        !self.strikes_a_worker() || matches!(self, Self::EioWrite | Self::EioSync)
    }

    /// Returns true if a backend may forget the latest settlements: those that were not on a disk or a replica.
    pub fn kills_a_server(self) -> bool {
        matches!(self, Self::ServerKill | Self::LeaderKill | Self::Promotion)
    }
}

impl fmt::Display for Nemesis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let value = self.to_possible_value();
        f.write_str(value.as_ref().map_or("", |value| value.get_name()))
    }
}
