//! Whether a connection was closed in the middle of a response's head.
//!
//! hyper tells no difference between that and one that was closed before anything came; Envoy
//! does.

use std::sync::{
    Arc,
    atomic::{AtomicU32, Ordering},
};

use super::Heard;

/// The last bytes that came, at most four.
#[derive(Debug, Clone, Default)]
pub(super) struct Tail(Arc<AtomicU32>);

impl Tail {
    /// Nothing has come of the next response.
    pub(super) fn forget(&self) {
        self.0.store(0, Ordering::Relaxed);
    }

    /// What has come is torn where its end is no head's, not even an interim response's.
    pub(super) fn heard(&self) -> Heard {
        match self.0.load(Ordering::Relaxed).to_be_bytes() {
            [0, 0, 0, 0] => Heard::Nothing,
            [b'\r', b'\n', b'\r', b'\n'] | [.., b'\n', b'\n'] => Heard::Interim,
            [..] => Heard::Torn,
        }
    }

    /// These were read.
    pub(super) fn note(&self, bytes: &[u8]) {
        let last = &bytes[bytes.len().saturating_sub(4)..];
        let before = self.0.load(Ordering::Relaxed);
        let tail = last.iter().fold(before, |tail, byte| tail << 8 | u32::from(*byte));
        self.0.store(tail, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_head_is_torn_where_it_has_begun_and_not_ended() {
        for (pieces, heard) in [
            (&[""][..], Heard::Nothing),
            (&["H"], Heard::Torn),
            (&["HTTP/1.1 200 OK\r\n"], Heard::Torn),
            (&["HTTP/1.1 200 OK\r\n", "\r"], Heard::Torn),
            (&["HTTP/1.1 103 Early\r\n", "\r", "\n"], Heard::Interim),
            (&["HTTP/1.1 103 Early\n\n"], Heard::Interim),
            (&["HTTP/1.1 103 Early\r\n\r\n", "HTTP"], Heard::Torn),
        ] {
            let tail = Tail::default();
            pieces.iter().for_each(|piece| tail.note(piece.as_bytes()));
            assert_eq!(tail.heard(), heard, "{pieces:?}");
            tail.forget();
            assert_eq!(tail.heard(), Heard::Nothing);
        }
    }
}
