//! What happens to a stream, drawn at random.

use std::time::Duration;

use proptest::prelude::*;
use proptest::sample::Index;

use super::{FILTERS, MSG_IDS, NAMES, SUBJECTS};
use crate::provider::AckKind;
use crate::types::SubscribeOptions;

#[derive(Debug, Clone)]
pub(super) enum Op {
    Publish(Vec<Publish>),
    Fetch {
        who: Index,
        max: usize,
        max_bytes: usize,
    },
    /// These settle any leases that were ever handed out, including stale and settled ones.
    Settle {
        who: Index,
        settlings: Vec<(Index, AckKind)>,
    },
    /// The members crash: the leases that they hold are never settled.
    Crash(Index),
    Advance(u16),
    SetBack(u16),
    /// Limits of the stream: events, bytes and age in milliseconds.
    Limit(u64, u64, u64),
    /// Retention drops so many of the oldest events.
    Retain(usize),
    Purge(usize),
    Open {
        name: usize,
        filter: usize,
        start: Policy,
        options: SubscribeOptions,
        applies: bool,
    },
    Close(Index),
    Reset(Index, Place),
    /// The server forgets the scripts.
    Flush,
}

/// An event to publish.
#[derive(Debug, Clone)]
pub(super) struct Publish {
    pub(super) subject: usize,
    pub(super) msg_id: Option<usize>,
    /// What is expected, if anything: the last sequence, that before the first event with the `msg_id`, or another one.
    pub(super) expects: Option<usize>,
}

/// A start policy, or a place in the stream, relative to what is stored.
#[derive(Debug, Clone, Copy)]
pub(super) enum Policy {
    All,
    New,
    Last,
    LastPerSubject,
    Sequence(u8),
    Time(i16),
}

#[derive(Debug, Clone, Copy)]
pub(super) enum Place {
    First,
    Last,
    Sequence(u8),
    Time(i16),
}

pub(super) fn op() -> impl Strategy<Value = Op> {
    let index = any::<Index>;
    let publish = (
        0..SUBJECTS.len(),
        prop::option::weighted(0.3, 0..MSG_IDS.len()),
        prop::option::weighted(0.2, 0..3_usize),
    )
        .prop_map(|(subject, msg_id, expects)| Publish { subject, msg_id, expects });
    let settling = (index(), kind());
    prop_oneof![
        6 => prop::collection::vec(publish, 1..4).prop_map(Op::Publish),
        9 => (index(), 1..6_usize, prop_oneof![4 => Just(1 << 20), 1 => 1..40_usize])
            .prop_map(|(who, max, max_bytes)| Op::Fetch { who, max, max_bytes }),
        7 => (index(), prop::collection::vec(settling, 1..5))
            .prop_map(|(who, settlings)| Op::Settle { who, settlings }),
        1 => index().prop_map(Op::Crash),
        3 => (0..2_500_u16).prop_map(Op::Advance),
        1 => (0..5_000_u16).prop_map(Op::SetBack),
        1 => (0..9_u64, 0..90_u64, 0..9_000_u64).prop_map(|(events, bytes, age)| Op::Limit(events, bytes, age)),
        1 => (1..4_usize).prop_map(Op::Retain),
        1 => (0..FILTERS.len()).prop_map(Op::Purge),
        2 => (0..NAMES.len(), 0..FILTERS.len(), policy(), options(), any::<bool>())
            .prop_map(|(name, filter, start, options, applies)| Op::Open { name, filter, start, options, applies }),
        1 => index().prop_map(Op::Close),
        1 => (index(), place()).prop_map(|(who, place)| Op::Reset(who, place)),
        1 => Just(Op::Flush),
    ]
}

fn kind() -> impl Strategy<Value = AckKind> {
    prop_oneof![
        4 => Just(AckKind::Ack),
        1 => Just(AckKind::Term("unreadable".to_owned())),
        3 => prop::option::of(0..3_000_u64).prop_map(|delay| AckKind::Nak(delay.map(Duration::from_millis))),
        1 => Just(AckKind::Extend),
        2 => Just(AckKind::Release),
    ]
}

pub(super) fn policy() -> impl Strategy<Value = Policy> {
    prop_oneof![
        3 => Just(Policy::All),
        1 => Just(Policy::New),
        1 => Just(Policy::Last),
        1 => Just(Policy::LastPerSubject),
        1 => (0..20_u8).prop_map(Policy::Sequence),
        1 => (-3_000..3_000_i16).prop_map(Policy::Time),
    ]
}

fn place() -> impl Strategy<Value = Place> {
    prop_oneof![
        1 => Just(Place::First),
        1 => Just(Place::Last),
        1 => (0..20_u8).prop_map(Place::Sequence),
        1 => (-3_000..3_000_i16).prop_map(Place::Time),
    ]
}

pub(super) fn options() -> impl Strategy<Value = SubscribeOptions> {
    (prop::option::of(1..4_i64), prop::collection::vec(0..3_u64, 0..3), 1..9_i64, 1..3_u64).prop_map(
        |(max_deliver, mut backoff_secs, max_ack_pending, ack_wait_secs)| {
            backoff_secs.sort_unstable();
            backoff_secs.truncate(max_deliver.map_or(usize::MAX, |max| usize::try_from(max).unwrap()));
            SubscribeOptions {
                max_deliver,
                backoff_secs,
                max_ack_pending: Some(max_ack_pending),
                ack_wait_secs: Some(ack_wait_secs),
                ..SubscribeOptions::default()
            }
        },
    )
}
