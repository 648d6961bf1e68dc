//! The mesh's eBPF programs. Each reads its context, asks `mesh_common::decide`,
//! acts, and counts a verdict; the agent's `capture` room loads and attaches them.

#![no_std]
#![no_main]
#![feature(asm_experimental_arch)]

mod authorize;
mod connect;
mod ctx;
mod getpeername;
mod guard;
mod leg;
mod lookup;
mod maps;
mod probe;
mod sk_msg;
mod sockops;
mod splice;

#[cfg(not(test))]
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo) -> ! {
    loop {}
}

/// Some helpers are for programs under a GPL-compatible licence only.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

/// An agent that embeds an object of other sources says so.
#[unsafe(link_section = "mesh_abi")]
#[unsafe(no_mangle)]
static MESH_ABI: [u8; 16] = mesh_common::abi::ABI_TAG;
