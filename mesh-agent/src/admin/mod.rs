//! The agent's own HTTP and control socket.

#![forbid(unsafe_code)]
