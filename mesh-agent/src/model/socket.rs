//! The seam between who knows a pod's network namespace (`capture`) and who
//! dials from inside it (`transport`).

use std::{fmt::Debug, io, net::SocketAddr, os::fd::BorrowedFd};

/// Makes sockets inside one pod's network namespace.
///
/// The namespace outlives the pod for as long as this value is held; dialling
/// from the namespace of a pod that is gone fails with a network error.
pub trait PodSockets: Send + Sync + Debug {
    /// A new non-blocking TCP socket of the family of `destination`, in the pod's
    /// namespace, marked as the agent's own so that capture leaves it alone.
    ///
    /// # Errors
    /// What `setns(2)` or `socket(2)` said.
    fn tcp(&self, destination: SocketAddr) -> io::Result<socket2::Socket>;

    /// As [`PodSockets::tcp`], bound so that the application sees `source` (an
    /// address that need not be local) as its peer: `IP_TRANSPARENT` with
    /// `IP_BIND_ADDRESS_NO_PORT`, replies brought home by the socket mark.
    /// The port of `source` is ignored; the kernel picks one.
    ///
    /// # Errors
    /// As [`PodSockets::tcp`], or what the socket options said.
    fn tcp_from(&self, source: SocketAddr, destination: SocketAddr) -> io::Result<socket2::Socket>;

    /// Says of a socket of [`PodSockets::tcp_from`], before it is connected, that it will
    /// carry plaintext to the application and nothing else ever: it may be spliced.
    ///
    /// # Errors
    /// The kernel did not take it.
    fn offer_splice(&self, socket: BorrowedFd<'_>) -> io::Result<()> {
        let _ = socket;
        Ok(())
    }

    /// What a connected socket must be looked after by; `None` where it is not spliced.
    ///
    /// # Errors
    /// The kernel does not say.
    fn spliced(&self, socket: BorrowedFd<'_>) -> io::Result<Option<Box<dyn SplicedLeg>>> {
        let _ = socket;
        Ok(None)
    }
}

/// A socket of the agent's whose bytes and the application's go past TCP, which therefore
/// holds neither up.
pub trait SplicedLeg: Send + Sync + Debug {
    /// How far the application may be ahead of what the agent has read.
    fn ahead_bytes(&self) -> u64;

    /// Lets the application have sent so many bytes in all. [`SplicedLeg::ahead_bytes`] are
    /// granted from the beginning.
    fn grant(&mut self, bytes: u64);

    /// How many bytes wait for the application to read them. `socket`: the agent's.
    ///
    /// # Errors
    /// The kernel does not say, or the application's socket is gone, or hidden.
    fn backlog(&self, socket: BorrowedFd<'_>) -> io::Result<u64>;
}
