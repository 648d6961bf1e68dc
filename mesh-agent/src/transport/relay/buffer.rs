//! Where a relay reads into: nothing while idle, small for small messages, large for
//! bulk.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::{Bytes, BytesMut};
use tokio::io::AsyncRead;
use tokio_util::io::poll_read_buf;

const MIN_BYTES: usize = 4 << 10;
const MAX_BYTES: usize = 256 << 10;

/// Memory of one direction of a relay, 4 to 256 KiB while bytes flow.
#[derive(Debug)]
pub struct ReadBuffer {
    bytes: BytesMut,
    /// How much the next read asks for.
    size: usize,
}

impl Default for ReadBuffer {
    fn default() -> Self {
        Self { bytes: BytesMut::new(), size: MIN_BYTES }
    }
}

impl ReadBuffer {
    /// Reads once from `from`; empty at the end of the stream.
    ///
    /// # Errors
    /// What reading said.
    pub fn poll_read<F: AsyncRead + Unpin>(
        &mut self,
        from: &mut F,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<Bytes>> {
        // Takes the last chunk's memory again if nobody holds it any more.
        self.bytes.reserve(self.size);
        let room = self.bytes.capacity();
        let read = ready!(poll_read_buf(Pin::new(from), cx, &mut self.bytes))?;
        if read >= self.size {
            self.size = (self.size * 4).min(MAX_BYTES);
        } else if read < self.size / 8 {
            self.size = (self.size / 2).max(MIN_BYTES);
        }
        let chunk = self.bytes.split_to(read);
        // A few bytes that wait long in a queue should not hold a large buffer.
        if read < room / 8 {
            Poll::Ready(Ok(Bytes::copy_from_slice(&chunk)))
        } else {
            Poll::Ready(Ok(chunk.freeze()))
        }
    }

    /// Gives the memory back while there is nothing to read.
    pub fn release(&mut self) {
        self.bytes = BytesMut::new();
    }

    #[cfg(test)]
    pub(super) fn held_bytes(&self) -> usize {
        self.bytes.capacity()
    }
}
