//! Listening sockets pass from an agent to the one that follows it, over a Unix socket in the
//! state directory, without being closed in between.
//!
//! | who | says |
//! |---|---|
//! | the new one | `ask`: its protocol and the ABI version of its maps |
//! | the old one | `refused`, and why; or `listeners`, with their descriptors |
//! | the new one | `take`; until then it may go away, and nothing has happened |
//! | the old one | `given`: it owns nothing any more |
//!
//! Who owns the kernel's side is said by the locks alone: whoever goes away in the middle has
//! given them up, and the other one can have them.
#![forbid(unsafe_code)]

use std::{
    collections::HashMap,
    fs::{self, File, Permissions},
    io::{self, IoSlice, IoSliceMut},
    mem::MaybeUninit,
    net::SocketAddr,
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
        unix::fs::PermissionsExt,
    },
    path::Path,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use mesh_common::abi::ABI_VERSION;
use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use serde::{Deserialize, Serialize};
use socket2::{Domain, SockAddr, SockRef, Socket, Type};
use tokio::net::UnixListener;

use crate::model::workload::WorkloadUid;

/// Of what is said here. Another one is refused.
const PROTOCOL: u32 = 1;
const NAME: &str = "take-over.sock";
/// The longest message.
const MESSAGE_BYTES: usize = 64 * 1024;
/// Descriptors in one message; the kernel takes 253.
const SOCKETS_PER_MESSAGE: usize = 64;
/// Of one agent.
const SOCKETS_MAX: usize = 64 * 1024;
/// For each message of the other side's.
const PATIENCE: Duration = Duration::from_secs(5);
/// For the old one to let go of everything; longer than it takes itself.
const GIVING: Duration = Duration::from_secs(20);

/// Why nothing was handed over. The agent that was there goes on.
#[derive(Debug, thiserror::Error)]
pub enum HandOverError {
    /// A system call failed, or the other side went away or was silent.
    #[error("cannot {act} the agent that is there")]
    Io { act: &'static str, source: io::Error },
    /// Another user's process.
    #[error("user {0} is at the other end, neither root nor this agent's")]
    Stranger(u32),
    /// The other side does not want to.
    #[error("the agent that is there does not hand over: {0}")]
    Refused(String),
    /// Not what is said at this point.
    #[error("the other side is not understood: it said {0}")]
    NotUnderstood(String),
    /// Descriptors are missing, or nobody has said what they are.
    #[error("{descriptors} descriptors came for {named} listeners")]
    Descriptors { descriptors: usize, named: usize },
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "say", rename_all = "snake_case")]
enum Message {
    Ask { protocol: u32, abi: u32 },
    Refused { why: String },
    Listeners { listeners: Vec<Told>, last: bool },
    Take,
    Given,
}

#[derive(Debug, Serialize, Deserialize)]
struct Told {
    pod: Option<WorkloadUid>,
    address: SocketAddr,
}

/// A socket that listens.
#[derive(Debug)]
pub struct Listening {
    /// Whose namespace it is in; `None`: the agent's own.
    pub pod: Option<WorkloadUid>,
    pub address: SocketAddr,
    pub socket: OwnedFd,
}

/// Listeners of an earlier agent that nobody has asked for yet. Dropping closes them.
#[derive(Debug, Default)]
pub struct Inherited(Mutex<HashMap<(Option<WorkloadUid>, SocketAddr), OwnedFd>>);

impl Inherited {
    fn lock(&self) -> MutexGuard<'_, HashMap<(Option<WorkloadUid>, SocketAddr), OwnedFd>> {
        // Entries come and go whole.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The listener at `address`, if there is one and it is what it was said to be.
    pub fn take(
        &self,
        pod: Option<&WorkloadUid>,
        address: SocketAddr,
    ) -> Option<std::net::TcpListener> {
        let socket = self.lock().remove(&(pod.cloned(), address))?;
        let listens = {
            let socket = SockRef::from(&socket);
            let bound = socket.local_addr().ok().and_then(|bound| bound.as_socket());
            bound == Some(address) && socket.is_listener().unwrap_or(false)
        };
        if !listens {
            tracing::warn!(%address, "a socket that was handed over does not listen there: closed");
            return None;
        }
        Some(socket.into())
    }

    /// Closes those of pods, or of gateways, that are left: nobody wants them any more.
    pub fn close(&self, of_pods: bool) {
        self.lock().retain(|(pod, _), _| pod.is_some() != of_pods);
    }
}

/// Where an agent that is to follow this one asks.
#[derive(Debug)]
pub struct HandOverSocket(UnixListener);

