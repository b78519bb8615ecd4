use super::*;

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const PARENT: &str = "00f067aa0ba902b7";

fn valid() -> String {
    format!("00-{TRACE}-{PARENT}-01")
}

fn context(state: &str) -> Option<TraceContext> {
    TraceContext::parse(&valid(), Some(state))
}

fn event() -> Event {
    Event::new("events.a", "a", "", "", serde_json::json!(1))
}

#[test]
fn a_valid_context_is_read_and_written_unchanged() {
    let context = context("congo=t61rcWkgMzE,rojo=00f067aa0ba902b7").unwrap();
    assert_eq!(context.traceparent(), valid());
    assert_eq!(context.tracestate(), "congo=t61rcWkgMzE,rojo=00f067aa0ba902b7");
    assert_eq!((context.trace_id(), context.parent_id(), context.is_sampled()), (TRACE, PARENT, true));
    let not_sampled = TraceContext::parse(&format!("00-{TRACE}-{PARENT}-00"), None).unwrap();
    assert!(!not_sampled.is_sampled());
}

/// The cases of the recommendation's own test suite.
#[test]
fn an_invalid_traceparent_is_no_context() {
    let zeros = "0".repeat(32);
    for invalid in [
        String::new(),
        "00".to_owned(),
        format!("00-{TRACE}-{PARENT}"),
        format!("00-{TRACE}-{PARENT}-"),
        format!("00-{TRACE}-{PARENT}-1"),
        format!("00-{TRACE}-{PARENT}-01-"),
        format!("00-{TRACE}-{PARENT}-01-what-the-future-brings"),
        format!("00-{TRACE}-{PARENT}-011"),
        format!("00-{TRACE}-{PARENT}-.0"),
        format!("00-{zeros}-{PARENT}-01"),
        format!("00-{TRACE}-0000000000000000-01"),
        format!("ff-{TRACE}-{PARENT}-01"),
        format!("0-{TRACE}-{PARENT}-01"),
        format!("FF-{TRACE}-{PARENT}-01"),
        format!("00-{}-{PARENT}-01", TRACE.to_uppercase()),
        format!("00-{TRACE}-{}-01", PARENT.to_uppercase()),
        format!("00-{}-{PARENT}-01", &TRACE[1..]),
        format!("00-{TRACE}0-{PARENT}-01"),
        format!("00-.{}-{PARENT}-01", &TRACE[1..]),
        format!("00_{TRACE}_{PARENT}_01"),
        format!("01-{TRACE}-{PARENT}-01.later"),
        format!("00-{TRACE}-{PARENT}é01"),
    ] {
        assert_eq!(TraceContext::parse(&invalid, None), None, "{invalid}");
    }
}

#[test]
fn a_later_version_is_read_as_far_as_it_is_known() {
    for later in [format!("cc-{TRACE}-{PARENT}-01"), format!("cc-{TRACE}-{PARENT}-01-what-the-future-brings")]
    {
        assert_eq!(TraceContext::parse(&later, None).unwrap().traceparent(), valid());
    }
}

#[test]
fn flags_without_a_meaning_are_not_passed_on() {
    let context = TraceContext::parse(&format!("00-{TRACE}-{PARENT}-ff"), None).unwrap();
    assert_eq!(context.traceparent(), format!("00-{TRACE}-{PARENT}-03"));
}

#[test]
fn white_space_around_members_and_empty_members_are_no_part_of_the_state() {
    assert_eq!(context(" a=1 ,\tb=2 , ,").unwrap().tracestate(), "a=1,b=2");
    assert_eq!(context("a=1,b=2,a=3").unwrap().tracestate(), "a=1,b=2");
    assert_eq!(
        context("fw529a3039@dt=FfMAsk,0a/*_-@=x y").unwrap().tracestate(),
        "fw529a3039@dt=FfMAsk,0a/*_-@=x y"
    );
}

#[test]
fn an_invalid_state_is_dropped_and_the_parent_kept() {
    let many = (0..33).map(|n| format!("k{n}=1")).collect::<Vec<_>>().join(",");
    let long_key = format!("{}=1", "k".repeat(257));
    let long_value = format!("k={}", "v".repeat(257));
    for invalid in ["a", "A=1", "=1", "a=1=2", "a=", "a=é", "a=\u{7}", "_a=1", &many, &long_key, &long_value]
    {
        let context = context(invalid).unwrap();
        assert_eq!(context.tracestate(), "", "{invalid}");
        assert_eq!(context.traceparent(), valid());
    }
}

#[test]
fn a_long_state_loses_whole_members_the_long_ones_first() {
    let long = format!("long={}", "v".repeat(200));
    let short: Vec<String> = (0..30).map(|n| format!("key-{n:02}={}", "v".repeat(20))).collect();
    let context = context(&format!("{long},{}", short.join(","))).unwrap();
    assert!(context.tracestate().len() <= 512);
    assert_eq!(
        context.tracestate().split(',').collect::<Vec<_>>(),
        short[..context.tracestate().split(',').count()]
    );
}

#[test]
fn text_from_outside_never_panics() {
    let mut runner = proptest::test_runner::TestRunner::default();
    let strategy = ("\\PC{0,80}", "[0-9a-f-]{50,60}", "\\PC{0,600}");
    runner
        .run(&strategy, |(any, almost, state)| {
            for parent in [any, almost] {
                if let Some(context) = TraceContext::parse(&parent, Some(&state)) {
                    assert_eq!(context.traceparent().len(), 55);
                    let again = TraceContext::parse(context.traceparent(), Some(context.tracestate()));
                    assert_eq!(again.as_ref(), Some(&context));
                }
            }
            Ok(())
        })
        .unwrap();
}

#[tokio::test]
async fn the_scope_is_what_an_event_is_given() {
    let current = context("a=1").unwrap();
    let (with, own) = current
        .clone()
        .scope(async {
            let plain = event();
            let mut stored = Cow::Borrowed(&plain);
            inject(&mut stored);
            let foreign = event().with_metadata(TRACEPARENT, "the publisher's");
            let mut kept = Cow::Borrowed(&foreign);
            inject(&mut kept);
            (TraceContext::of(&stored), matches!(kept, Cow::Borrowed(_)))
        })
        .await;
    assert_eq!(with, Some(current));
    assert!(own, "what the publisher wrote is kept");
    let plain = event();
    let mut stored = Cow::Borrowed(&plain);
    inject(&mut stored);
    assert!(matches!(stored, Cow::Borrowed(_)), "without a context nothing is copied");
}

#[test]
fn full_metadata_stays_as_it_is() {
    let mut metadata = HashMap::from([("k".to_owned(), "v".repeat(MAX_METADATA_BYTES - 50))]);
    context("").unwrap().add_to(&mut metadata);
    assert_eq!(metadata.len(), 1);
}
