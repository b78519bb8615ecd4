#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| a3s_event_fuzz::json::check(data));