impl HandOverSocket {
    /// Replaces what an earlier agent left: the caller holds the state directory's lock, and
    /// is in a tokio runtime.
    ///
    /// # Errors
    /// The system's.
    pub fn bind(state_dir: &Path) -> io::Result<Self> {
        let directory = File::open(state_dir)?;
        match fs::remove_file(state_dir.join(NAME)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let socket = Socket::new(Domain::UNIX, Type::SEQPACKET.nonblocking().cloexec(), None)?;
        // The file is made with the socket's own mode: see `admin::bind_unix`.
        File::from(OwnedFd::from(socket.try_clone()?))
            .set_permissions(Permissions::from_mode(0o600))?;
        socket.bind(&SockAddr::unix(short_path(&directory))?)?;
        socket.listen(4)?;
        // Of another type than it is named after; accept(2) is the same.
        Ok(Self(UnixListener::from_std(OwnedFd::from(socket).into())?))
    }

    /// The next one that asks. Cancel safe.
    ///
    /// # Errors
    /// accept(2)'s.
    pub async fn accept(&self) -> io::Result<Follower> {
        let (socket, _) = self.0.accept().await?;
        Ok(Follower(OwnedFd::from(socket.into_std()?).into()))
    }
}

/// A name of the socket that fits its address, wherever the state directory is.
fn short_path(directory: &File) -> String {
    format!("/proc/self/fd/{}/{NAME}", directory.as_raw_fd())
}

/// Who asks this agent to give up its place.
#[derive(Debug)]
pub struct Follower(Socket);

impl Follower {
    /// Gives it the listeners and waits until it takes them. Blocks, for not much longer than
    /// [`PATIENCE`].
    ///
    /// # Errors
    /// [`HandOverError`]: nothing was handed over.
    pub fn offer(self, listeners: Vec<Listening>) -> Result<Taker, HandOverError> {
        prepare(&self.0)?;
        let asked = receive(&self.0, &mut Vec::new());
        let refuse = |why: String| {
            // It may be gone.
            let _ = send(&self.0, &Message::Refused { why: why.clone() }, &[]);
            Err(HandOverError::NotUnderstood(why))
        };
        match asked {
            Ok(Message::Ask { protocol: PROTOCOL, abi: ABI_VERSION }) => {}
            Ok(Message::Ask { protocol: PROTOCOL, abi }) => {
                return refuse(format!(
                    "its maps are of ABI version {ABI_VERSION}, not {abi}: stop it and start anew"
                ));
            }
            Ok(Message::Ask { protocol, .. }) => {
                return refuse(format!("it speaks version {PROTOCOL} of this, not {protocol}"));
            }
            Ok(other) => return refuse(format!("{other:?}")),
            Err(HandOverError::NotUnderstood(what)) => return refuse(what),
            Err(error) => return Err(error),
        }
        let mut left = &listeners[..];
        loop {
            let (now, later) = left.split_at(left.len().min(SOCKETS_PER_MESSAGE));
            let told =
                now.iter().map(|one| Told { pod: one.pod.clone(), address: one.address }).collect();
            let sockets: Vec<_> = now.iter().map(|one| one.socket.as_fd()).collect();
            let message = Message::Listeners { listeners: told, last: later.is_empty() };
            send(&self.0, &message, &sockets)?;
            left = later;
            if left.is_empty() {
                break;
            }
        }
        match receive(&self.0, &mut Vec::new())? {
            Message::Take => Ok(Taker(self.0)),
            other => Err(HandOverError::NotUnderstood(format!("{other:?}"))),
        }
    }
}

/// Who has taken this agent's place, once it is told so.
#[derive(Debug)]
pub struct Taker(Socket);

impl Taker {
    /// This agent owns nothing any more.
    pub fn given(self) {
        if let Err(error) = send(&self.0, &Message::Given, &[]) {
            tracing::error!(%error, "the agent that takes over is gone");
        }
    }
}

/// What the agent that is there would hand over.
#[derive(Debug)]
pub struct Offer {
    socket: Socket,
    listeners: Vec<Listening>,
}

impl Offer {
    /// Asks the agent that has this state directory. `None`: there is none, or one that does
    /// not know how. Blocks.
    ///
    /// # Errors
    /// [`HandOverError`]; the other agent goes on.
    pub fn ask(state_dir: &Path) -> Result<Option<Self>, HandOverError> {
        let failed = |source| HandOverError::Io { act: "reach", source };
        let directory = match File::open(state_dir) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            opened => opened.map_err(failed)?,
        };
        let socket = Socket::new(Domain::UNIX, Type::SEQPACKET.cloexec(), None).map_err(failed)?;
        let address = SockAddr::unix(short_path(&directory)).map_err(failed)?;
        match socket.connect(&address) {
            Ok(()) => {}
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused
                ) =>
            {
                return Ok(None);
            }
            Err(error) => return Err(failed(error)),
        }
        prepare(&socket)?;
        send(&socket, &Message::Ask { protocol: PROTOCOL, abi: ABI_VERSION }, &[])?;
        let mut listeners = Vec::new();
        loop {
            let mut sockets = Vec::new();
            match receive(&socket, &mut sockets)? {
                Message::Listeners { listeners: told, last } => {
                    let (descriptors, named) = (sockets.len(), told.len());
                    if descriptors != named || listeners.len() + named > SOCKETS_MAX {
                        return Err(HandOverError::Descriptors { descriptors, named });
                    }
                    let named = told.into_iter().zip(sockets);
                    listeners.extend(named.map(|(Told { pod, address }, socket)| Listening {
                        pod,
                        address,
                        socket,
                    }));
                    if last {
                        return Ok(Some(Self { socket, listeners }));
                    }
                }
                Message::Refused { why } => return Err(HandOverError::Refused(why)),
                other => return Err(HandOverError::NotUnderstood(format!("{other:?}"))),
            }
        }
    }

    /// From now on the other agent owns nothing, or is gone. Blocks until that is so.
    ///
    /// # Errors
    /// [`HandOverError`]: it does not answer. It may own nothing any more all the same.
    pub fn take(self) -> Result<Inherited, HandOverError> {
        let Self { socket, listeners } = self;
        socket
            .set_read_timeout(Some(GIVING))
            .map_err(|source| HandOverError::Io { act: "wait for", source })?;
        let given = send(&socket, &Message::Take, &[]).and_then(|()| {
            match receive(&socket, &mut Vec::new())? {
                Message::Given => Ok(()),
                Message::Refused { why } => Err(HandOverError::Refused(why)),
                other => Err(HandOverError::NotUnderstood(format!("{other:?}"))),
            }
        });
        match given {
            Ok(()) => {}
            // It died: the locks say so, and what it listened on is here.
            Err(HandOverError::Io { source, .. }) if is_gone(&source) => {
                tracing::warn!("the agent that was there died while it handed over");
            }
            Err(error) => return Err(error),
        }
        let by_address = |one: Listening| ((one.pod, one.address), one.socket);
        Ok(Inherited(Mutex::new(listeners.into_iter().map(by_address).collect())))
    }
}

