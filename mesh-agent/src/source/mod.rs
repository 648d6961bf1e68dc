//! Where configuration comes from. Protobuf types stop here.

#![forbid(unsafe_code)]
