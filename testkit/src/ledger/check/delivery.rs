//! Verdicts about deliveries, acks and order.

use std::collections::BTreeMap;

use super::super::finale::Stored;
use super::super::verdict::{Kind, Verdict};
use super::account::{Account, Consumer, Handled, Received};

pub(super) fn check(account: &Account<'_>, verdicts: &mut Vec<Verdict>) {
    for (name, consumer) in &account.consumers {
        for (sequence, handled) in &consumer.events {
            check_redelivery(account, name, *sequence, handled, verdicts);
            check_attempts(account, name, consumer.ordered, *sequence, handled, verdicts);
        }
        check_arrival(account, name, consumer, verdicts);
        if consumer.ordered {
            check_order(account, name, consumer, verdicts);
        }
    }
    check_end(account, verdicts);
}

fn check_redelivery(
    account: &Account<'_>,
    name: &str,
    sequence: u64,
    handled: &Handled,
    verdicts: &mut Vec<Verdict>,
) {
    if handled.deliveries.len() < 2 {
        return;
    }
    let published_at = account.sequence_published_at(sequence);
    for ack in handled.acks.iter().filter(|ack| !ack.failed) {
        let life = &account.lives[ack.life];
        // A handler may begin late what was handed out before the ack.
        let is_newer = |received: &&Received| {
            let begun = account.lives[received.life].begun.map_or(0, |spot| spot.at);
            received.attempt > ack.attempt || received.life != ack.life && begun > ack.begun.at
        };
        let after =
            |at: u64| handled.deliveries.iter().filter(is_newer).find(move |received| received.spot.at > at);
        if let Some(confirmed) = ack.confirmed
            && let Some(again) = after(confirmed.at)
            && !account.forgotten(ack.begun.at, confirmed.at)
            && (account.terms.fenced || !account.disturbed(ack.life, published_at, confirmed.at))
        {
            let what = format!("sequence {sequence} came to {name} after its ack was confirmed");
            verdicts.push(account.verdict(Kind::RedeliveredAfterAck, what, &[confirmed, again.spot]));
        } else if let Some(stopped) = life.stopped_in_order()
            && let Some(again) = after(stopped.at)
            && !account.forgotten(ack.begun.at, ack.begun.at)
            && !account.disturbed(ack.life, published_at, ack.begun.at + account.terms.lease * 1_000)
        {
            let what = format!(
                "sequence {sequence} came to {name} after {} had acked it and stopped in order",
                life.name()
            );
            verdicts.push(account.verdict(
                Kind::RedeliveredAfterStop,
                what,
                &[ack.begun, stopped, again.spot],
            ));
        }
    }
}

fn check_attempts(
    account: &Account<'_>,
    name: &str,
    ordered: bool,
    sequence: u64,
    handled: &Handled,
    verdicts: &mut Vec<Verdict>,
) {
    if handled.deliveries.len() < 2 {
        return;
    }
    let published_at = account.sequence_published_at(sequence);
    let is_comparable =
        |a: &Received, b: &Received| a.life == b.life || !ordered && account.terms.counts_deliveries;
    let mut deliveries = handled.deliveries.clone();
    deliveries.sort_by_key(|received| received.spot.at);
    for pair in deliveries.windows(2) {
        let [before, after] = pair else { continue };
        if after.attempt <= before.attempt
            && is_comparable(before, after)
            && !account.forgotten(before.spot.at, before.spot.at)
            && !account.disturbed(after.life, published_at, after.spot.at)
        {
            let what = format!(
                "sequence {sequence} came to {name} as attempt {} after attempt {}",
                after.attempt, before.attempt
            );
            verdicts.push(account.verdict(Kind::AttemptWentBack, what, &[before.spot, after.spot]));
        }
    }
}

/// Checks that every stored event arrived, and in time after the last nemesis.
fn check_arrival(account: &Account<'_>, name: &str, consumer: &Consumer<'_>, verdicts: &mut Vec<Verdict>) {
    for Stored { id, sequence, .. } in &account.finale.stored {
        let handled = consumer.events.get(sequence);
        let first = handled.and_then(|handled| handled.deliveries.iter().min_by_key(|it| it.spot.at));
        let has_letter = handled.is_some_and(|handled| !handled.letters.is_empty())
            || account.letters(name, *sequence).next().is_some();
        let publication = account.publications.get(id.as_str());
        let begun = publication.and_then(|publication| publication.begun.first().copied());
        match first {
            None if !has_letter && !consumer.opened.is_empty() => {
                let what = format!("event {id} with sequence {sequence} never came to {name}");
                verdicts.push(account.verdict(Kind::Undelivered, what, begun.as_slice()));
            }
            Some(first) => {
                let Some(quiet) = account.quiet else { continue };
                let due = quiet.at.max(begun.map_or(0, |spot| spot.at)) + account.terms.recovery * 1_000;
                if first.spot.at > due {
                    let what = format!("event {id} with sequence {sequence} came late to {name}");
                    verdicts.push(account.verdict(Kind::Late, what, &[quiet, first.spot]));
                }
            }
            None => {}
        }
    }
}

