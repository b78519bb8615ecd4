//! Headers in unusual forms: in several lines, in any case, twice, and in combination.

use serde_json::json;

use super::super::*;
use super::{JSON, open};

const PARENT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
const STRUCTURED: (&str, &str) = ("content-type", "application/cloudevents+json");

fn binary(id: &str) -> [(&str, &str); 4] {
    [("ce-specversion", "1.0"), ("ce-id", id), ("ce-source", "/s"), ("ce-type", "t")]
}

/// Cases of the W3C recommendation for propagating a context: the lines of the two headers, and the resulting state.
/// `None` means that the trace begins anew.
#[tokio::test]
async fn a_trace_goes_on_through_any_headers() {
    const TP: &str = "traceparent";
    const TS: &str = "tracestate";
    let other = PARENT.replace("4bf9", "5bf9");
    let [many, too_many] = [32, 33]
        .map(|count| (0..count).map(|member| format!("bar{member:02}=1")).collect::<Vec<_>>().join(","));
    let long_key = format!("{}=1", "k".repeat(256));
    for (headers, expected) in [
        (vec![], None),
        (vec![(TP, PARENT)], Some("")),
        (vec![("TraceParent", PARENT), ("TrAcEsTaTe", "foo=1")], Some("foo=1")),
        (vec![("trace-parent", PARENT)], None),
        (vec![(TP, PARENT), ("trace-state", "foo=1")], Some("")),
        (vec![(TS, "foo=1")], None),
        (vec![(TP, PARENT), (TP, other.as_str())], None),
        (vec![(TP, PARENT), (TP, PARENT)], None),
        (vec![(TP, " \t"), (TS, "foo=1")], None),
        // Several lines are one list, in their order.
        (vec![(TP, PARENT), (TS, "foo=1"), (TS, "bar=2")], Some("foo=1,bar=2")),
        (vec![(TP, PARENT), (TS, "foo=1,"), (TS, ""), (TS, " \tbar=2 , baz=3\t")], Some("foo=1,bar=2,baz=3")),
        (vec![(TP, PARENT), (TS, ""), (TS, "")], Some("")),
        // Of equal keys, the first one was added last.
        (vec![(TP, PARENT), (TS, "foo=1,foo=1")], Some("foo=1")),
        (vec![(TP, PARENT), (TS, "foo=1,foo=2")], Some("foo=1")),
        (vec![(TP, PARENT), (TS, "foo=1"), (TS, "foo=2,bar=3")], Some("foo=1,bar=3")),
        (vec![(TP, PARENT), (TS, many.as_str())], Some(many.as_str())),
        (vec![(TP, PARENT), (TS, too_many.as_str())], Some("")),
        (vec![(TP, PARENT), (TS, many.as_str()), (TS, "one=more")], Some("")),
        (vec![(TP, PARENT), (TS, long_key.as_str())], Some(long_key.as_str())),
        (vec![(TP, PARENT), (TS, "foo=1"), (TS, "foo bar=2")], Some("")),
        (vec![(TP, PARENT), (TS, "foo=1"), (TS, "b\u{e9}r=2")], Some("")),
        (vec![(TP, PARENT), (TS, "foo@=1,bar=2")], Some("foo@=1,bar=2")),
    ] {
        let bench = open();
        let mut request = vec![JSON];
        request.extend(headers.iter().copied());
        assert_eq!(bench.post(&request, "{}").await, 202, "{headers:?}");
        let context = TraceContext::of(&bench.stored().await[0]);
        assert_eq!(context.as_ref().map(TraceContext::tracestate), expected, "{headers:?}");
        assert!(context.is_none_or(|context| context.traceparent() == PARENT), "{headers:?}");
    }
}

