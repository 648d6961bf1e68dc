//! Programs inside pods: started in the right namespace and cgroup, ended, reaped.

use std::{
    fmt::Debug,
    fs::{self, File, OpenOptions},
    io::{self, Read},
    os::{fd::AsRawFd, unix::process::CommandExt},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::{Arc, Mutex, PoisonError},
    thread,
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::{bed::Shared, eventually, eventually::patience_factor, netns::Netns};

/// How long a program that is run to its end may take.
pub(crate) const RUN_DEADLINE: Duration = Duration::from_secs(30);
/// The same for one that moves much data.
pub(crate) const LONG_DEADLINE: Duration = Duration::from_secs(240);

/// Where a program runs.
#[derive(Debug, Clone)]
pub(crate) struct Place {
    pub(crate) netns: Netns,
    pub(crate) cgroup: PathBuf,
    pub(crate) shared: Arc<Shared>,
}

impl Place {
    /// Makes `command` start inside, with a clean environment and in a session of its own.
    ///
    /// Only the network namespace is entered (not by `ip netns exec`, which would hide
    /// the cgroup and BPF file systems).
    pub(crate) fn confine(&self, command: &mut Command) {
        let path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
        command.env_clear().env("PATH", path).env("RUST_BACKTRACE", "1").env("LC_ALL", "C");
        let procs = self.cgroup.join("cgroup.procs");
        let procs = OpenOptions::new()
            .write(true)
            .open(&procs)
            .unwrap_or_else(|e| panic!("open {}: {e}", procs.display()));
        let netns = self.netns.clone();
        let enter = move || {
            // SAFETY: plain system calls on descriptors that the closure keeps open.
            let entered = unsafe {
                libc::write(procs.as_raw_fd(), c"0".as_ptr().cast(), 1) == 1
                    && libc::setns(netns.raw_fd(), libc::CLONE_NEWNET) == 0
                    && libc::setsid() != -1
            };
            if entered { Ok(()) } else { Err(io::Error::last_os_error()) }
        };
        // SAFETY: `enter` only makes async-signal-safe system calls, as is required
        // between fork and exec; it neither allocates nor locks.
        unsafe { command.pre_exec(enter) };
    }
}

/// What a program left that ran to its end.
#[derive(Debug, Clone)]
pub struct Ran {
    command: String,
    status: ExitStatus,
    stdout: String,
    stderr: String,
}

impl Ran {
    /// The exit code; `None` if a signal ended it.
    pub fn code(&self) -> Option<i32> {
        self.status.code()
    }

    /// What it printed.
    pub fn stdout(&self) -> &str {
        &self.stdout
    }

    /// What it complained about.
    pub fn stderr(&self) -> &str {
        &self.stderr
    }

    /// # Panics
    /// With all output, unless it exited with 0.
    #[track_caller]
    pub fn expect_success(self) -> Self {
        assert!(self.status.success(), "{self}");
        self
    }

    /// # Panics
    /// With all output, if it exited with 0.
    #[track_caller]
    pub fn expect_failure(self) -> Self {
        assert!(!self.status.success(), "must fail: {self}");
        self
    }

    /// # Panics
    /// Unless stdout or stderr contains `text`.
    #[track_caller]
    pub fn expect_output(self, text: &str) -> Self {
        assert!(
            self.stdout.contains(text) || self.stderr.contains(text),
            "no `{text}` in the output of {self}"
        );
        self
    }

    /// Stdout as JSON.
    ///
    /// # Panics
    /// If it is not.
    #[track_caller]
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|e| panic!("no JSON ({e}): {self}"))
    }
}

impl std::fmt::Display for Ran {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { command, status, stdout, stderr } = self;
        write!(f, "`{command}` ended with {status}\nstdout: {stdout}\nstderr: {stderr}")
    }
}

/// Runs `command` at `place` to its end.
///
/// # Panics
/// If it cannot start or exceeds `deadline`.
pub(crate) fn run(mut command: Command, place: &Place, deadline: Duration) -> Ran {
    place.confine(&mut command);
    run_here(command, deadline)
}

/// Runs `command` to its end where the test is.
///
/// # Panics
/// If it cannot start or exceeds `deadline`.
pub(crate) fn run_here(mut command: Command, deadline: Duration) -> Ran {
    let shown = show(&command);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap_or_else(|e| panic!("start `{shown}`: {e}"));
    let stdout = drain(child.stdout.take().expect("stdout is piped"));
    let stderr = drain(child.stderr.take().expect("stderr is piped"));
    let status = match wait(&mut child, deadline) {
        Some(status) => status,
        None => {
            let _ = child.kill();
            let _ = child.wait();
            panic!("`{shown}` did not end within {deadline:?}");
        }
    };
    let text = |reader: thread::JoinHandle<Vec<u8>>| {
        String::from_utf8_lossy(&reader.join().expect("the reader does not panic")).into_owned()
    };
    Ran { command: shown, status, stdout: text(stdout), stderr: text(stderr) }
}

