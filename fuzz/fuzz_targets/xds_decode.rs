//! An xDS resource as a control plane might send it: the first byte picks the type,
//! the rest is the message.

#![no_main]

use mesh_agent::source;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    if let Some((first, value)) = data.split_first() {
        let type_url = source::TYPE_URLS[usize::from(*first) % source::TYPE_URLS.len()];
        let _ = source::decode_any(type_url, value);
    }
});
