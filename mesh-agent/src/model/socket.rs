//! The seam between who knows a pod's network namespace (`capture`) and who
//! dials from inside it (`transport`).

use std::{fmt::Debug, io, net::SocketAddr};

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
}
