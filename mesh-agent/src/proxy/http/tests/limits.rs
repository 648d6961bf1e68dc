//! Timeouts, and bodies larger than any buffer.
