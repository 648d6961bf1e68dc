//! What comes before a gateway's connection proper: the PROXY protocol.

#![no_main]

#[path = "../src/targets.rs"]
mod targets;

libfuzzer_sys::fuzz_target!(|data: &[u8]| targets::proxy_header(data));
