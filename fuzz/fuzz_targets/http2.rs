//! What a client of HTTP/2 says, through a whole connection.

#![no_main]

#[path = "../src/targets.rs"]
mod targets;

libfuzzer_sys::fuzz_target!(|data: &[u8]| targets::http2(data));
