//! Questions to the kernel that nobody wraps.

use std::{
    fs, io,
    net::TcpStream,
    os::fd::AsRawFd,
    thread,
    time::{Duration, Instant},
};

use nix::{
    sys::socket::{ControlMessageOwned, MsgFlags, recvmsg},
    unistd::Pid,
};

use super::PATIENCE;

/// Of `linux/errqueue.h`.
const SO_EE_ORIGIN_ZEROCOPY: u8 = 5;

/// `TCP_FIN_WAIT2`: our FIN was acknowledged.
pub(super) const FIN_WAIT2: u8 = 5;

/// How many bytes wait to be read, as `FIONREAD` tells it.
pub(super) fn readable_bytes(socket: &TcpStream) -> io::Result<i32> {
    let mut bytes: libc::c_int = 0;
    // SAFETY: an open socket and a live integer, which is what FIONREAD writes.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), libc::FIONREAD, &raw mut bytes) };
    if result == 0 { Ok(bytes) } else { Err(io::Error::last_os_error()) }
}

/// Lets a socket send without a copy.
pub(super) fn allow_zerocopy(socket: &TcpStream) -> io::Result<()> {
    let on: libc::c_int = 1;
    // SAFETY: an open socket, a live integer and its size.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_ZEROCOPY,
            (&raw const on).cast(),
            size_of_val(&on) as libc::socklen_t,
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Sends without a copy; how much. The kernel may read it for as long as it likes.
pub(super) fn send_zerocopy(socket: &TcpStream, bytes: &'static [u8]) -> io::Result<usize> {
    let flags = libc::MSG_ZEROCOPY | libc::MSG_NOSIGNAL;
    // SAFETY: an open socket, and the pointer and length of bytes that live for ever.
    let sent = unsafe { libc::send(socket.as_raw_fd(), bytes.as_ptr().cast(), bytes.len(), flags) };
    usize::try_from(sent).map_err(|_| io::Error::last_os_error())
}

/// Whether the kernel has said that such a send is done.
pub(super) fn takes_completion(socket: &TcpStream) -> bool {
    let mut space = nix::cmsg_space!([u64; 8]);
    let flags = MsgFlags::MSG_ERRQUEUE | MsgFlags::MSG_DONTWAIT;
    let message = recvmsg::<()>(socket.as_raw_fd(), &mut [], Some(&mut space), flags);
    message.is_ok_and(|message| {
        message.cmsgs().is_ok_and(|mut messages| {
            messages.any(|message| {
                matches!(
                    message,
                    ControlMessageOwned::Ipv4RecvErr(error, _)
                        if error.ee_origin == SO_EE_ORIGIN_ZEROCOPY
                )
            })
        })
    })
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
