//! Tests that a provider keeps every case, except some that are named.

/// It takes 120 s where waiting is not free.
pub(crate) const TOO_LONG: &str = "the_dedup_window_is_120_s_by_default";

/// Cases that are checked only on a store which outlives a restart, and into which the harness can put a record that is
/// not an event; and the one that takes too long.
pub(crate) const ON_A_STORE_OF_ITS_OWN: [&str; 8] = [
    TOO_LONG,
    "stored_events_outlive_a_restart",
    "a_position_outlives_a_restart",
    "attempts_outlive_a_restart",
    "a_reset_outlives_a_restart",
    "an_undecodable_record_surfaces_once",
    "an_undecodable_record_blocks_nothing",
    "a_page_names_what_cannot_be_read",
];

/// One test per case, which must be kept: a case that is not checked is one of `$unchecked`.
macro_rules! every_case_is_kept {
    ({ $harness:expr, $unchecked:expr } $($module:ident { $($name:ident [$($need:ident),*] $promise:literal)* })*) => {
        $($(
            #[test]
            fn $name() {
                let outcome = run_case(stringify!($name), &$harness, Clock::Real);
                let unchecked: &[&str] = &$unchecked;
                assert_eq!(outcome != Outcome::Kept, unchecked.contains(&stringify!($name)), "{outcome:?}");
            }
        )*)*
    };
}
pub(crate) use every_case_is_kept;
