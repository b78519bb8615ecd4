//! External JSON: it reads the same as with serde_json, and duplicate keys are refused.
//!
//! Input: a text.

use a3s_event::json::from_slice;
use serde_json::Value;

pub fn check(data: &[u8]) {
    let usual = serde_json::from_slice::<Value>(data);
    match (from_slice(data), usual) {
        (Ok(value), usual) => {
            assert_eq!(Some(&value), usual.as_ref().ok(), "another value than everybody reads");
            assert_eq!(from_slice(value.to_string().as_bytes()).ok(), Some(value), "written and read again");
        }
        (Err(error), Ok(_)) => assert!(error.to_string().contains("is given twice"), "{error}"),
        (Err(_), Err(_)) => {}
    }
}
