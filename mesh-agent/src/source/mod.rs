//! Where configuration comes from. Protobuf types stop here.

#![forbid(unsafe_code)]

mod xds;

pub use xds::{Resource, decode_any};
