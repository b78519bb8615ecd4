//! The defects, and the cases that must catch them.

/// Declares the defects together with the cases that each must fail; the first case is the one named for it.
macro_rules! defects {
    ($($(#[$doc:meta])* $defect:ident: $($case:ident)*;)*) => {
        /// One broken promise.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub(crate) enum Defect {
            $($(#[$doc])* $defect,)*
        }

        pub(crate) const CAUGHT_BY: &[(Defect, &[&str])] = &[$((Defect::$defect, &[$(stringify!($case)),*]),)*];
    };
}

defects! {
    // Stream
    SequencesRepeat: sequences_are_positive_and_increase sequences_increase_across_publishers
        sequences_increase_per_subject;
    DeliversOtherSequence: received_sequence_is_the_published_one;
    LosesOneIn50: a_published_event_is_stored;
    DropsMetadata: an_event_survives_unchanged;
    IgnoresDedup: a_msg_id_is_stored_once a_msg_id_is_checked_before_the_expected_sequence;
    DedupsEverything: different_msg_ids_are_stored;
    ChecksExpectedSequenceFirst: a_msg_id_is_checked_before_the_expected_sequence;
    DuplicatesIgnoreExpectations: a_duplicate_with_another_expectation_is_a_conflict;
    HidesDuplicates: a_duplicate_is_reported;
    /// Takes blanks at the ends of a `msg_id` for nothing, as a header does.
    TrimsMsgIds: a_msg_id_means_its_bytes bad_publish_options_are_refused;
    FoldsMsgIds: a_msg_id_means_its_bytes different_msg_ids_are_stored;
    DedupsForEver: a_msg_id_is_forgotten_after_the_window;
    DeclaresAnotherDedupWindow: a_msg_id_is_forgotten_after_the_window;
    /// As if the dedup window were half as long, or twice as long.
    ShortDedupWindow: the_dedup_window_is_120_s_by_default;
    LongDedupWindow: the_dedup_window_is_120_s_by_default;
    ExpectsSequencePerSubject: the_expected_sequence_stores an_unexpected_sequence_is_a_conflict;
    IgnoresExpectedSequence: an_unexpected_sequence_is_a_conflict of_racing_expectations_one_wins;
    BatchAnswersReversed: a_batch_answers_in_order;
    BatchStopsAtFailure: a_batch_goes_on_behind_a_failure;
    BatchIgnoresOptions: batch_entries_keep_their_options;
    IgnoresRetention: retention_drops_the_oldest;
    IgnoresByteLimit: a_limit_in_bytes_never_drops_the_newest;
    DropsWhatIsOverTheByteLimit: a_limit_in_bytes_never_drops_the_newest;
    SkipsOneMissedSilently: a_leased_event_that_is_dropped_counts_as_missed
        last_per_subject_starts_with_what_is_retained;
    /// Counts what was dropped before the consumer's start as missed.
    MissesBeforeTheStart: only_what_lies_behind_the_start_is_missed;
    SkipsMissedSilently: an_overtaken_consumer_learns_how_many_it_missed;
    /// Counts the events that did not match as missed.
    MiscountsMissed: an_overtaken_consumer_learns_how_many_it_missed;
    EndsAfterAnError: an_error_is_not_the_end;
    BlocksWithoutSubscriber: publishing_to_nobody_returns;
    BlocksForSlowSubscriber: a_slow_subscriber_holds_nobody_up;
    DropsForSlowSubscriber: a_slow_subscriber_loses_nothing_retained;
    InfoCountsNothing: info_counts_what_is_stored;
    NeverHealthy: a_provider_that_serves_is_healthy;

    // Subjects, names, options
    /// Stores events under a subject of its own choice when theirs is bad.
    StoresBadSubjects: bad_subjects_are_refused subjects_outside_the_prefix_are_refused;
    OpensBadFilters: bad_filters_are_refused;
    OpensBadNames: bad_consumer_names_are_refused;
    RepairsBadEvents: bad_events_are_refused;
    TruncatesLargeEvents: an_event_over_the_size_limit_is_refused;
    ForgivesBadOptions: bad_publish_options_are_refused bad_subscribe_options_are_refused;
    /// As above, when a durable consumer is opened.
    ForgivesBadDurableOptions: bad_subscribe_options_are_refused;
    StarMatchesMany: a_star_is_exactly_one_token;
    RestMatchesNone: a_rest_is_one_or_more_tokens;
    LiteralMatchesBelow: a_literal_filter_is_exactly_its_subject;
    HistoryRestMatchesNone: filters_mean_the_same_in_history;

    // Start
    StartsWithNew: without_a_policy_everything_retained_comes_first;
    IgnoresStartPolicy: last_starts_with_the_newest_match new_skips_what_is_stored by_start_sequence_starts_there
        last_per_subject_starts_with_the_newest_of_each a_durable_honours_its_policy
        last_per_subject_starts_with_what_is_retained;
    IgnoresStartTime: by_start_time_means_the_time_of_storage a_start_time_in_the_future_is_waited_for;
    StartsByEventTimestamp: by_start_time_means_the_time_of_storage;

    // Durables
    ForgetsPosition: a_durable_keeps_its_position a_policy_counts_only_when_the_consumer_is_made;
    DeliversToEveryMember: members_share_the_work members_share_max_ack_pending;
    ServesOneMemberOnly: every_member_gets_a_share a_busy_member_holds_up_nobody a_member_takes_over_from_a_dead_one;
    SharesAcrossNames: each_durable_gets_everything;
    KeepsOldFilterSilently: another_filter_is_a_conflict;
    KeepsOldStartSilently: another_start_is_a_conflict;
    ResetsSettingsOnOpening: opening_without_options_changes_nothing;
    IgnoresChanges: a_changed_max_ack_pending_applies a_changed_max_deliver_applies a_changed_ack_wait_applies;
    UnsubscribeDoesNothing: unsubscribe_forgets_the_position unsubscribe_ends_open_subscriptions
        a_forgotten_consumer_takes_an_ack_but_no_nak;
    EndsOneWaiterOnly: unsubscribe_ends_every_waiting_member a_closed_provider_ends_every_waiting_member;
    SaysClosedWhenDeleted: a_deleted_consumer_says_so;
    SaysDeletedWhenClosed: a_closed_subscription_says_so;
    TellsDefaultSettings: settings_are_those_in_force;
    UnsubscribeFailsForUnknown: unsubscribe_of_an_unknown_name_is_fine;
    NakSucceedsAfterUnsubscribe: a_forgotten_consumer_takes_an_ack_but_no_nak;
    RestartLosesEverything: a_reset_outlives_a_restart stored_events_outlive_a_restart a_position_outlives_a_restart attempts_outlive_a_restart;

    // Moving
    ResetDoesNothing: a_reset_to_the_first_delivers_everything_again a_reset_to_the_last_skips_what_is_stored
        a_reset_goes_to_a_sequence a_reset_goes_to_a_time a_reset_wakes_waiting_members
        a_reset_forgets_what_was_to_come_first what_was_delivered_before_a_reset_cannot_be_settled;
    ResetIgnoresPosition: a_reset_to_the_last_skips_what_is_stored a_reset_goes_to_a_sequence a_reset_goes_to_a_time
        a_reset_forgets_what_was_to_come_first;
    ResetCountsBehindTheSequence: a_reset_goes_to_a_sequence;
    ResetOfUnknownSucceeds: a_reset_of_an_unknown_consumer_is_not_found;

    // Settling
    Reorders: first_deliveries_come_in_order a_subject_is_delivered_in_order what_is_due_comes_in_sequence_order;
    ResetsNumDelivered: num_delivered_starts_at_one_and_counts attempts_outlive_a_restart;
    OwnedViewDiffers: every_view_shows_the_same_event;
    AckDoesNothing: ack_settles a_confirmed_ack_is_stored flush_waits_for_acks close_waits_for_acks;
    IgnoresNak: nak_redelivers_at_once max_ack_pending_lets_redeliveries_through nak_after_waits_its_delay;
    NaksLate: nak_redelivers_at_once;
    ReleasesLate: release_gives_back_without_counting;
    NakHasNoDelay: nak_waits_for_the_backoff_of_its_attempt nak_after_waits_its_delay;
    /// Takes a delay that is too long for its clock for none.
    LongDelaysOverflow: a_delay_may_have_any_length;
    /// The same for a wait.
    LongWaitsOverflow: a_wait_may_have_any_length;
    NakAfterUsesBackoff: nak_after_goes_before_the_backoff;
    DelayHoldsUpOthers: a_delayed_event_holds_no_other_up;
    TermRefuses: term_settles;
    ExtendDoesNothing: extend_restarts_the_lease;
    AcksOnDrop: dropping_a_delivery_is_not_an_ack;
    NaksOnDrop: dropping_a_delivery_is_not_a_nak;
    LateAckSettlesNewer: a_late_ack_does_not_settle_the_newer_delivery
        what_was_delivered_before_a_reset_cannot_be_settled;
    LateSettlementIsSilent: a_late_settlement_says_so;
    LateNakEndsNewerLease: a_late_nak_leaves_the_newer_delivery_alone;
    ReleaseCounts: release_gives_back_without_counting;

    // Leases and limits
    IgnoresAckWait: an_unsettled_event_comes_again a_member_takes_over_from_a_dead_one
        a_waiting_member_takes_over_a_lost_lease;
    CutsLeasesShort: a_lease_is_not_cut_short;
    ShortDefaultLease: the_ack_wait_is_30_s_by_default;
    LongDefaultLease: the_ack_wait_is_30_s_by_default;
    LeaseRunsFromPrefetch: the_lease_counts_from_hand_out close_gives_back_what_was_not_handed_out;
    IgnoresMaxDeliver: max_deliver_ends_naks max_deliver_ends_lost_leases an_exhausted_event_holds_no_other_up;
    OtherDefaults: redelivery_is_unlimited_by_default a_thousand_events_may_be_unsettled_by_default;
    IgnoresMaxAckPending: max_ack_pending_pauses_delivery members_share_max_ack_pending;
    NeverResumes: settling_one_resumes_delivery;
    LosesWakeups: a_reset_wakes_waiting_members a_publish_wakes_a_waiting_subscriber settling_wakes_a_waiting_member
        a_waiting_member_takes_over_a_lost_lease a_closed_provider_ends_subscriptions unsubscribe_ends_open_subscriptions;

    /// Looks for something new every nine seconds.
    Polls: a_publish_wakes_a_waiting_subscriber settling_wakes_a_waiting_member;

    // Reading
    SharesEphemerals: ephemerals_are_private;
    EphemeralLingers: an_ephemeral_is_gone_when_dropped;
    NextLeavesUnsettled: next_settles_before_handing_over;
    StrandsWaiters: a_cancelled_waiter_strands_no_other;
    NotCancelSafe: cancelling_next_loses_nothing cancelling_next_manual_ack_loses_nothing
        cancelling_next_delivery_loses_nothing timeouts_and_select_lose_nothing;
    /// Safe at its first await points, not at a later one.
    NotCancelSafeLate: cancelling_next_loses_nothing cancelling_next_manual_ack_loses_nothing
        cancelling_next_delivery_loses_nothing;
    EndsOnlyOnce: a_closed_subscription_stays_closed;
    CannotSettleAfterClose: what_was_handed_out_can_be_settled_after_close;
    CloseDoesNothing: a_closed_provider_refuses_publishes a_closed_provider_ends_subscriptions
        a_closed_subscription_stays_closed;
    OverfillsBatches: next_batch_takes_at_most_max_in_order;
    WaitsForFullBatches: next_batch_does_not_wait_to_be_full;
    UndecodableComesAgain: an_undecodable_record_surfaces_once;
    SkipsUndecodableSilently: an_undecodable_record_surfaces_once an_undecodable_record_blocks_nothing;
    UndecodableBlocks: an_undecodable_record_blocks_nothing;

    // History
    HistoryOldestFirst: history_is_newest_first;
    HistoryOneTooFew: history_is_exactly_the_newest_limit;
    HistoryFiltersAfterLimit: a_filtered_history_is_exactly_the_newest_matches;
    HistoryWaitsForMore: history_does_not_wait_for_more;
    HistoryNeedsFilter: history_without_a_filter_is_everything;
    HistoryZeroIsNoLimit: a_history_of_zero_is_empty;
    HistoryCapped: a_huge_history_is_everything;
    HistoryLeavesConsumer: history_leaves_no_consumer_behind;
    HistoryMovesConsumers: history_settles_nothing;
    QueryIgnoresSequences: a_query_reads_a_sequence_range a_query_pages_through_everything;
    QueryBeforeIsInclusive: a_query_pages_through_everything;
    QueryIgnoresFilterWithTime: a_query_combines_its_conditions;
    QueryUsesEventTimestamps: a_query_reads_a_time_range a_query_tells_sequence_and_storage_time;
    PagesSayNothing: a_page_says_how_far_it_searched;
    /// Ends with the first page, as if it were the whole.
    PagesEndEarly: a_page_says_how_far_it_searched pages_cover_everything_once;
    /// The next page begins with what was the last of this one.
    PagesOverlap: pages_cover_everything_once;
    /// The next page leaves out one record.
    PagesLeaveGaps: pages_cover_everything_once;
    HidesUnreadable: a_page_names_what_cannot_be_read;
    /// Takes a record that cannot be read for one of the events of a page.
    UnreadableTakesRoom: a_page_names_what_cannot_be_read;
    ConsumersKnowNothing: consumers_lists_lag_pending_and_redelivered;
    LagIsZero: a_subscription_knows_its_lag;

    /// Does what it declares absent instead of refusing it; has no effect while everything is declared.
    IgnoresDeclarations: ;
    /// The same in one kind of call only.
    IgnoresDeclarationsInBatches: ;
    IgnoresDeclarationsOfDurables: ;
    IgnoresDeclarationsInNak: ;
}
