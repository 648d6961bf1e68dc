//! What the C library's allocator is told, so that an idle agent is small.

#![allow(unsafe_code, reason = "there is no other way to speak to the allocator")]

/// By default each thread gets a heap of its own, and keeps what others freed in it. A
/// few threads that mostly allocate from their caches can share. Before any thread.
pub(super) fn share_arenas() {
    #[cfg(target_env = "gnu")]
    // SAFETY: sets a number; any is valid, and the allocator locks what it changes.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 2);
    }
}

/// Gives the kernel back what is free. Reading a configuration leaves much of it.
pub(super) fn release() {
    #[cfg(target_env = "gnu")]
    // SAFETY: takes the allocator's own locks and touches only what nobody holds.
    unsafe {
        libc::malloc_trim(0);
    }
}
