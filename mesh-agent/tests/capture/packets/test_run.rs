//! `bpf(2)`, for what aya has no calls.

/// `union bpf_attr`, `test`.
#[repr(C)]
#[derive(Default)]
pub(super) struct Attributes {
    pub(super) program: i32,
    pub(super) return_value: u32,
    pub(super) data_size_in: u32,
    pub(super) data_size_out: u32,
    pub(super) data_in: u64,
    pub(super) data_out: u64,
    pub(super) repeat: u32,
    pub(super) duration: u32,
    pub(super) context_size_in: u32,
    pub(super) context_size_out: u32,
    pub(super) context_in: u64,
    pub(super) context_out: u64,
    pub(super) flags: u32,
    pub(super) cpu: u32,
    pub(super) batch_size: u32,
    pub(super) _pad: u32,
}

pub(super) fn bpf<T>(command: i64, attributes: &mut T) -> i32 {
    // SAFETY: the structure of that command by its true size; what it points to outlives
    // the call.
    let result = unsafe {
        libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(attributes), size_of::<T>())
    };
    assert!(result >= 0, "{}", std::io::Error::last_os_error());
    i32::try_from(result).unwrap()
}

pub(super) fn address_of<T>(values: &[T]) -> u64 {
    values.as_ptr().expose_provenance() as u64
}

pub(super) const BPF_PROG_TEST_RUN: i64 = 10;
