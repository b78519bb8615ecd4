//! Storage of pending events. One row has the events of neighbouring sequences, because those are usually added and
//! removed together.
//!
//! The state of a block is its checksum, followed by one entry per run of events that differ only in their sequence. An
//! entry has the first and last place in the block, a flag for leased, the attempt, the due time, and the original
//! wait.

use std::ops::RangeInclusive;
use std::time::Duration;

use rusqlite::{Connection, params};

use super::checksum;
use super::error::Sql;
use super::store::{signed, unsigned};
use crate::provider::group::{GroupState, PendingState, Time};

/// Number of sequences per row.
const BLOCK: u64 = 256;
/// Version of the format that is written.
const FORM: i64 = 2;
const ENTRY: usize = OLD_ENTRY + 8;
/// Size of an entry of version 1, which has no original wait.
const OLD_ENTRY: usize = 1 + 1 + 1 + 4 + 8;
const CHECKSUM: usize = 8;

/// Writes the blocks that contain these sequences, which must be in ascending order.
pub(super) fn save(connection: &Connection, consumer: i64, machine: &GroupState, changed: &[u64]) -> Sql<()> {
    let mut blocks: Vec<u64> = changed.iter().map(|sequence| sequence / BLOCK).collect();
    blocks.dedup();
    for block in blocks {
        let entries = encode(block, machine.pending_in(sequences(block)));
        if entries.is_empty() {
            connection
                .prepare_cached("DELETE FROM pending WHERE consumer = ?1 AND block = ?2")?
                .execute(params![consumer, signed(block)])?;
            continue;
        }
        let mut state = checksum_of(FORM, consumer, signed(block), &entries).to_le_bytes().to_vec();
        state.extend(entries);
        connection
            .prepare_cached(
                "INSERT OR REPLACE INTO pending (consumer, block, state, form) VALUES (?1, ?2, ?3, ?4)",
            )?
            .execute(params![consumer, signed(block), state, FORM])?;
    }
    Ok(())
}

/// Returns all pending events of a consumer in ascending order.
pub(super) fn load(connection: &Connection, consumer: i64) -> Sql<Vec<PendingState>> {
    let mut statement = connection
        .prepare_cached("SELECT block, state, form FROM pending WHERE consumer = ?1 ORDER BY block")?;
    let mut rows = statement.query([consumer])?;
    let mut pending = Vec::new();
    while let Some(row) = rows.next()? {
        let block = row.get(0)?;
        let state = row.get_ref(1)?.as_blob()?;
        let form = row.get(2)?;
        let sound = state.split_first_chunk::<CHECKSUM>().filter(|(stored, entries)| {
            i64::from_le_bytes(**stored) == checksum_of(form, consumer, block, entries)
        });
        let Some((_, entries)) = sound else {
            return Err(checksum::mismatch(&format!(
                "block {block} of the pending events of consumer {consumer}"
            )));
        };
        match form {
            1 => decode_old(unsigned(block), entries, &mut pending),
            _ => decode(unsigned(block), entries, &mut pending),
        }
    }
    Ok(pending)
}

fn checksum_of(form: i64, consumer: i64, block: i64, entries: &[u8]) -> i64 {
    match form {
        1 => checksum::of(entries, &[consumer, block]),
        form => checksum::of(entries, &[consumer, block, form]),
    }
}

fn sequences(block: u64) -> RangeInclusive<u64> {
    let first = block * BLOCK;
    first..=first + (BLOCK - 1)
}

fn encode(block: u64, pending: impl Iterator<Item = PendingState>) -> Vec<u8> {
    let place = |sequence: u64| u8::try_from(sequence - block * BLOCK).unwrap_or(u8::MAX);
    let mut entries = Vec::new();
    let mut runs = pending.peekable();
    while let Some(first) = runs.next() {
        let mut last = first;
        while let Some(next) = runs.next_if(|next| continues(&last, next)) {
            last = next;
        }
        entries.extend([place(first.sequence), place(last.sequence), u8::from(first.leased)]);
        entries.extend(first.attempt.to_le_bytes());
        entries.extend(nanos(first.due.since_origin()).to_le_bytes());
        entries.extend(nanos(first.due.saturating_since(first.since)).to_le_bytes());
    }
    entries
}

fn continues(last: &PendingState, next: &PendingState) -> bool {
    *next == PendingState { sequence: last.sequence.wrapping_add(1), ..*last }
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

fn decode(block: u64, entries: &[u8], pending: &mut Vec<PendingState>) {
    for entry in entries.as_chunks::<ENTRY>().0 {
        let [first, last, leased, a0, a1, a2, a3, d0, d1, d2, d3, d4, d5, d6, d7, wait @ ..] = *entry;
        let due = Duration::from_nanos(u64::from_le_bytes([d0, d1, d2, d3, d4, d5, d6, d7]));
        let wait = Duration::from_nanos(u64::from_le_bytes(wait));
        let since = Time::from_origin(due.saturating_sub(wait));
        let attempt = u32::from_le_bytes([a0, a1, a2, a3]);
        let state = PendingState::new(0, attempt, leased != 0, Time::from_origin(due)).since(since);
        extend(block, first, last, state, pending);
    }
}

fn decode_old(block: u64, entries: &[u8], pending: &mut Vec<PendingState>) {
    for entry in entries.as_chunks::<OLD_ENTRY>().0 {
        let [first, last, leased, a0, a1, a2, a3, due @ ..] = *entry;
        let due = Time::from_origin(Duration::from_nanos(u64::from_le_bytes(due)));
        let attempt = u32::from_le_bytes([a0, a1, a2, a3]);
        extend(block, first, last, PendingState::new(0, attempt, leased != 0, due), pending);
    }
}

fn extend(block: u64, first: u8, last: u8, state: PendingState, pending: &mut Vec<PendingState>) {
    let sequences = (first..=last).map(|place| block * BLOCK + u64::from(place));
    pending.extend(sequences.map(|sequence| PendingState { sequence, ..state }));
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn what_is_encoded_comes_back(
            block in 0..=u64::MAX / BLOCK,
            states in prop::collection::btree_map(0..BLOCK, (1..3_u32, any::<bool>(), 0..3_u64, 0..3_u64), 0..256),
        ) {
            let pending: Vec<_> = states
                .into_iter()
                .map(|(place, (attempt, leased, due, wait))| {
                    let due = Duration::from_nanos(due * (u64::MAX / 2));
                    let since = Time::from_origin(due.saturating_sub(Duration::from_secs(wait)));
                    let sequence = block * BLOCK + place;
                    PendingState::new(sequence, attempt, leased, Time::from_origin(due)).since(since)
                })
                .collect();
            let mut decoded = Vec::new();
            decode(block, &encode(block, pending.iter().copied()), &mut decoded);
            prop_assert_eq!(decoded, pending);
        }
    }

    #[test]
    fn neighbours_that_are_alike_are_one_entry() {
        let pending = (256..512).map(|sequence| PendingState::new(sequence, 1, true, Time::ZERO));
        assert_eq!(encode(1, pending).len(), ENTRY);
    }
}