fn is_gone(error: &io::Error) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionReset, UnexpectedEof};
    matches!(error.kind(), BrokenPipe | ConnectionReset | UnexpectedEof)
}

/// Root and the agent's own user may ask, and be asked; nobody may be silent for long.
fn prepare(socket: &Socket) -> Result<(), HandOverError> {
    let failed = |source| HandOverError::Io { act: "know", source };
    socket.set_nonblocking(false).map_err(failed)?;
    socket.set_read_timeout(Some(PATIENCE)).map_err(failed)?;
    socket.set_write_timeout(Some(PATIENCE)).map_err(failed)?;
    let peer = getsockopt(socket, PeerCredentials).map_err(|errno| failed(errno.into()))?;
    if peer.uid() != 0 && peer.uid() != nix::unistd::geteuid().as_raw() {
        return Err(HandOverError::Stranger(peer.uid()));
    }
    Ok(())
}

fn send(
    socket: &Socket,
    message: &Message,
    descriptors: &[BorrowedFd<'_>],
) -> Result<(), HandOverError> {
    let failed = |source| HandOverError::Io { act: "tell", source };
    let json = serde_json::to_vec(message).map_err(|error| failed(error.into()))?;
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(SOCKETS_PER_MESSAGE))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !descriptors.is_empty() && !control.push(SendAncillaryMessage::ScmRights(descriptors)) {
        return Err(failed(io::ErrorKind::InvalidInput.into()));
    }
    sendmsg(socket, &[IoSlice::new(&json)], &mut control, SendFlags::NOSIGNAL)
        .map_err(|errno| failed(errno.into()))?;
    Ok(())
}

