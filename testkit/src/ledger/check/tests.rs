//! Each verdict is proven by a journal in which the fault is planted, and each exception by one that is not accused.

use std::time::Duration;

use super::super::finale::{Finale, Letter, Position, Stored};
use super::super::journal::{Entry, Exit, Fact, Lines, Terms};
use super::super::nemesis::Nemesis;
use super::super::verdict::Kind;
use super::check;

/// The journals of a run, before they are written: who notes which fact when, in milliseconds.
#[derive(Clone)]
struct Run {
    notes: Vec<(u64, &'static str, Fact)>,
    finale: Finale,
}

const A: &str = "a-1";
const B: &str = "b-1";
const DRIVER: &str = "driver";

fn delivered(consumer: &str, sequence: u64, attempt: u64) -> Fact {
    delivered_as(&format!("e{sequence}"), consumer, sequence, attempt)
}

fn delivered_as(id: &str, consumer: &str, sequence: u64, attempt: u64) -> Fact {
    let key = if sequence == 3 { "other" } else { "same" };
    Fact::Delivered { consumer: consumer.into(), sequence, attempt, id: id.into(), key: key.into() }
}

fn ack_begun(consumer: &str, sequence: u64) -> Fact {
    Fact::AckBegun { consumer: consumer.into(), sequence }
}

fn confirmed(consumer: &str, sequence: u64) -> Fact {
    Fact::AckConfirmed { consumer: consumer.into(), sequence }
}

fn dead_lettered(id: &str, consumer: &str, sequence: u64) -> Fact {
    Fact::DeadLettered { consumer: consumer.into(), sequence, id: id.into() }
}

fn begun(id: &str) -> Fact {
    Fact::PublishBegun { id: id.into(), key: "same".into() }
}

fn published(id: &str, sequence: u64) -> Fact {
    Fact::Published { id: id.into(), sequence, duplicate: false }
}

fn failed(id: &str) -> Fact {
    Fact::PublishFailed { id: id.into(), may_be_stored: true, error: "timeout".into() }
}

fn strikes(nemesis: Nemesis, target: Option<&str>) -> [Fact; 2] {
    let target = target.map(str::to_owned);
    [Fact::NemesisBegun { nemesis, target: target.clone() }, Fact::NemesisEnded { nemesis, target }]
}

/// Two processes publish and handle four events. The fourth is fatal, and the third fails once. `own` is ordered and
/// read by the first process, `shared` by both.
fn sound() -> Run {
    let mut run = Run { notes: Vec::new(), finale: Finale::default() };
    run.add(0, DRIVER, Fact::Terms(Terms { recovery: 10_000, ..Terms::default() }));
    for (name, member) in [(A, "a"), (B, "b")] {
        run.add(1, name, Fact::Began { member: member.into(), life: 1, process: 7 });
        run.add(2, name, Fact::Opened { consumer: "shared".into(), ordered: false });
    }
    run.add(2, A, Fact::Opened { consumer: "own".into(), ordered: true });
    for sequence in 1..=4 {
        let (id, time) = (format!("e{sequence}"), 10 * sequence);
        run.add(time, B, begun(&id));
        run.add(time + 1, B, published(&id, sequence));
        run.add(time + 5, A, delivered("own", sequence, 1));
        run.add(time + 2, B, delivered("shared", sequence, 1));
        let key = if sequence == 3 { "other" } else { "same" };
        run.finale.stored.push(Stored::new(id, key, sequence, 1_000 + time));
    }
    for sequence in [1, 2] {
        run.add(10 * sequence + 6, A, ack_begun("own", sequence));
        run.add(10 * sequence + 7, A, confirmed("own", sequence));
        run.add(10 * sequence + 3, B, ack_begun("shared", sequence));
        run.add(10 * sequence + 4, B, Fact::AckSent { consumer: "shared".into(), sequence });
    }
    for (name, consumer, first) in [(A, "own", 36), (B, "shared", 33)] {
        run.add(first, name, Fact::Nak { consumer: consumer.into(), sequence: 3, attempt: 1 });
        run.add(first + 60, name, delivered(consumer, 3, 2));
        run.add(first + 61, name, ack_begun(consumer, 3));
        run.add(first + 62, name, confirmed(consumer, 3));
        run.add(first + 10, name, Fact::Term { consumer: consumer.into(), sequence: 4 });
        run.add(first + 11, name, dead_lettered("e4", consumer, 4));
        run.finale.letters.push(Letter::new(consumer, 4, "e4", 1_000 + first));
        run.finale.consumers.push(Position::new(consumer, 0, 0));
    }
    run.add(200, DRIVER, Fact::Quiet);
    for (name, member) in [(A, "a"), (B, "b")] {
        run.add(150, name, Fact::Health { healthy: true });
        run.add(300, name, Fact::Rested);
        run.add(400, name, Fact::StopBegun);
        run.add(500, name, Fact::Stopped { error: None });
        let (cause, status) = (Exit::Stopped, String::new());
        run.add(501, DRIVER, Fact::Exited { member: member.into(), life: 1, cause, status });
    }
    run
}

impl Run {
    fn add(&mut self, time: u64, journal: &'static str, fact: Fact) {
        self.notes.push((time, journal, fact));
    }