#[tokio::test]
async fn a_key_given_twice_is_refused_whatever_makes_the_body_json() {
    let bench = open();
    let twice = r#"{"role":"user","role":"admin"}"#;
    let once = r#"{"role":"user"}"#;
    let kinds =
        ["application/json", "text/json", "model/gltf+json", "application/problem+json; charset=UTF8"];
    for content_type in kinds.into_iter().map(Some).chain([None]) {
        let mut headers = binary("1").to_vec();
        headers.extend(content_type.map(|kind| ("content-type", kind)));
        assert_eq!(bench.post(&headers, twice).await, 400, "{content_type:?}");
        assert_eq!(bench.post(&headers, once).await, 202, "{content_type:?}");
        if let Some(kind) = content_type {
            assert_eq!(bench.post(&[("content-type", kind)], twice).await, 400, "{kind}");
            assert_eq!(bench.post(&[("content-type", kind)], once).await, 202, "{kind}");
        }
    }
    let event =
        |data: &str| format!(r#"{{"specversion":"1.0","id":"2","source":"/s","type":"t","data":{data}}}"#);
    assert_eq!(bench.post(&[STRUCTURED], event(&format!("[{twice}]"))).await, 400);
    let batch = [("content-type", "application/cloudevents-batch+json")];
    assert_eq!(bench.post(&batch, format!("[{},{}]", event("1"), event(twice))).await, 400);
    // Content of another type is kept as text, even if it looks like JSON.
    let mut text = binary("3").to_vec();
    text.push(("content-type", "text/plain"));
    assert_eq!(bench.post(&text, twice).await, 202);
    assert_eq!(bench.stored().await.last().unwrap().payload, json!(twice));
}

#[tokio::test]
async fn what_may_come_once_is_refused_when_it_comes_twice() {
    let bench = open();
    let inner = r#"{"specversion":"1.0","id":"inner","source":"/z","type":"q"}"#;
    let with = |more: &[(&'static str, &'static str)]| {
        let mut headers = binary("outer").to_vec();
        headers.extend(more);
        headers
    };
    for (headers, body) in [
        (with(&[JSON, STRUCTURED]), inner),
        (with(&[STRUCTURED, JSON]), inner),
        (with(&[JSON, JSON]), "{}"),
        (vec![JSON, ("content-type", "text/plain")], "{}"),
        (with(&[("ce-datacontenttype", "text/plain"), JSON]), "{}"),
        (with(&[("ce-datacontenttype", "application/json"), JSON]), "{}"),
        (with(&[("ce-id", "other")]), ""),
        (with(&[("ce-tenant", "a"), ("ce-tenant", "b")]), ""),
        // Two lines that an intermediary joined.
        (with(&[("content-type", "application/json, application/cloudevents+json")]), "{}"),
    ] {
        assert_eq!(bench.post(&headers, body).await, 400, "{headers:?}");
    }
    let joined = ("content-type", "application/json, application/problem+json");
    assert_eq!(bench.post(&[joined], "{}").await, 415);
    assert!(bench.stored().await.is_empty());
}

#[tokio::test]
async fn codings_and_character_sets_have_more_than_one_spelling() {
    let encoding = |value| ("content-encoding", value);
    for (headers, expected) in [
        (vec![JSON, encoding("Identity")], 202),
        (vec![JSON, encoding("identity, IDENTITY")], 202),
        (vec![JSON, encoding("")], 202),
        (vec![JSON, encoding("identity"), encoding("gzip")], 415),
        (vec![JSON, encoding("gzip, identity")], 415),
        (vec![JSON, encoding("x-identity")], 415),
        (vec![("content-type", "application/json; charset=utf8")], 202),
        (vec![("content-type", "application/json;CHARSET=\"Utf-8\"")], 202),
        (vec![("content-type", "application/json; charset=us-ascii")], 202),
        (vec![("content-type", "application/json; profile=\"a; charset=utf-16\"")], 202),
        (vec![("content-type", "application/json;")], 202),
        (vec![("content-type", "application/json; charset=iso-8859-1")], 415),
        (vec![("content-type", "application/json; charset=utf-8; charset=utf-16")], 415),
        (vec![("content-type", "application/json; charset")], 415),
    ] {
        assert_eq!(open().post(&headers, "{}").await, expected, "{headers:?}");
    }
    let latin = ("content-type", "application/cloudevents+json; charset=iso-8859-1");
    let event = r#"{"specversion":"1.0","id":"1","source":"/s","type":"t"}"#;
    assert_eq!(open().post(&[latin], event).await, 415);
}

#[tokio::test]
async fn the_time_of_an_event_is_its_own_also_1970_and_before() {
    let bench = open();
    let times =
        ["1970-01-01T00:00:00.000Z", "1970-01-01T00:00:00Z", "1969-07-20T20:17:40Z", "0001-01-01T00:00:00Z"];
    for time in times {
        let event = json!({"specversion": "1.0", "id": time, "source": "/s", "type": "t", "time": time});
        assert_eq!(bench.post(&[STRUCTURED], event.to_string()).await, 202);
        let mut headers = binary(time).to_vec();
        headers[2].1 = "/binary";
        headers.push(("ce-time", time));
        assert_eq!(bench.post(&headers, "").await, 202);
    }
    let stored = bench.stored().await;
    assert_eq!(stored.len(), 2 * times.len());
    for event in stored {
        assert_eq!((event.timestamp, CloudEvent::from(event.clone()).time), (0, Some(event.id)));
    }
    for time in ["1970-01-01 00:00:00Z", "1970-01-01_00:00:00Z", "1970-01-01\n00:00:00Z", "1970-01-01", ""] {
        let event = json!({"specversion": "1.0", "id": "x", "source": "/s", "type": "t", "time": time});
        assert_eq!(bench.post(&[STRUCTURED], event.to_string()).await, 400, "{time:?}");
    }
    // An event without a time gets the time of its arrival, which is not shown as its own.
    let before = unix_millis();
    assert_eq!(bench.post(&binary("none"), "").await, 202);
    let event = bench.stored().await.pop().unwrap();
    assert!(event.timestamp >= before);
    assert_eq!(CloudEvent::from(event).time, None);
}

#[tokio::test]
async fn two_tokens_are_none() {
    let bench = super::bench(|builder| builder.token(super::TOKEN));
    let bearer = format!("Bearer {}", super::TOKEN);
    let [right, wrong] = [("authorization", &*bearer), ("authorization", "Bearer wrong")];
    assert_eq!(bench.post(&[JSON, right], "{}").await, 202);
    for headers in [[JSON, right, wrong], [JSON, wrong, right], [JSON, right, right]] {
        assert_eq!(bench.post(&headers, "{}").await, 401);
    }
}
