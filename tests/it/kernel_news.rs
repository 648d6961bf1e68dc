//! What changes on a node is noticed when the kernel tells, not when the agent next looks.

use std::{
    io::{Read, Write},
    time::Duration,
};

use nix::sys::signal::Signal;
use socket2::{Domain, Protocol, Socket, Type};
use tests::{conversation::end, eventually, mesh::SERVER, netns::Netns};

use crate::kernel_path::Neighbours;

/// The agent looks by itself every five seconds: now and then it may be first, on a machine
/// that is slow more often. Where nobody told it, it always is.
const ROUNDS: u32 = 5;

/// Whether the agent was told, and acted on it, before it looked by itself: that is logged at
/// the end of what it leads to.
fn is_told(it: &Neighbours, of: &str) -> bool {
    let line = format!("the kernel told of {of}");
    (0..200).any(|_| {
        std::thread::sleep(Duration::from_millis(50));
        it.agent.log().contains(&line)
    })
}

#[test]
fn a_new_interface_is_guarded_at_once() {
    let it = Neighbours::start_with("news-link", "echo", &[]);
    let told = (1..=ROUNDS).any(|number| {
        let name = format!("new{number}");
        it.client.netns().ip(&[&format!("link add {name} type veth peer name far{number}")]);
        it.client.netns().ip(&[&format!("link set {name} up")]);
        it.agent.logs(&[&name, "an interface is new"]);
        is_told(&it, "the pod's interfaces")
    });
    assert!(told, "{}", it.agent.log());
}

#[test]
fn a_pod_whose_interface_vanishes_loses_its_kernel_path_connections_at_once() {
    let told = (1..=ROUNDS).any(|number| {
        let name = format!("news-gone{number}");
        let it = Neighbours::start_with(&name, "echo", &["--redirect-peer", "off"]);
        it.wait_for_services(2);
        let mut talk = it.talk();
        talk.echoes("before");
        let wire = it.bed.wire().capture();
        it.server.netns().ip(&["link del eth0"]);
        let (there, _) = it.bed.node(2).wire_addresses();
        it.bed.node(1).netns().ip(&[&format!("route replace {}/32 via {there}", it.server.ip())]);
        assert_eq!(talk.rest().1, end::RESET);
        it.talk().says("words for a pod that is gone\n").expect_cut_off();
        wire.expect_no_trace_of("words for a pod");
        is_told(&it, "the pod's interfaces")
    });
    assert!(told);
}

/// Who opens and closes without end fills what the kernel tells the agent by.
#[test]
fn a_connection_that_the_kernel_could_not_tell_of_is_on_the_table_all_the_same() {
    // Opened while it is stopped, for as long as the machine needs.
    let it = Neighbours::start_with("news-lost", "echo", &["--hung-after", "off"]);
    it.wait_for_services(2);
    it.agent.process().signal(Signal::SIGSTOP);
    for _ in 0..4 {
        it.client.run_peer(&["echoed", SERVER, "10", "1000"]).expect_success();
    }
    let mut talk = it.talk();
    talk.echoes("unheard of by anybody");
    it.agent.process().signal(Signal::SIGCONT);
    eventually("it is listed at both ends", || {
        let live = it.agent.connections();
        let rows = live.as_array().map_or(0, Vec::len);
        if rows == 2 { Ok(()) } else { Err(live) }
    });
    assert!(it.verdict("event_lost") > 0, "{}", it.agent.status());
    // So many lines at once are more than wait to be written: this one's must not be among
    // those that are dropped.
    let mut written = 0;
    eventually("what the kernel could tell is written", || {
        let before = std::mem::replace(&mut written, it.agent.stdout().len());
        if written == before && written > 0 { Ok(()) } else { Err(written) }
    });
    talk.half_closes();
    assert_eq!(talk.expect_closed(), "");
    it.agent.logs_access(&["\"inbound\"", "\"bytes_received\":21,", "\"path\":\"kernel\""]);
}

/// Nftables where there may be no nft(8).
pub(crate) mod nftables {
    use super::*;

    const NFNL_SUBSYS_NFTABLES: u16 = 10;
    const BATCH_BEGIN: u16 = 16;
    const BATCH_END: u16 = 17;
    const REQUEST: u16 = 1;
    const ACK: u16 = 4;
    const CREATE: u16 = 0x400;
    const APPEND: u16 = 0x800;

    /// `struct nlmsghdr`, `struct nfgenmsg`, attributes.
    fn message(kind: u16, flags: u16, family: u8, resource: u16, attributes: &[u8]) -> Vec<u8> {
        let length = u32::try_from(20 + attributes.len()).unwrap();
        let mut message = length.to_ne_bytes().to_vec();
        message.extend(kind.to_ne_bytes());
        message.extend(flags.to_ne_bytes());
        message.extend([1, 0, 0, 0, 0, 0, 0, 0, family, 0]);
        message.extend(resource.to_be_bytes());
        message.extend(attributes);
        message
    }

    /// Makes what `wanted` says, in one batch: each its message's number and attributes.
    pub(crate) fn asks(netns: &Netns, family: u8, wanted: &[(u16, Vec<u8>)]) {
        let mut batch = message(BATCH_BEGIN, REQUEST, 0, NFNL_SUBSYS_NFTABLES, &[]);
        for (kind, attributes) in wanted {
            let kind = NFNL_SUBSYS_NFTABLES << 8 | kind;
            batch.extend(message(kind, REQUEST | CREATE | APPEND | ACK, family, 0, attributes));
        }
        batch.extend(message(BATCH_END, REQUEST, 0, NFNL_SUBSYS_NFTABLES, &[]));
        netns.enter(|| {
            let netfilter = Some(Protocol::from(libc::NETLINK_NETFILTER));
            let mut socket =
                Socket::new(Domain::from(libc::AF_NETLINK), Type::RAW, netfilter).unwrap();
            socket.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
            socket.write_all(&batch).unwrap();
            // One answer for each, or one for the first that is refused.
            for (number, _) in wanted.iter().enumerate() {
                let mut answer = [0; 4096];
                let length = socket.read(&mut answer).unwrap();
                assert!(length >= 20, "{:?}", &answer[..length]);
                let errno = i32::from_ne_bytes([answer[16], answer[17], answer[18], answer[19]]);
                assert_eq!(errno, 0, "part {number} was refused");
            }
        });
    }
}

/// `nft add table ip policy`.
pub(crate) fn add_table(netns: &Netns) {
    // One attribute: its name.
    let mut name = 11_u16.to_ne_bytes().to_vec();
    name.extend(1_u16.to_ne_bytes());
    name.extend(b"policy\0\0");
    nftables::asks(netns, libc::AF_INET as u8, &[(0, name)]);
}

#[test]
fn rules_that_appear_take_packets_off_the_short_way_at_once() {
    let told = (1..=ROUNDS).any(|number| {
        let it = Neighbours::start(&format!("news-rules{number}"), "echo");
        let talks = || {
            let before = it.verdict("redirected");
            it.talk().echoes("words");
            it.verdict("redirected") - before
        };
        assert!(talks() > 0);
        add_table(it.bed.node(1).netns());
        eventually("the pods are told of", || {
            let status = it.agent.status();
            let told = status["not_redirected"].to_string().matches("nftables").count();
            if told == 2 { Ok(()) } else { Err(status) }
        });
        assert_eq!(talks(), 0, "{}", it.agent.status());
        is_told(&it, "rules")
    });
    assert!(told);
}
