//! The control socket's file: private from its first moment, and never taken
//! from an agent that lives.

use std::{
    fs::{self, DirBuilder, File, OpenOptions, Permissions, TryLockError},
    io,
    os::{
        fd::OwnedFd,
        unix::fs::{
            DirBuilderExt as _, FileTypeExt as _, MetadataExt as _, OpenOptionsExt as _,
            PermissionsExt as _,
        },
    },
    path::{Path, PathBuf},
};

use socket2::{Domain, SockAddr, Socket, Type};
use tokio::net::{UnixListener, UnixStream};

use super::AdminError;

/// Waiting clients.
const BACKLOG: i32 = 32;

/// The control socket; dropping it removes the file.
#[derive(Debug)]
pub struct ControlSocket {
    listener: UnixListener,
    path: PathBuf,
    inode: u64,
    /// Held for as long as the socket is: keeps a second agent away.
    _lock: File,
}

impl ControlSocket {
    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    pub(super) async fn accept(&self) -> io::Result<UnixStream> {
        self.listener.accept().await.map(|(stream, _)| stream)
    }
}

impl Drop for ControlSocket {
    fn drop(&mut self) {
        // Only our own: somebody may have put another there.
        if fs::symlink_metadata(&self.path).is_ok_and(|found| found.ino() == self.inode)
            && let Err(error) = fs::remove_file(&self.path)
        {
            tracing::warn!(path = %self.path.display(), %error, "control socket is left behind");
        }
    }
}

/// Makes the control socket, mode 0600, and its directory, mode 0700, if that is
/// not there. The socket of an agent that died is replaced. Call it inside a tokio
/// runtime.
///
/// # Errors
/// [`AdminError::InUse`] where an agent lives behind it; else what could not be made.
pub fn bind_unix(path: &Path) -> Result<ControlSocket, AdminError> {
    let failed = |source| AdminError::Socket { path: path.to_owned(), source };
    let directory = match path.parent() {
        Some(parent) if parent != Path::new("") => parent,
        _ => Path::new("."),
    };
    make_directory(directory)
        .map_err(|source| AdminError::Directory { path: directory.to_owned(), source })?;
    let lock = lock(path)?;
    clear(path)?;

    let socket = Socket::new(Domain::UNIX, Type::STREAM, None).map_err(failed)?;
    // bind(2) makes the file with the socket's own mode: there is no moment at
    // which others can connect. unix(7) does not say so, net/unix/af_unix.c does.
    File::from(OwnedFd::from(socket.try_clone().map_err(failed)?))
        .set_permissions(Permissions::from_mode(0o600))
        .map_err(failed)?;
    socket.bind(&SockAddr::unix(path).map_err(failed)?).map_err(failed)?;
    fs::set_permissions(path, Permissions::from_mode(0o600)).map_err(failed)?;
    socket.listen(BACKLOG).map_err(failed)?;
    socket.set_nonblocking(true).map_err(failed)?;
    let listener = UnixListener::from_std(OwnedFd::from(socket).into()).map_err(failed)?;
    let inode = fs::symlink_metadata(path).map_err(failed)?.ino();
    Ok(ControlSocket { listener, path: path.to_owned(), inode, _lock: lock })
}

fn make_directory(directory: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
    let mode = fs::metadata(directory)?.permissions().mode();
    let (shared, sticky) = (mode & 0o022 != 0, mode & 0o1000 != 0);
    if shared && !sticky {
        tracing::warn!(
            directory = %directory.display(),
            mode = format!("{:o}", mode & 0o7777),
            "others may replace the control socket: its directory is writable for them"
        );
    }
    Ok(())
}

/// The lock beside the socket. It stays behind on purpose: removing it would let
/// two agents hold locks on two files of one name.
fn lock(path: &Path) -> Result<File, AdminError> {
    let mut name = path.as_os_str().to_owned();
    name.push(".lock");
    let failed = |source| AdminError::Socket { path: path.to_owned(), source };
    let file = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .mode(0o600)
        .open(PathBuf::from(name))
        .map_err(failed)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(AdminError::InUse { path: path.to_owned() }),
        Err(TryLockError::Error(source)) => Err(failed(source)),
    }
}

/// Removes the socket of an agent that is gone.
fn clear(path: &Path) -> Result<(), AdminError> {
    let failed = |source| AdminError::Socket { path: path.to_owned(), source };
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(failed(error)),
        Ok(found) if !found.file_type().is_socket() => {
            return Err(AdminError::NotASocket { path: path.to_owned() });
        }
        Ok(_) => {}
    }
    match std::os::unix::net::UnixStream::connect(path) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            fs::remove_file(path).map_err(failed)
        }
        Err(error) => Err(failed(error)),
        Ok(_) => Err(AdminError::InUse { path: path.to_owned() }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o7777
    }

    #[tokio::test]
    async fn the_socket_and_its_directory_are_private() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("run/mesh/agent.sock");
        let socket = bind_unix(&path).unwrap();
        assert_eq!(mode(&path), 0o600);
        assert_eq!(mode(path.parent().unwrap()), 0o700);
        drop(socket);
        assert!(!path.exists(), "the socket was left behind");
    }

    #[tokio::test]
    async fn a_stale_socket_is_replaced_and_a_live_one_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("agent.sock");
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        assert!(path.exists(), "the stale socket is the test's premise");

        let live = bind_unix(&path).unwrap();
        assert!(matches!(bind_unix(&path), Err(AdminError::InUse { .. })));
        assert!(path.exists(), "the refused agent took the live one's socket");
        drop(live);
        bind_unix(&path).unwrap();
    }

    #[tokio::test]
    async fn somebody_elses_listener_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("agent.sock");
        let _other = std::os::unix::net::UnixListener::bind(&path).unwrap();
        assert!(matches!(bind_unix(&path), Err(AdminError::InUse { .. })));
    }

    #[tokio::test]
    async fn a_file_is_not_removed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("agent.sock");
        fs::write(&path, "precious").unwrap();
        assert!(matches!(bind_unix(&path), Err(AdminError::NotASocket { .. })));
        assert_eq!(fs::read_to_string(&path).unwrap(), "precious");
    }
}
