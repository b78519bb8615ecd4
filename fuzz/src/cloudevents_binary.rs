//! A CloudEvent in the binary mode of HTTP, NATS and Kafka.
//!
//! Input: a line per header, `name: value`, an empty line, the body. `ce-` represents the prefix of every binding.

use a3s_event::cloudevents::{http, kafka, nats};

use super::cloudevents::check_reader;
use super::first_line;

pub fn check(data: &[u8]) {
    let mut headers = Vec::new();
    let mut rest = data;
    loop {
        let (line, behind) = first_line(rest);
        rest = behind;
        let Some(colon) = line.iter().position(|byte| *byte == b':') else { break };
        let (name, value) = line.split_at(colon);
        headers.push((String::from_utf8_lossy(name).into_owned(), value[1..].trim_ascii_start()));
    }
    let headers = || headers.iter().map(|(name, value)| (name.as_str(), *value));
    check_reader(rest, |accept| http::from_message(headers(), rest, accept));
    check_reader(rest, |accept| nats::from_message(headers(), rest, accept));
    let of_kafka = || headers().map(|(name, value)| (name.replacen("ce-", "ce_", 1), value));
    check_reader(rest, |accept| kafka::from_record(of_kafka(), Some(rest), accept));
    check_reader(rest, |accept| kafka::from_record(of_kafka(), None, accept));
}
