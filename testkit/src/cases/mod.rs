//! Conformance cases. Each takes a [`Harness`] and panics if the promise is broken.

mod durable;
mod history;
mod lease;
mod reading;
mod reset;
mod settle;
mod start;
mod stream;
mod subjects;

use crate::world::prepare;
use crate::{Case, Harness, Need, Outcome};

/// Passes the list of all cases to a macro: `for_each_case! { [my_macro] extra tokens }` expands to
/// `my_macro! { { extra tokens } module { name [Need, ...] "promise" ... } ... }`.
///
/// The list is defined only here.
#[macro_export]
macro_rules! for_each_case {
    ([$($callback:tt)*] $($extra:tt)*) => { $($callback)*! { { $($extra)* }
stream {
    sequences_are_positive_and_increase [TotalOrder]
        "A publish returns a sequence above zero and above every earlier one."
    sequences_increase_per_subject []
        "A publish returns a unique sequence, above zero and above every earlier one of its subject."
    sequences_increase_across_publishers [TotalOrder]
        "Concurrent publishers receive distinct sequences, each above all sequences acknowledged before."
    received_sequence_is_the_published_one []
        "An event is delivered with the sequence that its publish returned."
    a_published_event_is_stored []
        "When a publish has returned, the event is stored."
    an_event_survives_unchanged []
        "Every field of an event is delivered and read back as it was published."
    a_msg_id_is_stored_once [Dedup]
        "Publishing again with the same msg_id stores nothing and returns the first sequence."
    a_duplicate_is_reported [Dedup]
        "The receipt of a publish reports whether its msg_id is a duplicate, also within a batch."
    different_msg_ids_are_stored [Dedup]
        "Events with different msg_ids and events without a msg_id are all stored."
    a_msg_id_means_its_bytes [Dedup]
        "Two different msg_ids that the provider accepts are never duplicates of each other."
    a_msg_id_is_checked_before_the_expected_sequence [Dedup, ExpectedSequence]
        "The retry of a stored publish succeeds, although its expected sequence is no longer the last one."
    a_duplicate_with_another_expectation_is_a_conflict [Dedup, ExpectedSequence]
        "Publishing a stored msg_id is a conflict if its expected sequence neither was nor is the last one."
    a_msg_id_is_forgotten_after_the_window [Dedup]
        "After the dedup window that the provider declares, a msg_id can be used again."
    the_dedup_window_is_120_s_by_default [Dedup]
        "By default, a msg_id is remembered for 120 seconds."
    the_expected_sequence_stores [ExpectedSequence]
        "A publish that expects the last sequence of the stream is stored."
    an_unexpected_sequence_is_a_conflict [ExpectedSequence]
        "A publish that expects another last sequence is a conflict, and nothing is stored."
    of_racing_expectations_one_wins [ExpectedSequence]
        "Of concurrent publishes that expect the same sequence, exactly one is stored."
    a_batch_answers_in_order []
        "A batch returns one result per event, in order, and stores the events in that order."
    a_batch_goes_on_behind_a_failure []
        "If an entry of a batch fails, its result is an error, and the other entries are stored."
    batch_entries_keep_their_options [Dedup]
        "Each entry of a batch is published with its own options."
    retention_drops_the_oldest []
        "A full stream drops its oldest events."
    a_limit_in_bytes_never_drops_the_newest []
        "A stream with a limit in bytes drops its oldest events, but never the newest one."
    a_leased_event_that_is_dropped_counts_as_missed [Redelivery, ReportsGaps]
        "An event that retention drops while it is leased is reported as missed when its lease expires."
    only_what_lies_behind_the_start_is_missed [StartPolicies, ReportsGaps]
        "Events that retention drops before the start sequence of a consumer do not count as missed."
    last_per_subject_starts_with_what_is_retained [StartPolicies, ReportsGaps, TotalOrder]
        "LastPerSubject covers the retained subjects; an event that retention drops before its delivery is reported."
    an_overtaken_consumer_learns_how_many_it_missed [Durable, ReportsGaps]
        "If retention drops matching events before delivery, the consumer receives one Lagged error with their number."
    an_error_is_not_the_end [Durable, ReportsGaps]
        "After an error other than closed, a subscription continues."
    publishing_to_nobody_returns []
        "Publishing without subscribers does not block."
    a_slow_subscriber_holds_nobody_up []
        "A subscriber that does not read does not block publishers."
    a_slow_subscriber_loses_nothing_retained []
        "A subscriber that falls behind receives everything that is retained, in order."
    info_counts_what_is_stored []
        "info counts the stored events and their bytes."
    a_provider_that_serves_is_healthy []
        "health returns true while the provider works."
}
subjects {
    bad_subjects_are_refused []
        "A subject that breaks the grammar is invalid input, and nothing is stored."
    subjects_outside_the_prefix_are_refused []
        "A subject outside the prefix of the stream is invalid input, and nothing is stored."
    bad_filters_are_refused []
        "A filter that breaks the grammar or matches nothing in the stream is invalid input in every call."
    bad_consumer_names_are_refused [Durable]
        "A consumer name that breaks the rules is invalid input, and no consumer is created."
    bad_events_are_refused []
        "An event that cannot be stored is invalid input, and nothing is stored."
    an_event_over_the_size_limit_is_refused []
        "An event at the declared size limit is stored; a larger one is invalid input."
    bad_publish_options_are_refused []
        "A publish option out of range is a configuration error, and nothing is stored."
    bad_subscribe_options_are_refused []
        "A subscribe option out of range is a configuration error, and no consumer is created."
    a_star_is_exactly_one_token []
        "In a filter, * matches exactly one token."
    a_rest_is_one_or_more_tokens []
        "In a filter, > matches one or more tokens, never none."
    a_literal_filter_is_exactly_its_subject []
        "A filter without wildcards matches only the equal subject."
    filters_mean_the_same_in_history []
        "A filter selects the same events in history as in a subscription."
}
start {
    without_a_policy_everything_retained_comes_first []
        "By default, a consumer receives the retained events, then newly published ones."
    last_starts_with_the_newest_match [StartPolicies]
        "Last starts with the newest matching event."
    new_skips_what_is_stored [StartPolicies]
        "New delivers only events published after the consumer was created."
    by_start_sequence_starts_there [StartPolicies]
        "ByStartSequence starts with the event of that sequence."
    by_start_time_means_the_time_of_storage [StartPolicies]
        "ByStartTime starts with the first event stored at that time or later, regardless of event timestamps."
    a_start_time_in_the_future_is_waited_for [StartPolicies]
        "ByStartTime with a time in the future, however distant, delivers no event stored before that time."
    last_per_subject_starts_with_the_newest_of_each [StartPolicies, TotalOrder]
        "LastPerSubject starts with the newest event of each subject, in sequence order."
    a_durable_honours_its_policy [Durable, StartPolicies]
        "A new durable consumer starts at the position that its policy selects."
    a_policy_counts_only_when_the_consumer_is_made [Durable, StartPolicies]
        "An existing durable consumer continues from its position, regardless of its start policy."
}
durable {
    a_durable_keeps_its_position [Durable]
        "A durable consumer continues from its position after all members have left."
    members_share_the_work [Durable, SharedConsumers]
        "Each event goes to one member of a durable consumer."
    every_member_gets_a_share [Durable, SharedConsumers]
        "While one member is busy, another member receives the next event."
    a_busy_member_holds_up_nobody [Durable, SharedConsumers, EventSharing]
        "While a member holds an event, a member on another connection receives the next one, also of the same subject."
    each_durable_gets_everything [Durable]
        "Durable consumers of different names each receive every event."
    another_filter_is_a_conflict [Durable]
        "Opening a durable name with another filter is a conflict that names the filter."
    another_start_is_a_conflict [Durable, StartPolicies]
        "Opening a durable name with another start policy is a conflict that names the policy."
    opening_without_options_changes_nothing [Durable, MaxAckPending]
        "Opening a durable name without options keeps the settings of the consumer."
    a_changed_max_ack_pending_applies [Durable, SharedConsumers, MaxAckPending]
        "Opening a durable name with another max_ack_pending changes it."
    a_changed_max_deliver_applies [Durable, Redelivery]
        "Opening a durable name with another max_deliver changes it."
    a_changed_ack_wait_applies [Durable, Redelivery]
        "Opening a durable name with another ack_wait changes it."
    unsubscribe_forgets_the_position [Durable]
        "unsubscribe deletes a durable consumer and its position."
    unsubscribe_ends_open_subscriptions [Durable]
        "unsubscribe ends the open subscriptions of the consumer, including a waiting one."
    a_deleted_consumer_says_so [Durable]
        "A subscription reports that it ended because its consumer was deleted."
    a_closed_subscription_says_so []
        "A subscription reports that it ended because it or its provider was closed."
    settings_are_those_in_force [Durable]
        "A subscription returns the settings in force, regardless of the member that set them."
    unsubscribe_ends_every_waiting_member [Durable, SharedConsumers]
        "unsubscribe ends every waiting member of the consumer."
    a_closed_provider_ends_every_waiting_member [Durable, SharedConsumers]
        "close of the provider ends every waiting member of a durable consumer."
    unsubscribe_of_an_unknown_name_is_fine []
        "unsubscribe of a name that does not exist succeeds."
    a_forgotten_consumer_takes_an_ack_but_no_nak [Durable, Redelivery]
        "After unsubscribe, an ack succeeds, and a nak fails with an error that says closed."
    stored_events_outlive_a_restart []
        "Stored events survive a restart."
    a_position_outlives_a_restart [Durable]
        "The position of a durable consumer survives a restart."
    attempts_outlive_a_restart [Durable, Redelivery]
        "An event that was unsettled at a restart is redelivered, and its attempts continue to count."
}
reset {
    a_reset_to_the_first_delivers_everything_again [Durable, ResetConsumer]
        "A consumer moved to the first event receives all retained events again, each as a first delivery."
    a_reset_to_the_last_skips_what_is_stored [Durable, ResetConsumer]
        "A consumer moved to the end receives only events published afterwards."
    a_reset_goes_to_a_sequence [Durable, ResetConsumer]
        "A consumer moved to a sequence continues with that event, or from the nearest end of the retained events."
    a_reset_goes_to_a_time [Durable, ResetConsumer]
        "A consumer moved to a time continues with the first event stored at that time or later."
    a_reset_wakes_waiting_members [Durable, SharedConsumers, ResetConsumer]
        "A waiting member continues from the new position at once."
    a_reset_forgets_what_was_to_come_first [Durable, StartPolicies, ResetConsumer, TotalOrder]
        "Moving a consumer discards the events that its start policy selected to come first."
    what_was_delivered_before_a_reset_cannot_be_settled [Durable, Redelivery, FencedSettlement, ResetConsumer]
        "Settling a delivery from before a move fails, and the new delivery stays in force."
    a_reset_of_an_unknown_consumer_is_not_found [Durable, ResetConsumer]
        "Moving a consumer that does not exist is an error and creates none."
    a_reset_outlives_a_restart [Durable, ResetConsumer]
        "The position that a consumer was moved to survives a restart."
}
settle {
    first_deliveries_come_in_order []
        "Events are delivered in sequence order."
    a_subject_is_delivered_in_order []
        "The first deliveries of the events of one subject are in sequence order, also among events of other subjects."
    num_delivered_starts_at_one_and_counts [Redelivery]
        "num_delivered starts at 1 and counts the deliveries of each event."
    every_view_shows_the_same_event [Redelivery]
        "next, next_manual_ack and next_delivery return the same event."
    ack_settles [Redelivery]
        "An acked event is not redelivered."
    a_confirmed_ack_is_stored [Durable, Redelivery, ConsumerInfo]
        "ack_confirmed returns when the backend has stored the ack."
    flush_waits_for_acks [Durable, Redelivery, ConsumerInfo]
        "flush of a subscription returns when the backend has stored all earlier acks."
    close_waits_for_acks [Durable, Redelivery, ConsumerInfo]
        "close of a subscription returns when the backend has stored all earlier acks."
    nak_redelivers_at_once [Redelivery]
        "Without a backoff, a nacked event is redelivered at once."
    nak_waits_for_the_backoff_of_its_attempt [Redelivery, NakWithDelay]
        "A nacked event is redelivered after the backoff of its attempt; the last entry repeats."
    nak_after_waits_its_delay [Redelivery, NakWithDelay]
        "After nak_after, the event is redelivered after the delay, not before."
    nak_after_goes_before_the_backoff [Redelivery, NakWithDelay]
        "The delay of nak_after replaces the backoff."
    a_delayed_event_holds_no_other_up [Redelivery, NakWithDelay]
        "An event that waits for its redelivery does not block other events."
    term_settles [Redelivery, Term]
        "A terminated event is not redelivered."
    extend_restarts_the_lease [Redelivery, Extend]
        "extend restarts the lease, any number of times."
    dropping_a_delivery_is_not_an_ack [Redelivery]
        "An event whose delivery was dropped unsettled is redelivered after the ack wait."
    dropping_a_delivery_is_not_a_nak [Redelivery]
        "An event whose delivery was dropped unsettled is not redelivered before the ack wait."
    a_late_ack_does_not_settle_the_newer_delivery [Redelivery, FencedSettlement]
        "An ack that has lost its lease does not settle the newer delivery."
    a_late_settlement_says_so [Redelivery, FencedSettlement]
        "A settlement that has lost its lease is an error."
    a_late_nak_leaves_the_newer_delivery_alone [Redelivery, FencedSettlement]
        "A nak that has lost its lease does not end the lease of the newer delivery."
    what_is_due_comes_in_sequence_order [Redelivery, ReleaseKeepsAttempt]
        "Nacked and released events are redelivered in sequence order, before events that were never delivered."
    a_delay_may_have_any_length [Redelivery, NakWithDelay]
        "nak_after accepts any delay, from zero to the longest duration."
    release_gives_back_without_counting [Redelivery, ReleaseKeepsAttempt]
        "A released event is redelivered at once, as if it had not been delivered."
}
lease {
    an_unsettled_event_comes_again [Redelivery]
        "An event that is not settled within the ack wait is redelivered."
    a_lease_is_not_cut_short [Redelivery]
        "An event is not redelivered before the ack wait is over."
    the_ack_wait_is_30_s_by_default [Redelivery]
        "By default, an unsettled event is redelivered after 30 seconds."
    the_lease_counts_from_hand_out [Redelivery]
        "The lease begins when the event is handed out, not when it is fetched."
    a_member_takes_over_from_a_dead_one [Durable, SharedConsumers, Redelivery]
        "The events of a member that is gone go to another member after the ack wait."
    a_waiting_member_takes_over_a_lost_lease [Durable, SharedConsumers, Redelivery]
        "A waiting member receives an event when the lease of another member on it expires."
    max_deliver_ends_naks [Redelivery]
        "After max_deliver attempts, a nacked event is not redelivered."
    max_deliver_ends_lost_leases [Redelivery]
        "After max_deliver attempts, an unsettled event is not redelivered."
    an_exhausted_event_holds_no_other_up [Redelivery, MaxAckPending]
        "An event that is given up after max_deliver attempts makes room for the next one."
    redelivery_is_unlimited_by_default [Redelivery]
        "Without max_deliver, an event is redelivered after every nak."
    max_ack_pending_pauses_delivery [MaxAckPending]
        "No new event is delivered while max_ack_pending events are unsettled."
    settling_one_resumes_delivery [MaxAckPending]
        "Settling one event lets the consumer receive the next one."
    settling_wakes_a_waiting_member [Durable, SharedConsumers, MaxAckPending]
        "A member that waits because of max_ack_pending is woken when another member settles an event."
    members_share_max_ack_pending [Durable, SharedConsumers, MaxAckPending]
        "max_ack_pending limits the unsettled events of all members together."
    max_ack_pending_lets_redeliveries_through [MaxAckPending, Redelivery]
        "A nacked event is redelivered even if max_ack_pending is reached."
    a_thousand_events_may_be_unsettled_by_default [MaxAckPending]
        "Without max_ack_pending, a thousand events may be unsettled."
}
reading {
    ephemerals_are_private []
        "Ephemeral consumers of the same filter each receive every event."
    an_ephemeral_is_gone_when_dropped []
        "An ephemeral consumer is deleted when its subscription is dropped."
    next_settles_before_handing_over [Redelivery]
        "An event that next returned is not redelivered."
    a_publish_wakes_a_waiting_subscriber []
        "A waiting subscriber receives an event when it is published."
    a_cancelled_waiter_strands_no_other [Durable, SharedConsumers]
        "A member that stops waiting leaves the next event to another waiting member."
    cancelling_next_loses_nothing []
        "Dropping the future of next at any await point loses no event."
    cancelling_next_manual_ack_loses_nothing []
        "Dropping the future of next_manual_ack at any await point loses no event."
    cancelling_next_delivery_loses_nothing []
        "Dropping the future of next_delivery at any await point loses no event."
    timeouts_and_select_lose_nothing []
        "A consumer loop of timeouts and select receives every event once, in order."
    a_closed_subscription_stays_closed []
        "After close, every call reports that the subscription has ended, any number of times."
    close_gives_back_what_was_not_handed_out [Durable]
        "close releases events that were fetched but not handed out, without counting an attempt."
    what_was_handed_out_can_be_settled_after_close [Durable, Redelivery]
        "A delivery that was handed out before close can be settled afterwards."
    a_closed_provider_refuses_publishes []
        "After close, a publish fails with an error that says closed."
    a_closed_provider_ends_subscriptions []
        "close of the provider ends its subscriptions, including a waiting one."
    next_batch_takes_at_most_max_in_order []
        "next_batch returns between one and max deliveries, in order."
    a_wait_may_have_any_length []
        "next_batch accepts any timeout: zero, a nanosecond or the longest duration. So does a publish."
    next_batch_does_not_wait_to_be_full []
        "next_batch waits only for the first delivery, and at most for its timeout."
    an_undecodable_record_surfaces_once [Redelivery]
        "A stored record that is not an event surfaces once as an error, with its sequence and bytes."
    an_undecodable_record_blocks_nothing []
        "The events around a record that cannot be decoded are delivered."
}
history {
    history_is_newest_first []
        "History is newest first."
    history_is_exactly_the_newest_limit []
        "History is exactly the newest limit events."
    a_filtered_history_is_exactly_the_newest_matches []
        "History with a filter is exactly the newest limit matches."
    history_does_not_wait_for_more []
        "History does not wait if fewer than limit events are stored."
    history_without_a_filter_is_everything [TotalOrder]
        "History without a filter covers the whole stream."
    a_history_of_zero_is_empty []
        "History with a limit of zero is empty."
    a_huge_history_is_everything []
        "History with a limit above the number of stored events returns all of them."
    history_leaves_no_consumer_behind []
        "Reading history leaves no consumer behind."
    history_settles_nothing []
        "Reading history takes no event from a consumer."
    a_query_reads_a_sequence_range [HistoryQuery]
        "A query reads from a first sequence, inclusive, to a last, exclusive."
    a_query_reads_a_time_range [HistoryQuery]
        "A query reads a range of storage times, regardless of event timestamps."
    a_query_combines_its_conditions [HistoryQuery]
        "A query applies its filter, time range, sequence range and limit together."
    a_query_pages_through_everything [HistoryQuery]
        "Pages that each begin before the last event of the previous page cover every event once."
    a_page_says_how_far_it_searched [HistoryQuery]
        "A page reports the lowest sequence it searched, and where the next page begins if anything is left to search."
    pages_cover_everything_once [HistoryQuery]
        "Pages that each begin where the previous page says find every match once and come to an end."
    a_page_names_what_cannot_be_read [HistoryQuery]
        "A page reports each stored record in its range that is not an event and returns the events around it."
    a_query_tells_sequence_and_storage_time [HistoryQuery]
        "A query returns the sequence and the storage time of each event."
    consumers_lists_lag_pending_and_redelivered [Durable, Redelivery, ConsumerInfo]
        "consumers reports the lag, the pending and the redelivered events of each consumer."
    a_subscription_knows_its_lag [ConsumerInfo]
        "lag counts the retained matching events that were not delivered yet."
}
    } };
}

macro_rules! define_cases {
    ({} $($module:ident { $($name:ident [$($need:ident),*] $promise:literal)* })*) => {
        $($(
            #[doc = $promise]
            $(#[doc = concat!("\n\nNeeds the capability [`", stringify!($need), "`](Need::", stringify!($need), ").")])*
            pub async fn $name(harness: &dyn Harness) -> Outcome {
                match prepare(harness, $promise, &[$(Need::$need),*]).await {
                    Ok(world) => $module::$name(&world).await.into(),
                    Err(absent) => Outcome::Refused(absent),
                }
            }
        )*)*

        static CASES: &[Case] = &[$($(
            Case {
                name: stringify!($name),
                promise: $promise,
                needs: &[$(Need::$need),*],
                run: |harness| Box::pin($name(harness)),
            },
        )*)*];
    };
}

for_each_case! { [define_cases] }

/// Returns all cases, in the order of the delivery contract.
pub fn cases() -> &'static [Case] {
    CASES
}