    fn remove(&mut self, wanted: impl Fn(&Fact) -> bool) {
        let before = self.notes.len();
        self.notes.retain(|(_, _, fact)| !wanted(fact));
        assert!(self.notes.len() < before, "nothing to remove");
    }

    fn terms(&mut self, change: impl Fn(&mut Terms)) {
        for (_, _, fact) in &mut self.notes {
            if let Fact::Terms(terms) = fact {
                change(terms);
            }
        }
    }

    fn nemesis(&mut self, from: u64, to: u64, nemesis: Nemesis, target: Option<&str>) {
        let [begun, ended] = strikes(nemesis, target);
        self.add(from, DRIVER, begun);
        self.add(to, DRIVER, ended);
    }

    /// Kills the process of `a` at a time, and starts the next one, which repeats its last notes.
    fn crash_a(&mut self, time: u64) {
        let (cause, status) = (Exit::Killed, String::new());
        for (at, journal, _) in &mut self.notes {
            if *journal == A && *at > time {
                *journal = "a-2";
            }
        }
        self.remove(|fact| matches!(fact, Fact::Exited { member, .. } if member == "a"));
        self.add(time + 1, DRIVER, Fact::Exited { member: "a".into(), life: 1, cause, status });
        self.add(time + 2, "a-2", Fact::Began { member: "a".into(), life: 2, process: 8 });
    }

    fn lines(&self) -> Vec<Lines> {
        let mut notes: Vec<_> = self.notes.iter().collect();
        notes.sort_by_key(|(time, ..)| *time);
        ["a-1", "a-2", "b-1", "driver"]
            .map(|name| {
                let of_it = notes.iter().filter(|(_, journal, _)| *journal == name);
                let entries =
                    of_it.map(|(time, _, fact)| Entry::at(Duration::from_millis(*time), fact.clone()));
                Lines::new(name, entries.collect())
            })
            .to_vec()
    }

