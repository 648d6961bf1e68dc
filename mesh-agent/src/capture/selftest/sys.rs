//! Questions to the kernel that nobody wraps.

use std::{
    fs, io,
    net::TcpStream,
    os::fd::AsRawFd,
    thread,
    time::{Duration, Instant},
};

use nix::unistd::Pid;

use super::PATIENCE;

/// `TCP_FIN_WAIT2`: our FIN was acknowledged.
pub(super) const FIN_WAIT2: u8 = 5;

/// How many bytes wait to be read, as `FIONREAD` tells it.
pub(super) fn readable_bytes(socket: &TcpStream) -> io::Result<i32> {
    let mut bytes: libc::c_int = 0;
    // SAFETY: an open socket and a live integer, which is what FIONREAD writes.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), libc::FIONREAD, &raw mut bytes) };
    if result == 0 { Ok(bytes) } else { Err(io::Error::last_os_error()) }
}

/// Waits until the connection is in `state`.
pub(super) fn wait_for_state(socket: &TcpStream, state: u8) -> bool {
    wait(|| tcp_state(socket).is_ok_and(|found| found == state))
}

fn tcp_state(socket: &TcpStream) -> io::Result<u8> {
    // The first byte of `struct tcp_info`; the kernel cuts the rest off.
    let mut state = 0_u8;
    let mut length: libc::socklen_t = 1;
    // SAFETY: the pointers are to a byte and to its size, both live for the call.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_INFO,
            (&raw mut state).cast(),
            &raw mut length,
        )
    };
    if result == 0 { Ok(state) } else { Err(io::Error::last_os_error()) }
}

/// Waits until a thread of this process sleeps in a system call.
pub(super) fn wait_for_sleep(thread_id: Pid) -> bool {
    wait(|| {
        let stat = fs::read_to_string(format!("/proc/self/task/{thread_id}/stat"));
        // The state follows the name, which is in parentheses.
        stat.is_ok_and(|stat| stat.rsplit(") ").next().is_some_and(|rest| rest.starts_with('S')))
    })
}

/// How often a thread of this process has gone to sleep; 0 where it has ended.
pub(super) fn sleeps(thread_id: Pid) -> u64 {
    let status = fs::read_to_string(format!("/proc/self/task/{thread_id}/status"));
    let status = status.unwrap_or_default();
    let count = status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
    count.and_then(|count| count.trim().parse().ok()).unwrap_or_default()
}

/// Waits until something holds that has to.
pub(super) fn wait(holds: impl Fn() -> bool) -> bool {
    wait_for(PATIENCE, holds)
}

/// Waits until something holds, or so long.
pub(super) fn wait_for(patience: Duration, holds: impl Fn() -> bool) -> bool {
    let until = Instant::now() + patience;
    loop {
        if holds() {
            return true;
        }
        if Instant::now() >= until {
            return false;
        }
        thread::sleep(Duration::from_millis(1));
    }
}
