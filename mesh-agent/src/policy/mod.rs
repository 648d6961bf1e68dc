//! May this connection or request pass? Synchronous; the clock is passed in.

#![forbid(unsafe_code)]
