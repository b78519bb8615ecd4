//! Time zones by name.

use jiff::tz::TimeZone;

use crate::error::{EventError, Result};
use crate::text::shorten;

/// Returns a zone of the time zone database by its name. Systems also have other files, whose names mean something else
/// on each.
pub(super) fn named(name: &str) -> Result<TimeZone> {
    /// Entries for an unknown zone, and links to the zone of the system.
    const NO_ZONES: [&str; 5] = ["Etc/Unknown", "Factory", "leapseconds", "localtime", "posixrules"];
    /// Copies of all zones, with and without leap seconds.
    const COPIES: [&str; 2] = ["posix/", "right/"];
    let refused = |rule: &str| EventError::Config(format!("time zone \"{}\": {rule}", shorten(name)));
    let unknown = || refused("is not in the time zone database");
    let is_plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'/' | b'_' | b'-' | b'+');
    let starts =
        |prefix: &&str| name.get(..prefix.len()).is_some_and(|start| start.eq_ignore_ascii_case(prefix));
    let is_other = NO_ZONES.iter().any(|other| other.eq_ignore_ascii_case(name)) || COPIES.iter().any(starts);
    if is_other || !name.bytes().all(is_plain) || name.starts_with('/') {
        return Err(unknown());
    }
    let zone = TimeZone::get(name).map_err(|_| unknown())?;
    match zone.iana_name() {
        // Other programs distinguish upper and lower case.
        Some(spelled) if spelled != name => Err(refused(&format!("is spelled \"{spelled}\""))),
        _ => Ok(zone),
    }
}
