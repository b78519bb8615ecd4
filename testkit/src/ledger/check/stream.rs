//! Verdicts about publishing and storage.

use std::collections::HashMap;

use super::super::finale::Stored;
use super::super::verdict::{Kind, Verdict};
use super::account::Account;

pub(super) fn check(account: &Account<'_>, verdicts: &mut Vec<Verdict>) {
    let mut stored: HashMap<&str, Vec<&Stored>> = HashMap::new();
    for event in &account.finale.stored {
        stored.entry(&event.id).or_default().push(event);
    }
    for (id, publication) in &account.publications {
        let copies = stored.get(id).map_or(&[][..], Vec::as_slice);
        for (spot, sequence, _) in &publication.answers {
            if copies.is_empty() {
                let what = format!("event {id} was acknowledged with sequence {sequence} and is not stored");
                verdicts.push(account.verdict(Kind::Lost, what, &[*spot]));
            } else if !copies.iter().any(|copy| copy.sequence == *sequence) {
                let found = copies[0].sequence;
                let what =
                    format!("event {id} was acknowledged with sequence {sequence} and is stored as {found}");
                verdicts.push(account.verdict(Kind::SequenceChanged, what, &[*spot]));
            }
        }
        for pair in copies.windows(2) {
            let apart = pair[1].stored_at.abs_diff(pair[0].stored_at);
            let begun = || publication.begun.iter().map(|spot| spot.at);
            let (first, last) = (begun().min().unwrap_or_default(), begun().max().unwrap_or_default());
            if apart < account.terms.dedup_window && !account.clock_jumped(first, last) {
                let (first, second) = (pair[0].sequence, pair[1].sequence);
                let what = format!("event {id} is stored as {first} and, {apart} ms later, as {second}");
                verdicts.push(account.verdict(Kind::StoredTwice, what, &publication.begun));
            }
        }
    }
    if account.terms.total_order {
        check_sequences(account, verdicts);
    }
}

/// Compares each answer with the highest sequence that was acknowledged before its publish began.
fn check_sequences(account: &Account<'_>, verdicts: &mut Vec<Verdict>) {
    // Only publishes that were answered as stored at the first try.
    let firsts = account.publications.iter().filter_map(|(id, publication)| match publication.begun[..] {
        [begun] => publication.answers.first().filter(|answer| !answer.2).map(|answer| (*id, begun, *answer)),
        _ => None,
    });
    let mut by_begin: Vec<_> = firsts.collect();
    by_begin.sort_by_key(|(_, begun, _)| begun.at);
    let mut answers: Vec<_> =
        account.publications.values().flat_map(|publication| &publication.answers).collect();
    answers.sort_by_key(|(spot, ..)| spot.at);
    let mut answers = answers.into_iter().peekable();
    let mut highest = None;
    for (id, begun, (answered, sequence, _)) in by_begin {
        while let Some((spot, earlier, _)) = answers.next_if(|(spot, ..)| spot.at < begun.at) {
            if highest.is_none_or(|(_, known)| *earlier > known) {
                highest = Some((*spot, *earlier));
            }
        }
        if let Some((earlier, known)) = highest.filter(|(_, known)| *known >= sequence) {
            let what = format!("event {id} got sequence {sequence} after {known} was acknowledged");
            verdicts.push(account.verdict(Kind::SequenceWentBack, what, &[earlier, begun, answered]));
        }
    }
}
