//! Decides from what a server says what an acknowledged publish survives there.

use std::time::Duration;

use crate::error::{EventError, Result};
use crate::provider::{Capabilities, Durability};

/// The server, in a conflict about its configuration.
const SERVER: &str = "configuration of the server";

/// Persistence of a server, as far as it says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Persistence {
    /// `CONFIG GET` answered.
    Shown(Aof),
    /// `CONFIG GET` is forbidden, or leaves this out. `INFO persistence` has `aof_enabled`, unless it is forbidden, too.
    Hidden { aof_enabled: Option<bool> },
}

/// Use of the append-only file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Aof {
    /// `appendonly no`.
    Off,
    /// `appendfsync always`: written and synced before the answer.
    Always,
    /// `appendfsync always` with `no-appendfsync-on-rewrite yes`: not synced while the file is rewritten.
    AlwaysButInRewrites,
    /// `appendfsync everysec`: the answer may precede the write while the disk is slow.
    EverySecond,
    /// `appendfsync no`: written before the answer, synced by the operating system.
    Never,
}

impl Aof {
    /// Reads `appendfsync` and `no-appendfsync-on-rewrite` of a server that has such a file.
    pub(super) fn of(fsync: &str, on_rewrite: Option<&str>) -> Option<Self> {
        match fsync {
            "always" if on_rewrite == Some("no") => Some(Self::Always),
            "always" => Some(Self::AlwaysButInRewrites),
            "everysec" => Some(Self::EverySecond),
            "no" => Some(Self::Never),
            _ => None,
        }
    }
}

/// Durability of an acknowledged publish, with the reason.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct InForce {
    pub(super) durability: Durability,
    pub(super) reason: &'static str,
}

/// Returns the durability in force on a server with this persistence. `declared` is the setting `durability`.
///
/// # Errors
///
/// [`EventError::Config`] for `wait_aof` on a server that never syncs, where every publish would fail;
/// [`EventError::Conflict`] if more is declared than the server's configuration keeps.
pub(super) fn in_force(
    persistence: Persistence,
    wait_aof: bool,
    declared: Option<Durability>,
) -> Result<InForce> {
    let of_server = of_server(persistence, wait_aof)?;
    let Some(durability) = declared.filter(|declared| *declared != of_server.durability) else {
        return Ok(of_server);
    };
    let reason = match persistence {
        Persistence::Hidden { .. } => {
            "the server hides its configuration, and the setting durability says so"
        }
        Persistence::Shown(_) if durability < of_server.durability => "the setting durability says so",
        Persistence::Shown(_) => {
            return Err(EventError::Conflict {
                resource: SERVER.to_owned(),
                field: "durability".to_owned(),
                existing: format!("{:?} ({})", of_server.durability, of_server.reason),
                requested: format!("{durability:?}"),
            });
        }
    };
    Ok(InForce { durability, reason })
}

fn of_server(persistence: Persistence, wait_aof: bool) -> Result<InForce> {
    use Persistence::{Hidden, Shown};
    if wait_aof {
        return match persistence {
            Shown(Aof::Off) | Hidden { aof_enabled: Some(false) } => Err(never_synced("appendonly no")),
            Shown(Aof::Never) => Err(never_synced("appendfsync no")),
            // The server confirms the sync of each publish, also one that hides its configuration.
            Shown(_) | Hidden { .. } => Ok(InForce {
                durability: Durability::PowerLoss,
                reason: "wait_aof: a publish waits for the sync",
            }),
        };
    }
    let (durability, reason) = match persistence {
        Shown(Aof::Off) | Hidden { aof_enabled: Some(false) } => {
            (Durability::None, "appendonly no: a restart loses everything since the last snapshot")
        }
        Shown(Aof::EverySecond) => {
            (Durability::Deferred, "appendfsync everysec: the server may answer before it writes")
        }
        Shown(Aof::Never) => {
            (Durability::ProcessCrash, "appendfsync no: written before the answer, synced later")
        }
        Shown(Aof::AlwaysButInRewrites) => (
            Durability::ProcessCrash,
            "no-appendfsync-on-rewrite yes: not synced while the file is rewritten",
        ),
        Shown(Aof::Always) => (Durability::PowerLoss, "appendfsync always: synced before the answer"),
        Hidden { aof_enabled: Some(true) } => {
            (Durability::Deferred, "the server hides appendfsync: it may answer before it writes")
        }
        Hidden { aof_enabled: None } => (Durability::Unknown, "the server hides its persistence"),
    };
    Ok(InForce { durability, reason })
}

fn never_synced(configuration: &str) -> EventError {
    EventError::Config(format!(
        "wait_aof true: the server has {configuration} and never confirms a sync; \
         set appendonly yes and appendfsync always or everysec there"
    ))
}

