//! Where does this connection or request go? Synchronous; the clock is passed in.

#![forbid(unsafe_code)]
