//! Recognising a protocol from its first bytes.

#![forbid(unsafe_code)]