/// One message; descriptors that come with it are closed unless the caller wants them.
fn receive(socket: &Socket, descriptors: &mut Vec<OwnedFd>) -> Result<Message, HandOverError> {
    let failed = |source| HandOverError::Io { act: "hear", source };
    let mut bytes = vec![0; MESSAGE_BYTES];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(SOCKETS_PER_MESSAGE))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let received =
        recvmsg(socket, &mut [IoSliceMut::new(&mut bytes)], &mut control, RecvFlags::CMSG_CLOEXEC)
            .map_err(|errno| failed(errno.into()))?;
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = message {
            descriptors.extend(rights);
        }
    }
    if received.flags.intersects(ReturnFlags::TRUNC | ReturnFlags::CTRUNC) {
        return Err(HandOverError::NotUnderstood("more than fits".to_owned()));
    }
    let said = bytes.get(..received.bytes).unwrap_or_default();
    if said.is_empty() {
        return Err(failed(io::ErrorKind::UnexpectedEof.into()));
    }
    serde_json::from_slice(said).map_err(|error| HandOverError::NotUnderstood(error.to_string()))
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    async fn follower(socket: &HandOverSocket) -> Follower {
        socket.accept().await.unwrap()
    }

    fn listening() -> (SocketAddr, Listening) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        (address, Listening { pod: None, address, socket: listener.into() })
    }

    /// What the old one says to `asks`, who is the new one.
    async fn say<T: Send + 'static>(
        listeners: Vec<Listening>,
        asks: impl FnOnce(&Path) -> T + Send + 'static,
    ) -> (Result<Taker, HandOverError>, T) {
        let state = tempfile::tempdir().unwrap();
        let socket = HandOverSocket::bind(state.path()).unwrap();
        let asks = tokio::task::spawn_blocking(move || {
            let said = asks(state.path());
            drop(state);
            said
        });
        let follower = follower(&socket).await;
        let offered = tokio::task::spawn_blocking(move || {
            follower.offer(listeners).map(|taker| {
                let kept = Taker(taker.0.try_clone().unwrap());
                taker.given();
                kept
            })
        });
        (offered.await.unwrap(), asks.await.unwrap())
    }

    #[tokio::test]
    async fn listeners_pass_and_what_waits_in_them() {
        // More than fit one message.
        let (addresses, listeners): (Vec<_>, Vec<_>) = (0..150).map(|_| listening()).unzip();
        let waiting = std::net::TcpStream::connect(addresses[149]).unwrap();
        let (offered, inherited) =
            say(listeners, |state| Offer::ask(state).unwrap().unwrap().take().unwrap()).await;
        offered.unwrap();
        let last = inherited.take(None, addresses[149]).unwrap();
        assert_eq!(last.accept().unwrap().1, waiting.local_addr().unwrap());
        assert!(inherited.take(None, addresses[149]).is_none(), "once only");
        assert!(inherited.take(Some(&WorkloadUid("p".into())), addresses[0]).is_none());
        inherited.close(true);
        assert!(inherited.take(None, addresses[0]).is_some());
        inherited.close(false);
        assert!(inherited.take(None, addresses[1]).is_none());
        assert!(std::net::TcpStream::connect(addresses[1]).is_err());
    }

    #[tokio::test]
    async fn a_socket_that_is_something_else_is_not_used() {
        let (address, one) = listening();
        let elsewhere = TcpListener::bind("127.0.0.1:0").unwrap();
        let wrong = Listening { socket: elsewhere.into(), ..one };
        let (_, inherited) =
            say(vec![wrong], |state| Offer::ask(state).unwrap().unwrap().take().unwrap()).await;
        assert!(inherited.take(None, address).is_none());
    }

    #[tokio::test]
    async fn who_goes_away_before_taking_has_taken_nothing() {
        let (_, one) = listening();
        let (offered, ()) = say(vec![one], |state| drop(Offer::ask(state).unwrap())).await;
        assert!(matches!(offered.unwrap_err(), HandOverError::Io { .. }));
    }

    #[tokio::test]
    async fn another_version_is_told_so() {
        for (message, why) in [
            (Message::Ask { protocol: 9, abi: ABI_VERSION }, "speaks version 1 of this, not 9"),
            (Message::Ask { protocol: 1, abi: 0 }, "stop it and start anew"),
            (Message::Take, "Take"),
        ] {
            let (offered, told) = say(Vec::new(), move |state| {
                let socket = Socket::new(Domain::UNIX, Type::SEQPACKET, None).unwrap();
                socket.connect(&SockAddr::unix(state.join(NAME)).unwrap()).unwrap();
                send(&socket, &message, &[]).unwrap();
                receive(&socket, &mut Vec::new()).unwrap()
            })
            .await;
            offered.unwrap_err();
            let Message::Refused { why: told } = told else { panic!("{told:?}") };
            assert!(told.contains(why), "{told}");
        }
    }

    #[tokio::test]
    async fn bytes_that_are_no_message_are_refused() {
        let (offered, ()) = say(Vec::new(), |state| {
            let socket = Socket::new(Domain::UNIX, Type::SEQPACKET, None).unwrap();
            socket.connect(&SockAddr::unix(state.join(NAME)).unwrap()).unwrap();
            socket.send(b"\xff{").unwrap();
            let told = receive(&socket, &mut Vec::new()).unwrap();
            assert!(matches!(told, Message::Refused { .. }), "{told:?}");
        })
        .await;
        assert!(matches!(offered.unwrap_err(), HandOverError::NotUnderstood(_)));
    }

    #[test]
    fn nobody_is_there() {
        let state = tempfile::tempdir().unwrap();
        assert!(Offer::ask(state.path()).unwrap().is_none());
        assert!(Offer::ask(&state.path().join("none")).unwrap().is_none());
    }
}
