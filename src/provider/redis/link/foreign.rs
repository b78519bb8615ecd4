//! Finds the key whose value has another type than the stream gives it. The server does not name it.

use redis::cmd;
use tokio::time::Instant;

use super::facts::text;
use super::session::Session;
use crate::provider::redis::error::Cause;
use crate::provider::redis::keys;
use crate::provider::redis::script::Call;

/// Maximum number of keys that are looked at.
const MAX_KEYS: usize = 256;

/// Returns the first key of a call that holds a foreign value. Needs the permission for TYPE.
pub(super) async fn find(session: &Session, call: &Call, until: Instant) -> Option<Cause> {
    let known: Vec<_> =
        call.named_keys().filter_map(|key| Some((key, keys::type_of(key)?))).take(MAX_KEYS).collect();
    let questions = known.iter().map(|(key, _)| cmd("TYPE").arg(*key).take());
    let answers = session.ask_all(questions, until).await.ok()?;
    known.into_iter().zip(answers).find_map(|((key, expected), answer)| {
        let found = text(&answer.ok()?)?;
        let is_foreign = found != "none" && found != expected;
        let key = String::from_utf8_lossy(key).into_owned();
        is_foreign.then_some(Cause::ForeignKey { key, found, expected })
    })
}
