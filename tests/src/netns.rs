//! Network namespaces: made, configured, entered and removed.

use std::{
    fs::{self, File},
    io::{self, Write},
    os::fd::AsRawFd,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::Arc,
    thread,
};

use nix::sched::{CloneFlags, setns};

const DIRECTORY: &str = "/run/netns";

/// A named network namespace; cheap to clone, removed with its run and not by `Drop`.
#[derive(Debug, Clone)]
pub struct Netns {
    name: Arc<str>,
    file: Arc<File>,
}

impl Netns {
    /// Makes the namespace `name`, with loopback up and forwarding set like on a node.
    pub fn create(name: &str) -> Self {
        let made = Command::new("ip").args(["netns", "add", name]).output().expect("run ip");
        assert!(
            made.status.success(),
            "ip netns add {name} (root needed): {}",
            String::from_utf8_lossy(&made.stderr)
        );
        let file = File::open(Path::new(DIRECTORY).join(name)).expect("open the new namespace");
        let netns = Self { name: name.into(), file: Arc::new(file) };
        // Loose reverse path filtering is what systemd sets on Debian.
        netns.sysctl("net.ipv4.conf.all.rp_filter", "2");
        netns.sysctl("net.ipv4.conf.default.rp_filter", "2");
        // Duplicate address detection would hold IPv6 addresses back for a second.
        netns.sysctl("net.ipv6.conf.all.accept_dad", "0");
        netns.sysctl("net.ipv6.conf.default.accept_dad", "0");
        netns.sysctl("net.ipv6.conf.all.disable_ipv6", "0");
        netns.sysctl("net.ipv6.conf.default.disable_ipv6", "0");
        netns.ip(&["link set lo up"]);
        netns
    }

    /// As in `ip netns list`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The file under `/run/netns` that holds the namespace.
    pub fn path(&self) -> PathBuf {
        Path::new(DIRECTORY).join(&*self.name)
    }

    /// An open file of the namespace, for `setns(2)`.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Runs each line as an `ip` command inside the namespace; those that start with
    /// `-6` after the others.
    pub fn ip(&self, lines: &[&str]) {
        // A batch knows no options in its lines.
        let v6: Vec<&str> = lines.iter().filter_map(|line| line.strip_prefix("-6 ")).collect();
        let rest: Vec<&str> = lines.iter().copied().filter(|l| !l.starts_with("-6 ")).collect();
        self.batch("ip", &[], &rest);
        if !v6.is_empty() {
            self.batch("ip", &["-6"], &v6);
        }
    }

    /// Runs each line as a `tc` command inside the namespace.
    pub fn tc(&self, lines: &[&str]) {
        self.batch("tc", &[], lines);
    }

    fn batch(&self, tool: &str, options: &[&str], lines: &[&str]) {
        let mut child = Command::new(tool)
            .args(options)
            .args(["-n", &self.name, "-batch", "-"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap_or_else(|e| panic!("run {tool}: {e}"));
        let mut stdin = child.stdin.take().expect("stdin is piped");
        stdin.write_all((lines.join("\n") + "\n").as_bytes()).expect("write the batch");
        drop(stdin);
        let output = child.wait_with_output().expect("wait for the batch");
        assert!(
            output.status.success(),
            "{tool} -n {} failed: {}\n{}",
            self.name,
            String::from_utf8_lossy(&output.stderr),
            lines.join("\n")
        );
    }

    /// Sets `key` (dots as separators) inside the namespace.
    pub fn sysctl(&self, key: &str, value: &str) {
        let path = format!("/proc/sys/{}", key.replace('.', "/"));
        let result = self.enter(|| fs::write(&path, value));
        result.unwrap_or_else(|e| panic!("set {key}={value} in {}: {e}", self.name));
    }

    /// Runs `f` on a thread of its own inside the namespace; sockets it returns stay there.
    ///
    /// The thread is in the caller's cgroup: what it dials is not captured. Use
    /// [`crate::Pod`]'s programs for traffic that must be.
    pub fn enter<T: Send>(&self, f: impl FnOnce() -> T + Send) -> T {
        thread::scope(|scope| {
            let inside = scope.spawn(|| {
                setns(&*self.file, CloneFlags::CLONE_NEWNET).expect("enter the network namespace");
                f()
            });
            inside.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// The TCP ports that are listened on inside, for any address.
    pub fn listening_ports(&self) -> Vec<u16> {
        let tables = self.enter(|| {
            // `/proc/net` follows the process, `/proc/thread-self/net` this thread.
            ["tcp", "tcp6"].map(|t| {
                fs::read_to_string(format!("/proc/thread-self/net/{t}")).unwrap_or_default()
            })
        });
        tables.iter().flat_map(|table| table.lines().skip(1)).filter_map(listening_port).collect()
    }

    /// The raw descriptor of [`Netns::file`].
    pub(crate) fn raw_fd(&self) -> i32 {
        self.file.as_raw_fd()
    }
}

/// The local port of a line of `/proc/net/tcp` in state LISTEN.
fn listening_port(line: &str) -> Option<u16> {
    const LISTEN: &str = "0A";
    let mut fields = line.split_whitespace().skip(1);
    let (local, state) = (fields.next()?, fields.nth(1)?);
    let (_, port) = local.rsplit_once(':')?;
    (state == LISTEN).then(|| u16::from_str_radix(port, 16).ok())?
}

/// The names of all network namespaces.
pub fn list() -> Vec<String> {
    let entries = fs::read_dir(DIRECTORY).into_iter().flatten();
    entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok()).collect()
}

/// Removes the name; the namespace follows when its last process and socket are gone.
///
/// # Errors
/// What `ip netns del` said.
pub fn remove(name: &str) -> io::Result<()> {
    let output = Command::new("ip").args(["netns", "del", name]).output()?;
    if output.status.success() {
        return Ok(());
    }
    Err(io::Error::other(format!("{name}: {}", String::from_utf8_lossy(&output.stderr).trim())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_listening_sockets_count() {
        let listen = "  0: 00000000:1F90 00000000:0000 0A 00000000:00000000 00:00000000";
        assert_eq!(listening_port(listen), Some(8080));
        let established = "  1: 0100007F:1F90 0100007F:A000 01 00000000:00000000 00:00000000";
        assert_eq!(listening_port(established), None);
        assert_eq!(listening_port("garbage"), None);
    }
}
