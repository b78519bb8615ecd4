//! Verdicts about health checks and the ends of processes.

use super::super::journal::{Exit, Fact};
use super::super::verdict::{Kind, Verdict};
use super::account::Account;

pub(super) fn check(account: &Account<'_>, verdicts: &mut Vec<Verdict>) {
    for index in 0..account.lives.len() {
        check_health(account, index, verdicts);
        check_exit(account, index, verdicts);
    }
}

/// Finds the first time in which `health` is true for too long while every publish fails.
fn check_health(account: &Account<'_>, index: usize, verdicts: &mut Vec<Verdict>) {
    let (longest, pause) = (account.terms.health * 1_000, account.terms.lease * 1_000);
    // The first of the answers since the last success, and the last failure since then.
    let (mut first, mut last, mut failed) = (None, None, None);
    for (spot, fact) in account.lines_of(index) {
        match fact {
            Fact::Published { .. } | Fact::Delivered { .. } | Fact::Health { healthy: false } => {
                (first, last, failed) = (None, None, None);
            }
            Fact::PublishFailed { error, .. } => failed = Some((spot, error)),
            Fact::Health { healthy: true } => {
                let was_suspended = last.is_some_and(|last| spot.at - last > pause);
                if was_suspended {
                    (first, failed) = (None, None);
                }
                let since = *first.get_or_insert(spot);
                last = Some(spot.at);
                if let Some((failure, error)) = failed.filter(|_| spot.at - since.at > longest) {
                    let what =
                        format!("{} was healthy while nothing worked: {error}", account.lives[index].name());
                    verdicts.push(account.verdict(Kind::UnnoticedOutage, what, &[since, failure, spot]));
                    return;
                }
            }
            _ => {}
        }
    }
}

fn check_exit(account: &Account<'_>, index: usize, verdicts: &mut Vec<Verdict>) {
    let life = &account.lives[index];
    if let Some((exited, Exit::ByItself, status)) = life.exit {
        let mut spots = vec![exited];
        let cause = life.consumer_ended.map_or_else(String::new, |(spot, error)| {
            spots.push(spot);
            format!(" after a consumer ended: {error}")
        });
        let what = format!("{} ended by itself with {status}{cause}", life.name());
        verdicts.push(account.verdict(Kind::Ended, what, &spots));
    }
    if let (Some(begun), Some((stopped, Some(error)))) = (life.stop_begun, life.stopped)
        && !account.disturbed(index, begun.at, stopped.at)
        && !account.lost_an_ack(index)
    {
        let what = format!("the orderly stop of {} failed: {error}", life.name());
        verdicts.push(account.verdict(Kind::Ended, what, &[begun, stopped]));
    }
}