/// Checks that no event reached a handler while an earlier one of its key was open.
fn check_order(account: &Account<'_>, name: &str, consumer: &Consumer<'_>, verdicts: &mut Vec<Verdict>) {
    let mut keys: BTreeMap<&str, Vec<&Stored>> = BTreeMap::new();
    for stored in &account.finale.stored {
        keys.entry(&stored.key).or_default().push(stored);
    }
    for events in keys.values_mut() {
        events.sort_by_key(|stored| stored.sequence);
        // The earlier events that were open when the last one arrived.
        let mut earlier: Vec<(&Stored, u64)> = Vec::new();
        for stored in events {
            let handled = consumer.events.get(&stored.sequence);
            let first = handled.and_then(|handled| handled.deliveries.iter().min_by_key(|it| it.spot.at));
            if let Some(first) = first {
                for (open, settled_at) in earlier.iter().filter(|(_, settled)| *settled > first.spot.at) {
                    if may_wait(account, consumer, open, first) {
                        continue;
                    }
                    let mut spots = vec![first.spot];
                    let late = consumer.events.get(&open.sequence);
                    spots.extend(late.iter().flat_map(|late| &late.deliveries).map(|it| it.spot));
                    let what = format!(
                        "{name} got event {} of key {} (sequence {}) before event {} (sequence {}) was settled{}",
                        stored.id,
                        stored.key,
                        stored.sequence,
                        open.id,
                        open.sequence,
                        if *settled_at == u64::MAX { ", which it never was" } else { "" }
                    );
                    verdicts.push(account.verdict(Kind::OutOfOrder, what, &spots));
                }
            }
            let settled_at = handled.and_then(Handled::settled_at).unwrap_or(u64::MAX);
            // Deliveries are nearly in order: what was settled a lease ago matters to none that follows.
            let horizon = first.map_or(0, |first| first.spot.at.saturating_sub(account.terms.lease * 10_000));
            earlier.retain(|(_, settled)| *settled > horizon);
            earlier.push((stored, settled_at));
        }
    }
}

/// Returns true if the lease of an earlier event may still belong to a crashed process or a lost connection.
fn may_wait(account: &Account<'_>, consumer: &Consumer<'_>, open: &Stored, received: &Received) -> bool {
    let (published_at, now) = (account.published_at(open), received.spot.at);
    // An event that had a lease comes as a later attempt.
    let late = consumer.events.get(&open.sequence).and_then(|handled| {
        let after = handled.deliveries.iter().filter(|it| it.spot.at > now);
        after.min_by_key(|it| it.spot.at)
    });
    if late.is_some_and(|late| late.attempt == 1) {
        return false;
    }
    let this = &account.lives[received.life];
    let earlier = account.lives.iter().enumerate();
    let earlier = earlier.filter(|(_, life)| life.member == this.member && life.life < this.life);
    let crashes = earlier.filter_map(|(index, life)| life.crashed_at().or(account.unreleased_at(index)));
    let cuts = account.cuts().filter(|(from, _)| *from <= now).map(|(_, to)| to);
    crashes.chain(cuts).any(|end| published_at <= end)
}

/// Checks that nothing is left at the end.
fn check_end(account: &Account<'_>, verdicts: &mut Vec<Verdict>) {
    let Some(quiet) = account.quiet else { return };
    for position in &account.finale.consumers {
        if position.lag > 0 || position.pending > 0 {
            let what = format!(
                "{} still has lag {} and {} pending events at the end",
                position.consumer, position.lag, position.pending
            );
            verdicts.push(account.verdict(Kind::Late, what, &[quiet]));
        }
    }
    for life in account.lives.iter().filter(|life| life.stop_begun.is_some_and(|stop| stop.at > quiet.at)) {
        if life.rested.is_none() {
            let what = format!("the publishers of {} did not end before its stop", life.name());
            verdicts.push(account.verdict(Kind::Late, what, &[quiet]));
        }
    }
}
