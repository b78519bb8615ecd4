//! How pending events are stored: those of neighbouring sequences in one row, because they come and go together.
//!
//! The state of a block is its checksum and then one entry per run of events that differ in nothing but their sequence:
//! first and last place in the block, whether they are leased, the attempt and the due time.

use std::ops::RangeInclusive;

use rusqlite::{Connection, params};

use super::checksum;
use super::error::Sql;
use super::store::{signed, unsigned};
use crate::provider::consumer::{Consumer, PendingState, Time};

/// Sequences per row.
const BLOCK: u64 = 256;
const ENTRY: usize = 1 + 1 + 1 + 4 + 8;
const CHECKSUM: usize = 8;

/// Writes the blocks that hold these sequences, which are in ascending order.
pub(super) fn save(connection: &Connection, consumer: i64, machine: &Consumer, changed: &[u64]) -> Sql<()> {
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
        let mut state = checksum::of(&entries, &[consumer, signed(block)]).to_le_bytes().to_vec();
        state.extend(entries);
        connection
            .prepare_cached("INSERT OR REPLACE INTO pending (consumer, block, state) VALUES (?1, ?2, ?3)")?
            .execute(params![consumer, signed(block), state])?;
    }
    Ok(())
}

/// All pending events of a consumer, in ascending order.
pub(super) fn load(connection: &Connection, consumer: i64) -> Sql<Vec<PendingState>> {
    let mut statement =
        connection.prepare_cached("SELECT block, state FROM pending WHERE consumer = ?1 ORDER BY block")?;
    let mut rows = statement.query([consumer])?;
    let mut pending = Vec::new();
    while let Some(row) = rows.next()? {
        let block = row.get(0)?;
        let state = row.get_ref(1)?.as_blob()?;
        let sound = state.split_first_chunk::<CHECKSUM>().filter(|(stored, entries)| {
            i64::from_le_bytes(**stored) == checksum::of(entries, &[consumer, block])
        });
        let Some((_, entries)) = sound else {
            return Err(checksum::mismatch(&format!(
                "block {block} of what consumer {consumer} has pending"
            )));
        };
        decode(unsigned(block), entries, &mut pending);
    }
    Ok(pending)
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
        entries.extend(nanos(first.due).to_le_bytes());
    }
    entries
}

fn continues(last: &PendingState, next: &PendingState) -> bool {
    *next == PendingState { sequence: last.sequence.wrapping_add(1), ..*last }
}

fn nanos(time: Time) -> u64 {
    u64::try_from(time.since_origin().as_nanos()).unwrap_or(u64::MAX)
}

fn decode(block: u64, entries: &[u8], pending: &mut Vec<PendingState>) {
    for entry in entries.as_chunks::<ENTRY>().0 {
        let [first, last, leased, a0, a1, a2, a3, due @ ..] = *entry;
        let due = Time::from_origin(std::time::Duration::from_nanos(u64::from_le_bytes(due)));
        let attempt = u32::from_le_bytes([a0, a1, a2, a3]);
        let sequences = (first..=last).map(|place| block * BLOCK + u64::from(place));
        pending.extend(sequences.map(|sequence| PendingState {
            sequence,
            attempt,
            leased: leased != 0,
            due,
        }));
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn what_is_encoded_comes_back(
            block in 0..=u64::MAX / BLOCK,
            states in prop::collection::btree_map(0..BLOCK, (1..3_u32, any::<bool>(), 0..3_u64), 0..256),
        ) {
            let pending: Vec<_> = states
                .into_iter()
                .map(|(place, (attempt, leased, due))| PendingState {
                    sequence: block * BLOCK + place,
                    attempt,
                    leased,
                    due: Time::from_origin(std::time::Duration::from_nanos(due * (u64::MAX / 2))),
                })
                .collect();
            let mut decoded = Vec::new();
            decode(block, &encode(block, pending.iter().copied()), &mut decoded);
            prop_assert_eq!(decoded, pending);
        }
    }

    #[test]
    fn neighbours_that_are_alike_are_one_entry() {
        let pending =
            (256..512).map(|sequence| PendingState { sequence, attempt: 1, leased: true, due: Time::ZERO });
        assert_eq!(encode(1, pending).len(), ENTRY);
    }
}