/// Returns the capabilities on a server with this durability, where ids are remembered for this window.
pub(super) fn capabilities(
    durability: Durability,
    max_event_bytes: usize,
    dedup_window: Duration,
) -> Capabilities {
    let mut capabilities = Capabilities::all(durability);
    capabilities.max_event_bytes = Some(max_event_bytes);
    capabilities.dedup_window = Some(dedup_window);
    capabilities
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorKind;

    const AOFS: [Aof; 5] = [Aof::Off, Aof::Always, Aof::AlwaysButInRewrites, Aof::EverySecond, Aof::Never];

    fn of(persistence: Persistence, wait_aof: bool, declared: Option<Durability>) -> Durability {
        in_force(persistence, wait_aof, declared).unwrap().durability
    }

    #[test]
    fn the_durability_is_that_of_the_weakest_moment() {
        for (aof, durability) in [
            (Aof::Off, Durability::None),
            (Aof::Always, Durability::PowerLoss),
            (Aof::AlwaysButInRewrites, Durability::ProcessCrash),
            (Aof::EverySecond, Durability::Deferred),
            (Aof::Never, Durability::ProcessCrash),
        ] {
            assert_eq!(of(Persistence::Shown(aof), false, None), durability, "{aof:?}");
        }
        assert_eq!(of(Persistence::Hidden { aof_enabled: Some(false) }, false, None), Durability::None);
        assert_eq!(of(Persistence::Hidden { aof_enabled: Some(true) }, false, None), Durability::Deferred);
        assert_eq!(of(Persistence::Hidden { aof_enabled: None }, false, None), Durability::Unknown);
    }

    #[test]
    fn waiting_for_the_sync_survives_a_power_loss_where_there_is_a_sync() {
        for aof in [Aof::Always, Aof::AlwaysButInRewrites, Aof::EverySecond] {
            assert_eq!(of(Persistence::Shown(aof), true, None), Durability::PowerLoss, "{aof:?}");
        }
        for aof_enabled in [Some(true), None] {
            assert_eq!(of(Persistence::Hidden { aof_enabled }, true, None), Durability::PowerLoss);
        }
        for (persistence, configuration) in [
            (Persistence::Shown(Aof::Off), "appendonly no"),
            (Persistence::Hidden { aof_enabled: Some(false) }, "appendonly no"),
            (Persistence::Shown(Aof::Never), "appendfsync no"),
        ] {
            let error = in_force(persistence, true, Some(Durability::PowerLoss)).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Config);
            let text = error.to_string();
            assert!(text.contains("wait_aof true") && text.contains(configuration), "{text}");
        }
    }

    #[test]
    fn the_operator_decides_where_the_server_hides_its_configuration() {
        for aof_enabled in [None, Some(false), Some(true)] {
            for declared in
                [Durability::None, Durability::Deferred, Durability::ProcessCrash, Durability::PowerLoss]
            {
                assert_eq!(of(Persistence::Hidden { aof_enabled }, false, Some(declared)), declared);
            }
        }
    }

    #[test]
    fn more_than_the_server_shows_is_a_conflict_and_less_is_believed() {
        for aof in AOFS {
            let shown = of(Persistence::Shown(aof), false, None);
            for declared in
                [Durability::None, Durability::Deferred, Durability::ProcessCrash, Durability::PowerLoss]
            {
                match in_force(Persistence::Shown(aof), false, Some(declared)) {
                    Ok(in_force) => {
                        assert!(declared <= shown && in_force.durability == declared, "{aof:?} {declared:?}");
                    }
                    Err(EventError::Conflict { field, existing, .. }) => {
                        assert!(declared > shown && field == "durability", "{aof:?} {declared:?}");
                        assert!(existing.starts_with(&format!("{shown:?} (")), "{existing}");
                    }
                    Err(error) => panic!("{aof:?} {declared:?}: {error}"),
                }
            }
        }
        let equal = in_force(Persistence::Shown(Aof::Never), false, Some(Durability::ProcessCrash)).unwrap();
        assert_eq!(equal, in_force(Persistence::Shown(Aof::Never), false, None).unwrap());
    }

    #[test]
    fn nothing_survives_the_loss_of_a_node() {
        for aof in AOFS {
            for wait_aof in [false, true] {
                let durability =
                    in_force(Persistence::Shown(aof), wait_aof, None).map(|in_force| in_force.durability);
                assert!(durability.is_ok_and(|found| found <= Durability::PowerLoss) || wait_aof, "{aof:?}");
            }
        }
    }

    #[test]
    fn every_capability_is_declared_with_its_limits() {
        let capabilities = capabilities(Durability::Deferred, 5, Duration::from_secs(7));
        let mut expected = Capabilities::all(Durability::Deferred);
        expected.max_event_bytes = Some(5);
        expected.dedup_window = Some(Duration::from_secs(7));
        assert_eq!(capabilities, expected);
    }
}
