//! The agent's sockets that are spliced with an application's, and what it has to know and
//! to say of them.
#![forbid(unsafe_code)]

use std::{
    fmt, io,
    net::SocketAddr,
    os::fd::BorrowedFd,
    path::Path,
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
};

use aya::maps::{HashMap, MapData, MapError, SkStorage};
use mesh_common::{
    abi::{SPLICE_AHEAD_BYTES, map},
    key::SpliceKey,
    value::{Splice, Way},
};
use socket2::SockRef;

use super::{
    error::CaptureError,
    maps::{is_absent, pinned},
    netns::PodNetns,
    sock_diag::Backlogs,
    sockets::Vouched,
};
use crate::model::socket::SplicedLeg;

/// Those of one pod. None before they were [`Legs::allow`]ed; from then on each socket is
/// asked about, also when new ones are not spliced any more.
#[derive(Debug, Default)]
pub(super) struct Legs(OnceLock<Arc<Shared>>);

/// Opened anew for each pod, so that pods do not share locks.
struct Shared {
    splices: SkStorage<MapData, Splice>,
    grants: Mutex<HashMap<MapData, SpliceKey, u64>>,
    backlogs: Mutex<Backlogs>,
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared").finish_non_exhaustive()
    }
}

impl Legs {
    /// Opens what is needed to look after them. To be called before the programs may splice
    /// any.
    pub(super) fn allow(&self, maps: &Path, netns: &PodNetns) -> Result<(), CaptureError> {
        if self.0.get().is_some() {
            return Ok(());
        }
        let (splice, grants) = (pinned(maps, map::SPLICE)?, pinned(maps, map::GRANTS)?);
        let of = |name| move |source| CaptureError::Map { map: name, source };
        let backlogs = netns.run(Backlogs::open).and_then(|backlogs| backlogs);
        let backlogs = backlogs.map_err(|source| CaptureError::File {
            act: "ask sock_diag in",
            path: netns.path().to_owned(),
            source,
        })?;
        let shared = Shared {
            splices: splice.try_into().map_err(of(map::SPLICE))?,
            grants: Mutex::new(grants.try_into().map_err(of(map::GRANTS))?),
            backlogs: Mutex::new(backlogs),
        };
        // Somebody else's is as good.
        let _ = self.0.set(Arc::new(shared));
        Ok(())
    }

    /// Tells the programs that a socket will carry plaintext to the application, and nothing
    /// else ever.
    pub(super) fn offer(&self, vouched: &Vouched, socket: BorrowedFd<'_>) -> io::Result<()> {
        match self.0.get() {
            Some(_) => vouched.add_plaintext(socket),
            None => Ok(()),
        }
    }

    /// What a connected socket has to be looked after by; `None` where it is not spliced.
    pub(super) fn of(&self, socket: BorrowedFd<'_>) -> io::Result<Option<Box<dyn SplicedLeg>>> {
        let Some(shared) = self.0.get() else { return Ok(None) };
        let splice = match shared.splices.get(&socket, 0) {
            Ok(splice) => splice,
            Err(error) if is_absent(&error) => return Ok(None),
            Err(error) => return Err(io::Error::other(error)),
        };
        let address = |found: io::Result<socket2::SockAddr>| {
            let found = found?.as_socket();
            found.ok_or_else(|| io::Error::from(io::ErrorKind::InvalidData))
        };
        let socket = SockRef::from(&socket);
        let (agent, application) = (address(socket.local_addr())?, address(socket.peer_addr())?);
        Ok(Some(Box::new(Leg {
            key: splice.peer.other_end(),
            agent,
            application,
            granted: false,
            shared: Arc::clone(shared),
        })))
    }
}

#[derive(Debug)]
struct Leg {
    key: SpliceKey,
    agent: SocketAddr,
    application: SocketAddr,
    /// Whether the map has an entry of it.
    granted: bool,
    shared: Arc<Shared>,
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Each change stands for itself.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl SplicedLeg for Leg {
    fn ahead_bytes(&self) -> u64 {
        SPLICE_AHEAD_BYTES
    }

    fn grant(&mut self, bytes: u64) {
        // Where the map is full the application goes on by TCP.
        self.granted =
            locked(&self.shared.grants).insert(self.key, bytes, 0).is_ok() || self.granted;
    }

    fn backlog(&self, socket: BorrowedFd<'_>) -> io::Result<u64> {
        if let Some(bytes) = locked(&self.shared.backlogs).of(self.application, self.agent)? {
            return Ok(bytes);
        }
        let splice = self.shared.splices.get(&socket, 0).map_err(io::Error::other)?;
        if Way::from_number(splice.way) == Way::Spliced {
            // Gone, or bound to another interface: what it has not read would have no bound.
            return Err(io::Error::new(
                io::ErrorKind::ConnectionReset,
                "the application's socket cannot be asked what it has not read",
            ));
        }
        // It is about to be accepted, or TCP's to refuse.
        Ok(0)
    }
}

impl Drop for Leg {
    fn drop(&mut self) {
        if self.granted {
            // Gone already is as well.
            let _: Result<(), MapError> = locked(&self.shared.grants).remove(&self.key);
        }
    }
}