fn drain(mut from: impl Read + Send + 'static) -> thread::JoinHandle<Vec<u8>> {
    thread::spawn(move || {
        let mut bytes = Vec::new();
        // A broken pipe ends the output; what came before counts.
        let _ = from.read_to_end(&mut bytes);
        bytes
    })
}

fn wait(child: &mut Child, deadline: Duration) -> Option<ExitStatus> {
    let deadline = deadline * patience_factor();
    let start = Instant::now();
    loop {
        if let Some(status) = child.try_wait().expect("wait for a child") {
            return Some(status);
        }
        if start.elapsed() > deadline {
            return None;
        }
        thread::sleep(Duration::from_millis(2));
    }
}

fn show(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(|w| w.to_string_lossy()).collect::<Vec<_>>().join(" ")
}

/// A program that runs in the background; dropping it kills it, unless the bed is kept.
#[derive(Debug)]
pub struct Process {
    child: Mutex<Child>,
    label: String,
    log: PathBuf,
    shared: Arc<Shared>,
}

impl Process {
    /// Starts `command`; stdout and stderr are appended to `log`.
    pub(crate) fn start(command: Command, place: &Place, label: &str, log: &Path) -> Self {
        let file = OpenOptions::new().create(true).append(true).open(log).expect("open the log");
        let clone = file.try_clone().expect("clone the log's descriptor");
        Self::start_with(command, place, label, log, clone, file)
    }

    /// Starts `command` with its stdout and stderr apart; `log` is what is shown on failure.
    pub(crate) fn start_with(
        mut command: Command,
        place: &Place,
        label: &str,
        log: &Path,
        stdout: File,
        stderr: File,
    ) -> Self {
        place.confine(&mut command);
        command.stdin(Stdio::null()).stdout(stdout).stderr(stderr);
        let child = command.spawn().unwrap_or_else(|e| panic!("start `{}`: {e}", show(&command)));
        Self {
            child: Mutex::new(child),
            label: label.to_owned(),
            log: log.to_owned(),
            shared: Arc::clone(&place.shared),
        }
    }

    fn child(&self) -> std::sync::MutexGuard<'_, Child> {
        self.child.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What the test calls it.
    pub fn label(&self) -> &str {
        &self.label
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child().id()
    }

    /// What it has written so far.
    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// How it ended, if it has.
    pub fn ended(&self) -> Option<ExitStatus> {
        self.child().try_wait().expect("wait for a child")
    }

    /// Sends `signal`.
    pub fn signal(&self, signal: Signal) {
        let pid = i32::try_from(self.pid()).expect("pids fit");
        assert!(self.ended().is_none(), "{} has ended already:\n{}", self.label, self.log());
        kill(Pid::from_raw(pid), signal).unwrap_or_else(|e| panic!("signal {}: {e}", self.label));
    }

    /// Kills it as the kernel's out-of-memory killer would, and waits for the end.
    pub fn kill_9(&self) {
        self.signal(Signal::SIGKILL);
        self.wait();
    }

    /// Waits for the end.
    ///
    /// # Panics
    /// With the log, if it does not end.
    pub fn wait(&self) -> ExitStatus {
        eventually(&format!("{} ends", self.label), || self.ended().ok_or("still runs"))
    }

    /// How much of it is in memory, in KiB.
    ///
    /// # Panics
    /// If it has ended.
    pub fn resident_kib(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid()));
        let kib = status.unwrap_or_default().lines().find_map(|line| {
            line.strip_prefix("VmRSS:")?.trim().strip_suffix(" kB")?.trim().parse().ok()
        });
        kib.expect("a living process has a resident size")
    }

    /// User and system CPU time it has used.
    pub fn cpu_time(&self) -> Duration {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.pid())).unwrap_or_default();
        let fields = stat.rsplit_once(')').map_or("", |(_, fields)| fields);
        let ticks: u64 =
            fields.split_whitespace().skip(11).take(2).filter_map(|t| t.parse::<u64>().ok()).sum();
        // USER_HZ is 100 on every architecture Linux still has.
        Duration::from_millis(ticks * 10)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if self.shared.is_kept() {
            return;
        }
        let mut child = self.child();
        let _ = child.kill();
        let _ = child.wait();
    }
}

/// This crate's `peer` program, built beside the running one.
pub fn peer() -> PathBuf {
    beside_this_program("peer")
}

/// The agent under test.
pub fn agent_binary() -> PathBuf {
    beside_this_program("mesh-agent")
}

/// Finds a binary of the workspace in the directory of the running program or the one
/// above it (test binaries are in `deps/`).
fn beside_this_program(name: &str) -> PathBuf {
    let here = std::env::current_exe().expect("know the running program");
    let found = here.ancestors().skip(1).take(2).map(|d| d.join(name)).find(|p| p.is_file());
    found.unwrap_or_else(|| {
        panic!("{name} is not built beside {}: run `cargo xtask test`", here.display())
    })
}
