//! `cgroup/getpeername4` and `6`: the application sees the address it asked for.

use aya_ebpf::{macros::cgroup_sock_addr, programs::SockAddrContext};
use mesh_common::verdict::Verdict;

use crate::{
    ctx,
    maps::{ASKED, count},
};

#[cgroup_sock_addr(getpeername4)]
pub fn mesh_getpeername4(ctx: SockAddrContext) -> i32 {
    restore(&ctx, false)
}

#[cgroup_sock_addr(getpeername6)]
pub fn mesh_getpeername6(ctx: SockAddrContext) -> i32 {
    restore(&ctx, true)
}

/// Always 1: the kernel takes nothing else from this hook.
#[inline(always)]
fn restore(ctx: &SockAddrContext, v6: bool) -> i32 {
    // SAFETY: the context is this program's own and carries a socket.
    let asked = unsafe { ASKED.get_ptr_mut(ctx) };
    if !asked.is_null() {
        // SAFETY: not null, and the storage lives as long as the socket.
        let asked = unsafe { *asked };
        ctx::set_user_address(ctx, v6, &asked.address, asked.port as u16);
        count(Verdict::PeerNameRestored);
    }
    1
}
