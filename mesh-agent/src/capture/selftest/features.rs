//! What the kernel has.
#![forbid(unsafe_code)]

use std::{fs, io};

use aya::{
    maps::MapType,
    programs::{ProgramType, SchedClassifier, TcAttachType},
    sys::{BpfHelper, is_helper_supported, is_map_supported},
};
use nix::{
    errno::Errno,
    sys::socket::{setsockopt, sockopt::TcpUlp},
};
use socket2::{Domain, Socket, Type};

use super::Seen;
use crate::capture::{bpf, error::chain, netns::PodNetns, sock_diag};

type FeatureCheck = fn() -> Seen;

pub(super) const CHECKS: [(&str, FeatureCheck); 8] = [
    ("netns_cookie", netns_cookie),
    ("cgroup_link", cgroup_link),
    ("ring_buffer", ring_buffer),
    ("sock_destroy", sock_destroy),
    ("sock_destroy_kfunc", sock_destroy_kfunc),
    ("tcx", tcx),
    ("redirect_peer", redirect_peer),
    ("ktls", ktls),
];

fn netns_cookie() -> Seen {
    let own = PodNetns::own().map_err(|error| chain(&error))?;
    Ok(format!("SO_NETNS_COOKIE: {}", own.cookie()))
}

fn cgroup_link() -> Seen {
    match bpf::create_no_link() {
        Err(error) if error.raw_os_error() == Some(libc::EBADF) => {
            Ok("BPF_LINK_CREATE is known".to_owned())
        }
        Err(error) => Err(format!("BPF_LINK_CREATE: {error} (needs Linux 5.7)")),
        Ok(()) => Err("BPF_LINK_CREATE made a link of nothing".to_owned()),
    }
}

fn ring_buffer() -> Seen {
    match is_map_supported(MapType::RingBuf) {
        Ok(true) => Ok("maps of that type can be made".to_owned()),
        Ok(false) => Err("no maps of that type (needs Linux 5.8)".to_owned()),
        Err(error) => Err(chain(&error)),
    }
}

fn sock_destroy() -> Seen {
    let missing = |error: io::Error| format!("CONFIG_INET_DIAG_DESTROY: {error}");
    sock_diag::can_destroy().map(|()| "connections can be cut".to_owned()).map_err(missing)
}

/// The kernel's types name every function that programs can call.
fn sock_destroy_kfunc() -> Seen {
    let path = "/sys/kernel/btf/vmlinux";
    let types = fs::read(path).map_err(|error| format!("{path}: {error}"))?;
    let name = regex::bytes::Regex::new("\0bpf_sock_destroy\0").map_err(|e| e.to_string())?;
    match name.is_match(&types) {
        true => Ok("bpf_sock_destroy can be called".to_owned()),
        false => Err("no bpf_sock_destroy (needs Linux 6.5)".to_owned()),
    }
}

fn tcx() -> Seen {
    match SchedClassifier::query_tcx("lo", TcAttachType::Ingress) {
        Ok(_) => Ok("links to an interface can be made".to_owned()),
        Err(error) => Err(format!("{} (needs Linux 6.6)", chain(&error))),
    }
}

fn redirect_peer() -> Seen {
    let helper = BpfHelper::BPF_FUNC_redirect_peer;
    match is_helper_supported(ProgramType::SchedClassifier, helper) {
        Ok(true) => Ok("bpf_redirect_peer can be called".to_owned()),
        Ok(false) => Err("no bpf_redirect_peer (needs Linux 5.10)".to_owned()),
        Err(error) => Err(chain(&error)),
    }
}

/// What the agent does not use, and spliced sockets must not meet.
fn ktls() -> Seen {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).map_err(|e| e.to_string())?;
    match setsockopt(&socket, TcpUlp::default(), b"tls") {
        Err(Errno::ENOENT) => Err("no TLS sockets (CONFIG_TLS, module tls)".to_owned()),
        // It wants a connection.
        Ok(()) | Err(Errno::ENOTCONN) => Ok("sockets can be given TLS".to_owned()),
        Err(errno) => Err(format!("TCP_ULP: {errno}")),
    }
}
