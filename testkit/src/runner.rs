//! Runner of one test per case.

use std::time::Duration;

use crate::{Harness, Outcome, cases};

/// Timeout of a case: longer than any case takes unless it hangs.
const DEADLINE: Duration = Duration::from_secs(180);

/// The clock that a case runs on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Clock {
    /// Tokio's paused clock on one thread: waiting takes no time. For providers that wait only with tokio's clock.
    Paused,
    /// The real clock, on two threads.
    Real,
}

/// Runs one case on its own runtime, with a timeout. [`conformance_tests!`](crate::conformance_tests) calls it.
///
/// # Panics
///
/// If there is no case of this name, if the promise is broken, or if the case does not end in time.
pub fn run_case(name: &str, harness: &dyn Harness, clock: Clock) -> Outcome {
    let case = cases()
        .iter()
        .find(|case| case.name == name)
        .unwrap_or_else(|| panic!("there is no case named {name}"));
    let mut builder = match clock {
        Clock::Paused => tokio::runtime::Builder::new_current_thread(),
        Clock::Real => tokio::runtime::Builder::new_multi_thread(),
    };
    let runtime = builder
        .worker_threads(2)
        .start_paused(clock == Clock::Paused)
        .enable_all()
        .build()
        .expect("a tokio runtime");
    runtime.block_on(async {
        tokio::time::timeout(DEADLINE, case.run(harness)).await.unwrap_or_else(|_| {
            panic!("promise broken: {}\n  the case did not end within {DEADLINE:?}", case.promise)
        })
    })
}

/// Expands to one `#[test]` per case.
///
/// The first argument is an expression that creates a [`Harness`](crate::Harness); the second is the
/// [`Clock`](crate::Clock) to run on.
///
/// ```
/// # use std::sync::Arc;
/// # use a3s_event_testkit::{Fixture, Harness, async_trait};
/// # struct Memory;
/// # #[async_trait]
/// # impl Harness for Memory {
/// #     async fn start(&self) -> Box<dyn Fixture> {
/// #         Box::new(Arc::new(a3s_event::MemoryProvider::default()))
/// #     }
/// # }
/// mod contract {
///     a3s_event_testkit::conformance_tests!(super::Memory, clock = Paused);
/// }
/// ```
#[macro_export]
macro_rules! conformance_tests {
    ($harness:expr, clock = $clock:ident $(,)?) => {
        $crate::for_each_case! { [$crate::__one_test_per_case] $harness, $clock }
    };
}

#[doc(hidden)]
#[macro_export]
macro_rules! __one_test_per_case {
    ({ $harness:expr, $clock:ident } $($module:ident { $($name:ident [$($need:ident),*] $promise:literal)* })*) => {
        $($(
            #[test]
            fn $name() {
                $crate::run_case(stringify!($name), &$harness, $crate::Clock::$clock);
            }
        )*)*
    };
}
