//! Reads that wait until there is something.

use std::{
    io::{self, ErrorKind, Read},
    net::TcpStream,
};

/// A socket that is asked again where it should have waited: spliced ones of some
/// kernels say EAGAIN then, see the agent's self-test, and wait the next time.
pub(crate) struct Again<'a>(pub(crate) &'a TcpStream);

impl Read for Again<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            match self.0.read(buffer) {
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                read => return read,
            }
        }
    }
}