    #[track_caller]
    fn is(&self, wanted: &[Kind]) {
        let found = check(&self.lines(), &self.finale);
        let text: Vec<_> = found.iter().map(ToString::to_string).collect();
        let mut kinds: Vec<_> = found.iter().map(|verdict| verdict.kind).collect();
        kinds.dedup();
        assert_eq!(kinds, wanted, "{text:#?}");
    }
}

/// A sound run with a change.
fn with(change: impl FnOnce(&mut Run)) -> Run {
    let mut run = sound();
    change(&mut run);
    run
}

#[test]
fn a_sound_run_has_no_verdict() {
    sound().is(&[]);
    let figures = super::Figures::of(&sound().lines(), &sound().finale);
    assert_eq!((figures.published, figures.deliveries, figures.redeliveries), (4, 10, 2));
    assert_eq!((figures.letters, figures.confirmed, figures.unknown), (2, 4, 0));
}

#[test]
fn a_verdict_names_the_event_the_lines_and_the_time() {
    let run = with(|run| run.finale.stored.retain(|stored| stored.id != "e1"));
    let verdicts = check(&run.lines(), &run.finale);
    let text: Vec<_> = verdicts.iter().map(ToString::to_string).collect();
    assert_eq!(
        text,
        ["lost: event e1 was acknowledged with sequence 1 and is not stored\n    b-1.journal:4 at 0.011 s"]
    );
    assert_eq!(super::summary(&verdicts), "1 lost");
}

#[test]
fn loss_is_found() {
    with(|run| run.finale.stored.retain(|stored| stored.id != "e2")).is(&[Kind::Lost]);
    with(|run| run.finale.stored[1].sequence = 7).is(&[Kind::SequenceChanged, Kind::Undelivered]);
    with(|run| {
        run.remove(|fact| matches!(fact, Fact::Delivered { consumer, sequence: 3, .. } if consumer == "own"));
        run.remove(
            |fact| matches!(fact, Fact::Nak { consumer, sequence: 3, .. } | Fact::AckBegun { consumer, sequence: 3 } if consumer == "own"),
        );
    })
    .is(&[Kind::Undelivered]);
}

#[test]
fn an_event_that_only_a_letter_mentions_arrived() {
    with(|run| {
        run.remove(|fact| matches!(fact, Fact::Delivered { sequence: 4, .. } | Fact::Term { .. }));
        for letter in &mut run.finale.letters {
            (letter.exhausted, letter.attempts) = (true, 6);
        }
    })
    .is(&[]);
}

#[test]
fn an_event_that_is_stored_twice_is_found() {
    let twice = |apart| {
        with(|run| {
            let stored_at = run.finale.stored[1].stored_at + apart;
            run.finale.stored.push(Stored::new("e2", "late", 5, stored_at));
            for (name, consumer) in [(A, "own"), (B, "shared")] {
                run.add(180, name, delivered_as("e2", consumer, 5, 1));
            }
        })
    };
    twice(119_999).is(&[Kind::StoredTwice]);
    twice(120_000).is(&[]);
    let mut jumped = twice(0);
    jumped.add(30, B, begun("e2"));
    jumped.is(&[Kind::StoredTwice]);
    jumped.nemesis(25, 26, Nemesis::ClockForward, Some("a"));
    jumped.is(&[]);
    let mut after = twice(0);
    after.nemesis(31, 32, Nemesis::ClockForward, Some("a"));
    after.is(&[Kind::StoredTwice]);
}

#[test]
fn a_sequence_below_an_acknowledged_one_is_found() {
    let back = with(|run| {
        run.add(60, B, begun("e5"));
        run.add(61, B, published("e5", 0));
        run.finale.stored.push(Stored::new("e5", "late", 0, 2_000));
        for (name, consumer) in [(A, "own"), (B, "shared")] {
            run.add(70, name, delivered_as("e5", consumer, 0, 1));
        }
    });
    back.is(&[Kind::SequenceWentBack]);
    let mut unordered = back.clone();
    unordered.terms(|terms| terms.total_order = false);
    unordered.is(&[]);
    // A second try may return the sequence of the first.
    let mut retried = back;
    retried.add(5, B, begun("e5"));
    retried.is(&[]);
}

#[test]
fn a_delivery_after_a_confirmed_ack_is_found() {
    let again = with(|run| run.add(120, A, delivered("own", 2, 2)));
    again.is(&[Kind::RedeliveredAfterAck]);
    // A late ack is refused where settlements are fenced: a suspension excuses nothing.
    let mut paused = again.clone();
    paused.nemesis(21, 25, Nemesis::Pause, Some("a"));
    paused.is(&[Kind::RedeliveredAfterAck]);
    paused.terms(|terms| terms.fenced = false);
    paused.is(&[]);
    let mut elsewhere = again.clone();
    elsewhere.nemesis(21, 25, Nemesis::Pause, Some("b"));
    elsewhere.terms(|terms| terms.fenced = false);
    elsewhere.is(&[Kind::RedeliveredAfterAck]);
    // A handler that begins late with what was handed out before.
    with(|run| run.add(120, B, delivered("shared", 3, 1))).is(&[Kind::AttemptWentBack]);
    let mut killed = again;
    killed.nemesis(90, 95, Nemesis::ServerKill, None);
    killed.is(&[Kind::RedeliveredAfterAck]);
    killed.terms(|terms| terms.forgets_settlements = 100);
    killed.is(&[]);
}

/// A server that was promoted without the newest event gives its sequence to another one.
#[test]
fn an_event_that_was_lost_in_a_failover_is_not_taken_for_the_one_that_has_its_sequence() {
    let strict = |id: &str, letter: Option<&str>, facts: &[Fact]| {
        with(|run| {
            // The clocks of the test begin with 0. This is the time of the journals.
            run.finale.stored.iter_mut().for_each(|stored| stored.stored_at = 10 * stored.sequence);
            run.add(17, A, delivered_as(id, "own", 2, 1));
            facts.iter().for_each(|fact| run.add(18, A, fact.clone()));
            run.finale.letters.extend(letter.map(|id| Letter::new("own", 2, id, 1_023)));
        })
    };
    let lost = |id: &str, letter: Option<&str>, facts: &[Fact]| {
        let mut run = strict(id, letter, facts);
        run.terms(|terms| terms.reuses_sequences = true);
        run
    };
    let acked = [ack_begun("own", 2), confirmed("own", 2)];
    let given_up = [Fact::Term { consumer: "own".into(), sequence: 2 }];
    let written = |id: &str| [given_up[0].clone(), dead_lettered(id, "own", 2)];
    // Another event, and another copy of the same one, which is stored later.
    for id in ["lost", "e2"] {
        strict(id, None, &[]).is(&[Kind::AttemptWentBack]);
        lost(id, None, &acked).is(&[]);
        lost(id, None, &given_up).is(&[]);
        lost(id, None, &written(id)).is(&[Kind::LetterMissing]);
        lost(id, Some(id), &written(id)).is(&[]);
        lost(id, Some(id), &acked).is(&[Kind::LetterWithoutCause]);
        // What a process does with it says nothing about the other one.
        let mut unheard = lost(id, None, &acked);
        let is_other = |(time, fact): (u64, &Fact)| {
            time > 17 && matches!(fact, Fact::Delivered { consumer, sequence: 2, .. } if consumer == "own")
        };
        unheard.notes.retain(|(time, _, fact)| !is_other((*time, fact)));
        unheard.is(&[Kind::Undelivered, Kind::OutOfOrder]);
    }
    lost("lost", Some("e2"), &written("lost")).is(&[Kind::LetterMissing, Kind::LetterWithoutCause]);
    // The letter is stored after the process has received the other one.
    let mut late = lost("lost", Some("lost"), &given_up);
    late.add(60, A, dead_lettered("lost", "own", 2));
    late.is(&[]);
}

#[test]
fn a_promotion_may_forget_what_was_settled_shortly_before() {
    let mut again = with(|run| run.add(120, A, delivered("own", 2, 1)));
    again.is(&[Kind::AttemptWentBack]);
    again.terms(|terms| terms.forgets_settlements = 100);
    again.is(&[Kind::AttemptWentBack]);
    again.nemesis(90, 95, Nemesis::Promotion, None);
    again.is(&[]);
    let mut earlier = with(|run| run.add(320, A, delivered("own", 2, 2)));
    earlier.terms(|terms| terms.forgets_settlements = 100);
    earlier.nemesis(128, 300, Nemesis::Promotion, None);
    earlier.is(&[Kind::RedeliveredAfterAck]);
    // The process was suspended, and learns after the promotion what the server answered before.
    let late = |begun| {
        with(|run| {
            run.remove(
                |fact| matches!(fact, Fact::AckConfirmed { consumer, sequence: 2 } if consumer == "own"),
            );
            run.remove(|fact| matches!(fact, Fact::AckBegun { consumer, sequence: 2 } if consumer == "own"));
            run.add(begun, A, ack_begun("own", 2));
            run.add(40, A, confirmed("own", 2));
            run.add(120, A, delivered("own", 2, 2));
            run.terms(|terms| terms.forgets_settlements = 100);
            run.nemesis(25, 30, Nemesis::Promotion, None);
        })
    };
    late(28).is(&[]);
    late(31).is(&[Kind::RedeliveredAfterAck]);
}

#[test]
fn a_delivery_after_an_orderly_stop_is_found() {
    // The ack of sequence 1 was only sent.
    let again = |time| with(|run| run.add(time, A, delivered("shared", 1, 2)));
    again(120).is(&[]);
    again(600).is(&[Kind::RedeliveredAfterStop]);
    let mut crashed = again(600);
    crashed.remove(|fact| matches!(fact, Fact::Stopped { .. }));
    crashed.is(&[]);
    let mut frozen = again(600);
    frozen.nemesis(11, 12, Nemesis::ServerFreeze, None);
    frozen.is(&[]);
}

#[test]
fn a_key_that_is_out_of_order_is_found() {
    // Sequence 2 comes to the handler while 1 of its key is open.
    let early = with(|run| {
        run.remove(|fact| matches!(fact, Fact::Delivered { consumer, sequence: 2, .. } if consumer == "own"));
        run.add(15, A, delivered("own", 2, 1));
    });
    early.is(&[Kind::OutOfOrder]);
    // A fault excuses a redelivery, and not a first delivery that comes behind a later one.
    let mut frozen = with(|run| {
        run.remove(|fact| matches!(fact, Fact::Delivered { consumer, sequence: 1, .. } if consumer == "own"));
        run.remove(|fact| matches!(fact, Fact::AckBegun { consumer, sequence: 1 } if consumer == "own"));
        run.add(120, A, delivered("own", 1, 2));
    });
    frozen.is(&[Kind::OutOfOrder]);
    frozen.nemesis(12, 13, Nemesis::ServerFreeze, None);
    frozen.is(&[]);
    let mut first = early.clone();
    first.nemesis(12, 13, Nemesis::ServerFreeze, None);
    first.is(&[]);
    first.remove(|fact| matches!(fact, Fact::Delivered { consumer, sequence: 1, .. } if consumer == "own"));
    first.add(16, A, delivered("own", 1, 1));
    first.is(&[Kind::OutOfOrder]);
    // So does no fault of another member.
    let mut elsewhere = early;
    elsewhere.nemesis(12, 13, Nemesis::EioWrite, Some("b"));
    elsewhere.is(&[Kind::OutOfOrder]);
    // No connection is lost by a fault of files or clocks.
    let mut files = frozen.clone();
    files.remove(|fact| matches!(fact, Fact::NemesisBegun { .. } | Fact::NemesisEnded { .. }));
    files.nemesis(12, 13, Nemesis::DiskFull, None);
    files.is(&[Kind::OutOfOrder]);
}

#[test]
fn order_holds_across_a_stop_and_not_across_a_crash() {
    let ended = |cause| {
        with(|run| {
            run.remove(|fact| {
                matches!(fact, Fact::AckBegun { consumer, sequence: 1 } | Fact::AckConfirmed { consumer, sequence: 1 } if consumer == "own")
            });
            run.crash_a(17);
            if cause == Exit::Stopped {
                run.add(16, A, Fact::StopBegun);
                run.add(16, A, Fact::Stopped { error: None });
            }
            run.add(100, "a-2", delivered("own", 1, 2));
            run.add(101, "a-2", ack_begun("own", 1));
        })
    };
    // Sequence 1 is published before the end of the first process, and handled after sequence 2.
    ended(Exit::Killed).is(&[]);
    let stopped = ended(Exit::Stopped);
    stopped.is(&[Kind::OutOfOrder]);
    let mut full = stopped.clone();
    full.nemesis(16, 17, Nemesis::DiskFull, None);
    full.is(&[]);
    let mut elsewhere = stopped;
    elsewhere.nemesis(16, 17, Nemesis::EioWrite, Some("b"));
    elsewhere.is(&[Kind::OutOfOrder]);
}

#[test]
fn attempts_that_go_back_are_found() {
    with(|run| {
        run.remove(|fact| matches!(fact, Fact::Delivered { attempt: 2, .. }));
        run.add(93, B, delivered("shared", 3, 1));
        run.add(93, A, delivered("own", 3, 2));
    })
    .is(&[Kind::AttemptWentBack]);
    // The retries of a lane are counted in the memory of its process.
    let mut crashed = with(|run| {
        run.remove(|fact| matches!(fact, Fact::Delivered { consumer, attempt: 2, .. } if consumer == "own"));
        run.add(40, A, delivered("own", 3, 2));
        run.add(41, A, delivered("own", 3, 3));
    });
    crashed.crash_a(50);
    crashed.add(93, "a-2", delivered("own", 3, 2));
    crashed.is(&[]);
}

#[test]
fn dead_letters_are_one_for_each_event_that_was_given_up() {
    with(|run| run.finale.letters.retain(|letter| letter.consumer != "own")).is(&[Kind::LetterMissing]);
    with(|run| {
        run.remove(|fact| matches!(fact, Fact::DeadLettered { consumer, .. } if consumer == "shared"));
        run.finale.letters.retain(|letter| letter.consumer != "shared");
    })
    .is(&[Kind::LetterMissing]);
    // Another attempt succeeded.
    with(|run| {
        run.remove(|fact| matches!(fact, Fact::DeadLettered { consumer, .. } if consumer == "shared"));
        run.finale.letters.retain(|letter| letter.consumer != "shared");
        run.add(80, B, ack_begun("shared", 4));
    })
    .is(&[]);
    let twice = |apart| {
        with(|run| {
            let written_at = run.finale.letters[0].written_at + apart;
            run.finale.letters.push(Letter::new("own", 4, "e4", written_at));
        })
    };
    twice(0).is(&[Kind::LetterTwice]);
    twice(120_000).is(&[]);
    with(|run| run.finale.letters.push(Letter::new("own", 1, "e1", 0))).is(&[Kind::LetterWithoutCause]);
    let exhausted = |attempts| {
        with(|run| {
            let letter = Letter { exhausted: true, attempts, ..Letter::new("own", 1, "e1", 0) };
            run.finale.letters.push(letter);
        })
    };
    exhausted(6).is(&[]);
    exhausted(5).is(&[Kind::LetterWithoutCause]);
}

#[test]
fn health_that_stays_true_while_nothing_works_is_found() {
    let outage = |wrong: Option<u64>, step: u64| {
        with(|run| {
            for (index, time) in (100..40_000).step_by(usize::try_from(step).unwrap()).enumerate() {
                let healthy = wrong != Some(index as u64);
                run.add(time, "a-2", Fact::Health { healthy });
                run.add(time + 1, "a-2", failed("x"));
            }
        })
    };
    outage(None, 1_000).is(&[Kind::UnnoticedOutage]);
    // Long enough ago or soon enough, nobody was deceived for too long.
    with(|run| {
        for second in 1..40 {
            run.add(second * 1_000, "a-2", Fact::Health { healthy: !u64::is_multiple_of(second, 14) });
            run.add(second * 1_000 + 1, "a-2", failed("x"));
        }
    })
    .is(&[]);
    // A suspended process asks nobody.
    outage(None, 10_000).is(&[]);
    // Nobody publishes.
    with(|run| {
        for second in 1..40 {
            run.add(second * 1_000, "a-2", Fact::Health { healthy: true });
        }
    })
    .is(&[]);
}

#[test]
fn what_is_late_after_the_last_nemesis_is_found() {
    let late = |time| {
        with(|run| {
            run.remove(
                |fact| matches!(fact, Fact::Delivered { consumer, sequence: 4, .. } if consumer == "own"),
            );
            run.add(time, A, delivered("own", 4, 1));
        })
    };
    late(10_200).is(&[]);
    late(10_201).is(&[Kind::Late]);
    with(|run| run.finale.consumers[0].pending = 1).is(&[Kind::Late]);
    with(|run| run.finale.consumers[1].lag = 1).is(&[Kind::Late]);
    with(|run| {
        run.remove(|fact| matches!(fact, Fact::Rested));
        run.add(300, A, Fact::Rested);
    })
    .is(&[Kind::Late]);
}

#[test]
fn a_process_that_ends_by_itself_is_found() {
    with(|run| {
        let (cause, status) = (Exit::ByItself, "exit status: 1".into());
        run.add(600, DRIVER, Fact::Exited { member: "b".into(), life: 1, cause, status });
    })
    .is(&[Kind::Ended]);
    let mut stop = with(|run| {
        run.remove(|fact| matches!(fact, Fact::Stopped { .. }));
        for name in [A, B] {
            run.add(500, name, Fact::Stopped { error: Some("timeout".into()) });
        }
    });
    stop.is(&[Kind::Ended]);
    let mut earlier = stop.clone();
    stop.nemesis(450, 460, Nemesis::ServerFreeze, None);
    stop.is(&[]);
    // An ack was lost in an earlier fault: the only acks without an answer are those of `shared`, which `b` reads.
    earlier.terms(|terms| terms.lease = 250);
    earlier.nemesis(5, 20, Nemesis::ServerFreeze, None);
    earlier.is(&[Kind::Ended]);
    earlier.remove(|fact| matches!(fact, Fact::AckConfirmed { consumer, sequence: 1 } if consumer == "own"));
    earlier.is(&[]);
}
