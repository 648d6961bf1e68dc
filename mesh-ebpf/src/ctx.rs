//! Reads and writes of program contexts, one 32-bit word at a time.
//!
//! The verifier refuses a context pointer that the compiler moved ("dereference
//! of modified ctx ptr"), and wider accesses than the field allows: volatile
//! word accesses keep the compiler from both.

use core::ptr;

use aya_ebpf::{
    bindings::{bpf_sock, bpf_sock_addr},
    helpers::bpf_get_netns_cookie,
    programs::SockAddrContext,
};
use mesh_common::address::Address;

/// `AF_INET6` on Linux.
pub const AF_INET6: u32 = 10;
/// `IPPROTO_TCP`.
pub const IPPROTO_TCP: u32 = 6;

/// Reads a field of a context in one access.
macro_rules! read {
    ($place:expr) => {
        // SAFETY: the kernel passed a valid context for the length of the program.
        unsafe { core::ptr::read_volatile(core::ptr::addr_of!($place)) }
    };
}
pub(crate) use read;

/// The socket of a sock_addr program.
#[inline(always)]
pub fn socket(ctx: &SockAddrContext) -> *mut bpf_sock {
    // SAFETY: every sock_addr context carries its socket in this union.
    unsafe { (*ctx.sock_addr).__bindgen_anon_1.sk }
}

/// `SO_MARK` of the socket of a sock_addr program.
#[inline(always)]
pub fn mark(ctx: &SockAddrContext) -> u32 {
    let sk = socket(ctx);
    if sk.is_null() {
        return 0;
    }
    // SAFETY: not null, and the kernel holds it for the length of the program.
    unsafe { ptr::read_volatile(ptr::addr_of!((*sk).mark)) }
}

/// Cookie of the namespace that the socket of a sock_addr program lives in.
#[inline(always)]
pub fn netns_cookie(ctx: &SockAddrContext) -> u64 {
    // SAFETY: the helper takes the program's own context.
    unsafe { bpf_get_netns_cookie(ctx.sock_addr.cast()) }
}

/// The address in the sockaddr that the application passed or is shown.
#[inline(always)]
pub fn user_address(ctx: &SockAddrContext, v6: bool) -> Address {
    let addr: *mut bpf_sock_addr = ctx.sock_addr;
    if v6 {
        Address([
            read!((*addr).user_ip6[0]),
            read!((*addr).user_ip6[1]),
            read!((*addr).user_ip6[2]),
            read!((*addr).user_ip6[3]),
        ])
    } else {
        Address::from_v4_be(read!((*addr).user_ip4))
    }
}

/// The port in that sockaddr, host byte order.
#[inline(always)]
pub fn user_port(ctx: &SockAddrContext) -> u16 {
    u16::from_be(read!((*ctx.sock_addr).user_port) as u16)
}

/// Replaces address and port of that sockaddr.
#[inline(always)]
pub fn set_user_address(ctx: &SockAddrContext, v6: bool, address: &Address, port: u16) {
    let addr: *mut bpf_sock_addr = ctx.sock_addr;
    // SAFETY: these fields are writable in connect and getpeername programs of the
    // family that `v6` tells, word by word.
    unsafe {
        if v6 {
            ptr::write_volatile(ptr::addr_of_mut!((*addr).user_ip6[0]), address.0[0]);
            ptr::write_volatile(ptr::addr_of_mut!((*addr).user_ip6[1]), address.0[1]);
            ptr::write_volatile(ptr::addr_of_mut!((*addr).user_ip6[2]), address.0[2]);
            ptr::write_volatile(ptr::addr_of_mut!((*addr).user_ip6[3]), address.0[3]);
        } else {
            ptr::write_volatile(ptr::addr_of_mut!((*addr).user_ip4), address.0[3]);
        }
        ptr::write_volatile(ptr::addr_of_mut!((*addr).user_port), u32::from(port.to_be()));
    }
}

/// The address that the socket is bound to; `::` or 0.0.0.0 where it is not.
#[inline(always)]
pub fn bound_address(ctx: &SockAddrContext, v6: bool) -> Address {
    let sk = socket(ctx);
    if sk.is_null() {
        return Address::UNSPECIFIED;
    }
    // SAFETY: not null, and the kernel holds it for the length of the program.
    unsafe {
        if v6 {
            Address([
                ptr::read_volatile(ptr::addr_of!((*sk).src_ip6[0])),
                ptr::read_volatile(ptr::addr_of!((*sk).src_ip6[1])),
                ptr::read_volatile(ptr::addr_of!((*sk).src_ip6[2])),
                ptr::read_volatile(ptr::addr_of!((*sk).src_ip6[3])),
            ])
        } else {
            Address::from_v4_be(ptr::read_volatile(ptr::addr_of!((*sk).src_ip4)))
        }
    }
}
