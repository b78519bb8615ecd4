//! Settings of consumers and publishes in JSON: an accepted setting keeps its meaning through every conversion.
//!
//! Input: a line with a filter, then options of a subscription or a publish in JSON.

use a3s_event::provider::group::ConsumerConfig;
use a3s_event::provider::validate::validate_publish_options;
use a3s_event::{PublishOptions, SubscribeOptions, SubscriptionFilter};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{from_slice, from_value, to_value};

use super::{check_error, first_line};

pub fn check(data: &[u8]) {
    let (filter, json) = first_line(data);
    let filter = String::from_utf8_lossy(filter);
    if let Some(options) = read::<SubscribeOptions>(json) {
        match ConsumerConfig::new(&filter, &options) {
            Ok(config) => check_config(&filter, config, options),
            Err(error) => check_error(&error),
        }
    }
    if let Some(options) = read::<PublishOptions>(json)
        && let Err(error) = validate_publish_options(&options)
    {
        check_error(&error);
    }
    read::<SubscriptionFilter>(json);
}

fn check_config(filter: &str, config: ConsumerConfig, options: SubscribeOptions) {
    assert!(!config.ack_wait.is_zero() && config.max_ack_pending > 0 && config.max_deliver != Some(0));
    let again = ConsumerConfig::new(filter, &config.to_options()).expect("what was accepted is accepted");
    assert_eq!(again, config);
    let delays: Vec<u64> = (1..=4).map(|attempt| config.backoff_after(attempt).as_secs()).collect();
    let last = options.backoff_secs.last().copied().unwrap_or_default();
    let expected: Vec<u64> = (0..4).map(|n| options.backoff_secs.get(n).copied().unwrap_or(last)).collect();
    assert_eq!(delays, expected);
    let mut unchanged = config.clone();
    unchanged.change_to("c", again).expect("nothing is different");
    assert_eq!(unchanged, config);
}

/// Reads a value, and checks that writing and reading it again changes nothing.
fn read<T: Serialize + DeserializeOwned>(json: &[u8]) -> Option<T> {
    let value: T = from_slice(json).ok()?;
    let written = to_value(&value).expect("it has a JSON form");
    let again: T = from_value(written.clone()).expect("what was written is read");
    assert_eq!(to_value(again).unwrap(), written);
    Some(value)
}
