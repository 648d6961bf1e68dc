//! A TCP connection that a program in a pod holds open while the test speaks on it.

use std::{
    io::{Read, Write},
    net::SocketAddr,
    process::{Child, ChildStdin, Command, Stdio},
    sync::mpsc::{self, Receiver, RecvTimeoutError},
    thread,
    time::{Duration, Instant},
};

use crate::{
    eventually,
    eventually::patience_factor,
    process::{Place, peer},
};

const PATIENCE: Duration = Duration::from_secs(60);

/// How `peer talk` says that a connection ended.
pub mod end {
    /// By FIN, after everything was read.
    pub const CLOSED: i32 = 0;
    /// By RST.
    pub const RESET: i32 = 3;
    /// Before it began.
    pub const REFUSED: i32 = 4;
}

/// The connection. Dropping it ends the program that holds it.
#[derive(Debug)]
pub struct Conversation {
    child: Child,
    stdin: Option<ChildStdin>,
    output: Receiver<Vec<u8>>,
    heard: Vec<u8>,
    destination: SocketAddr,
}

impl Conversation {
    pub(crate) fn start(place: &Place, destination: SocketAddr, flags: &[&str]) -> Self {
        let mut command = Command::new(peer());
        command.arg("talk").arg(destination.to_string()).args(flags);
        Self::of(place, command, destination)
    }

    /// By TLS, as a client that names no server and verifies nobody.
    pub(crate) fn start_tls(place: &Place, destination: SocketAddr) -> Self {
        let mut command = Command::new("openssl");
        command.args(["s_client", "-quiet", "-noservername", "-connect"]);
        command.arg(destination.to_string());
        Self::of(place, command, destination)
    }

    fn of(place: &Place, mut command: Command, destination: SocketAddr) -> Self {
        place.confine(&mut command);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::inherit());
        let mut child = command.spawn().expect("start `peer talk`");
        let stdin = child.stdin.take();
        let mut stdout = child.stdout.take().expect("stdout is piped");
        let (sender, output) = mpsc::channel();
        thread::spawn(move || {
            let mut buffer = vec![0; 1 << 16];
            while let Ok(length @ 1..) = stdout.read(&mut buffer) {
                if sender.send(buffer[..length].to_vec()).is_err() {
                    return;
                }
            }
        });
        Self { child, stdin, output, heard: Vec::new(), destination }
    }

    /// Sends `text`.
    #[track_caller]
    pub fn says(&mut self, text: impl AsRef<[u8]>) -> &mut Self {
        // A peer that is gone shows in what is heard and in how it ended.
        if let Some(stdin) = &mut self.stdin {
            let _ = stdin.write_all(text.as_ref()).and_then(|()| stdin.flush());
        }
        self
    }

    /// Waits until `text` arrives; what came before it is forgotten.
    ///
    /// # Panics
    /// If it does not arrive.
    #[track_caller]
    pub fn hears(&mut self, text: impl AsRef<[u8]>) -> &mut Self {
        let text = text.as_ref();
        let deadline = Instant::now() + PATIENCE * patience_factor();
        loop {
            let found = self.heard.windows(text.len()).position(|window| window == text);
            if let Some(at) = found {
                self.heard.drain(..at + text.len());
                return self;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            match self.output.recv_timeout(left) {
                Ok(bytes) => self.heard.extend(bytes),
                Err(error) => panic!(
                    "`{}` from {} did not come ({error}); heard {:?}",
                    String::from_utf8_lossy(text),
                    self.destination,
                    String::from_utf8_lossy(&self.heard)
                ),
            }
        }
    }

    /// Says `text` and waits for it to come back.
    #[track_caller]
    pub fn echoes(&mut self, text: &str) -> &mut Self {
        self.says(text).hears(text)
    }

    /// Closes the sending half.
    pub fn half_closes(&mut self) -> &mut Self {
        self.stdin = None;
        self
    }

    /// Everything that arrives until the connection ends, and how it ended.
    pub fn rest(&mut self) -> (String, i32) {
        let deadline = Instant::now() + PATIENCE * patience_factor();
        loop {
            match self.output.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(bytes) => self.heard.extend(bytes),
                Err(RecvTimeoutError::Disconnected) => break,
                Err(RecvTimeoutError::Timeout) => {
                    panic!("{} does not end the connection", self.destination)
                }
            }
        }
        let status = eventually("the talker ends", || match self.child.try_wait() {
            Ok(Some(status)) => Ok(status),
            _ => Err("still runs"),
        });
        let heard = String::from_utf8_lossy(&std::mem::take(&mut self.heard)).into_owned();
        (heard, status.code().unwrap_or(-1))
    }

    /// # Panics
    /// Unless the connection ended by FIN.
    #[track_caller]
    pub fn expect_closed(&mut self) -> String {
        let (heard, how) = self.rest();
        assert_eq!(how, end::CLOSED, "{}: heard {heard:?}", self.destination);
        heard
    }

    /// # Panics
    /// Unless the connection ended, in whatever way, and nothing was heard.
    #[track_caller]
    pub fn expect_cut_off(&mut self) {
        let (heard, how) = self.rest();
        assert_eq!(heard, "", "{} ended with {how}", self.destination);
    }

    /// # Panics
    /// Unless the connection ended by RST.
    #[track_caller]
    pub fn expect_reset(&mut self) -> String {
        let (heard, how) = self.rest();
        assert_eq!(how, end::RESET, "{}: heard {heard:?}", self.destination);
        heard
    }

    /// # Panics
    /// Unless the connection was never made.
    #[track_caller]
    pub fn expect_refused(&mut self) {
        let (heard, how) = self.rest();
        assert_eq!(how, end::REFUSED, "{}: heard {heard:?}", self.destination);
    }

    /// Whether the program that holds the connection still runs.
    pub fn is_open(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }
}

impl Drop for Conversation {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
