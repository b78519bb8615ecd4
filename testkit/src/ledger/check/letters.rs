//! Verdicts about dead letters.

use std::collections::BTreeMap;

use super::super::finale::Letter;
use super::super::verdict::{Kind, Verdict};
use super::account::{Account, Handled, Spot};

pub(super) fn check(account: &Account<'_>, verdicts: &mut Vec<Verdict>) {
    for (name, consumer) in &account.consumers {
        for (sequence, handled) in &consumer.events {
            let is_stored = account.letters(name, *sequence).next().is_some();
            let unstored = handled.letters.first().filter(|_| !is_stored);
            if let Some(written) = unstored {
                let what =
                    format!("the dead letter of {name} about sequence {sequence} was stored and is gone");
                verdicts.push(account.verdict(Kind::LetterMissing, what, &[*written]));
            } else if let Some(given_up) = given_up(account, handled).filter(|_| !is_stored)
                && handled.acks.is_empty()
            {
                let what = format!("{name} gave up sequence {sequence} and there is no dead letter");
                verdicts.push(account.verdict(Kind::LetterMissing, what, &[given_up]));
            }
        }
        // An event that was lost while handlers gave it up needs no letter. One that was acknowledged is kept.
        for ((sequence, id), handled) in &consumer.lost {
            let is_it = |letter: &Letter| {
                letter.consumer == *name && letter.sequence == *sequence && letter.id == *id
            };
            if let Some(written) = handled.letters.first()
                && !account.finale.letters.iter().any(is_it)
            {
                let what =
                    format!("the dead letter of {name} about the lost event {id} was stored and is gone");
                verdicts.push(account.verdict(Kind::LetterMissing, what, &[*written]));
            }
        }
    }
    let mut letters: BTreeMap<(&str, u64, &str), Vec<&Letter>> = BTreeMap::new();
    for letter in &account.finale.letters {
        letters.entry((&letter.consumer, letter.sequence, &letter.id)).or_default().push(letter);
    }
    for ((name, sequence, _), mut copies) in letters {
        copies.sort_by_key(|letter| letter.written_at);
        let handled: Vec<_> =
            copies.first().map(|letter| account.subject_of(letter)).into_iter().flatten().collect();
        let spots: Vec<_> = handled.iter().flat_map(|handled| &handled.letters).copied().collect();
        let written = || spots.iter().map(|spot| spot.at);
        let (first, last) = (written().min().unwrap_or_default(), written().max().unwrap_or_default());
        for pair in copies.windows(2) {
            let apart = pair[1].written_at - pair[0].written_at;
            if apart < account.terms.dedup_window && !account.clock_jumped(first, last) {
                let what = format!(
                    "{name} has two dead letters about sequence {sequence}, written {apart} ms apart"
                );
                verdicts.push(account.verdict(Kind::LetterTwice, what, &spots));
            }
        }
        let has_cause = handled.iter().any(|handled| given_up(account, handled).is_some());
        let is_exhausted = |letter: &&Letter| letter.exhausted && letter.attempts >= account.terms.attempts;
        if !has_cause && !copies.iter().any(is_exhausted) {
            let what =
                format!("{name} has a dead letter about sequence {sequence}, which it did not give up");
            let deliveries = handled.iter().flat_map(|handled| &handled.deliveries);
            let spots: Vec<_> = deliveries.map(|received| received.spot).collect();
            verdicts.push(account.verdict(Kind::LetterWithoutCause, what, &spots));
        }
    }
}

/// Returns the line in which a handler gave an event up.
fn given_up(account: &Account<'_>, handled: &Handled) -> Option<Spot> {
    let last = handled.naks.iter().find(|(_, attempt)| *attempt >= account.terms.attempts);
    handled.terms.first().copied().or(last.map(|(spot, _)| *spot))
}
