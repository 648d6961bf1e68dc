//! The bpf(2) commands that aya does not offer.

use std::{
    ffi::CString,
    io,
    os::{
        fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    path::Path,
};

/// What a link is attached to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum LinkTarget {
    /// A cgroup, by its ID (which is its inode); 0 when it is gone.
    Cgroup(u64),
    /// A network namespace, by its inode; 0 when it is gone.
    Netns(u32),
    /// A network interface, by its index in its namespace; 0 when it is gone.
    Interface(u32),
    /// Something else.
    Other,
}

const BPF_MAP_GET_NEXT_KEY: libc::c_long = 4;
const BPF_OBJ_PIN: libc::c_long = 6;
const BPF_OBJ_GET: libc::c_long = 7;
const BPF_PROG_QUERY: libc::c_long = 16;
const BPF_OBJ_GET_INFO_BY_FD: libc::c_long = 15;
const BPF_LINK_CREATE: libc::c_long = 28;
const BPF_LINK_UPDATE: libc::c_long = 29;
const BPF_LINK_DETACH: libc::c_long = 34;
const BPF_F_QUERY_EFFECTIVE: u32 = 1;
const BPF_LINK_TYPE_CGROUP: u32 = 3;
const BPF_LINK_TYPE_NETNS: u32 = 5;
const BPF_LINK_TYPE_TCX: u32 = 11;

/// `union bpf_attr`, `BPF_OBJ_*`.
#[repr(C)]
struct PinAttributes {
    pathname: u64,
    bpf_fd: u32,
    file_flags: u32,
}

/// Opens what is pinned at `path`.
pub(super) fn open_pin(path: &Path) -> io::Result<OwnedFd> {
    let name = CString::new(path.as_os_str().as_bytes())?;
    let pathname = name.as_ptr().expose_provenance() as u64;
    let fd = bpf(BPF_OBJ_GET, &mut PinAttributes { pathname, bpf_fd: 0, file_flags: 0 })?;
    // SAFETY: the kernel has just made this descriptor for us alone.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Pins a program, map or link at `path`, where there is nothing.
pub(super) fn pin_object(object: BorrowedFd<'_>, path: &Path) -> io::Result<()> {
    let name = CString::new(path.as_os_str().as_bytes())?;
    let pathname = name.as_ptr().expose_provenance() as u64;
    let bpf_fd = object.as_raw_fd().cast_unsigned();
    bpf(BPF_OBJ_PIN, &mut PinAttributes { pathname, bpf_fd, file_flags: 0 }).map(drop)
}

/// Counts a map's keys; not more than `most`, for a map that changes meanwhile may be
/// walked from its start again.
pub(super) fn count_keys(map: BorrowedFd<'_>, key_size: u32, most: u32) -> u32 {
    /// `union bpf_attr`, `BPF_MAP_*_ELEM`.
    #[repr(C)]
    struct Attributes {
        map_fd: u32,
        _pad: u32,
        key: u64,
        next_key: u64,
        flags: u64,
    }
    let mut keys = [vec![0_u8; key_size as usize], vec![0_u8; key_size as usize]];
    for count in 0..most {
        let [key, next_key] = &mut keys;
        let key = if count == 0 { 0 } else { key.as_ptr().expose_provenance() as u64 };
        let mut attributes = Attributes {
            map_fd: map.as_raw_fd().cast_unsigned(),
            _pad: 0,
            key,
            next_key: next_key.as_mut_ptr().expose_provenance() as u64,
            flags: 0,
        };
        if bpf(BPF_MAP_GET_NEXT_KEY, &mut attributes).is_err() {
            return count;
        }
        keys.swap(0, 1);
    }
    most
}

/// Makes an attached link run `program` from now on: no connection sees neither.
pub(super) fn update_link(link: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    /// `union bpf_attr`, `link_update`.
    #[repr(C)]
    struct Attributes {
        link_fd: u32,
        new_prog_fd: u32,
        flags: u32,
        old_prog_fd: u32,
    }
    let mut attributes = Attributes {
        link_fd: link.as_raw_fd().cast_unsigned(),
        new_prog_fd: program.as_raw_fd().cast_unsigned(),
        flags: 0,
        old_prog_fd: 0,
    };
    bpf(BPF_LINK_UPDATE, &mut attributes).map(drop)
}

/// Takes a link's program off at once: where only its last pin goes, the kernel does so when
/// it gets to it.
///
/// Since Linux 5.9.
pub(super) fn detach_link(link: BorrowedFd<'_>) -> io::Result<()> {
    /// `union bpf_attr`, `link_detach`.
    #[repr(C)]
    struct Attributes {
        link_fd: u32,
    }
    bpf(BPF_LINK_DETACH, &mut Attributes { link_fd: link.as_raw_fd().cast_unsigned() }).map(drop)
}

/// Asks for a link of no program to nothing: EBADF from a kernel that knows links.
pub(super) fn create_no_link() -> io::Result<()> {
    /// `union bpf_attr`, `link_create`.
    #[repr(C)]
    struct Attributes {
        prog_fd: u32,
        target_fd: u32,
        attach_type: u32,
        flags: u32,
    }
    let mut attributes =
        Attributes { prog_fd: u32::MAX, target_fd: u32::MAX, attach_type: 0, flags: 0 };
    let link = bpf(BPF_LINK_CREATE, &mut attributes)?;
    // SAFETY: the kernel has just made this descriptor for us alone.
    drop(unsafe { OwnedFd::from_raw_fd(link) });
    Ok(())
}

/// Asks the kernel what a link is attached to.
pub(super) fn link_target(link: BorrowedFd<'_>) -> io::Result<LinkTarget> {
    /// `struct bpf_link_info`, with room for kernels that know more.
    #[repr(C, align(8))]
    struct Info {
        kind: u32,
        id: u32,
        program_id: u32,
        _pad: u32,
        target: [u32; 60],
    }
    /// `union bpf_attr`, `info`.
    #[repr(C)]
    struct Attributes {
        bpf_fd: u32,
        info_len: u32,
        info: u64,
    }
    let mut info = Info { kind: 0, id: 0, program_id: 0, _pad: 0, target: [0; 60] };
    let mut attributes = Attributes {
        bpf_fd: link.as_raw_fd().cast_unsigned(),
        info_len: size_of::<Info>() as u32,
        info: (&raw mut info).expose_provenance() as u64,
    };
    bpf(BPF_OBJ_GET_INFO_BY_FD, &mut attributes)?;
    let [low, high, ..] = info.target;
    Ok(match info.kind {
        BPF_LINK_TYPE_CGROUP => LinkTarget::Cgroup(u64::from(high) << 32 | u64::from(low)),
        BPF_LINK_TYPE_NETNS => LinkTarget::Netns(low),
        BPF_LINK_TYPE_TCX => LinkTarget::Interface(low),
        _ => LinkTarget::Other,
    })
}

/// IDs of the programs that run for `attach_type` in a cgroup, inherited ones too.
pub(super) fn attached_programs(cgroup: BorrowedFd<'_>, attach_type: u32) -> io::Result<Vec<u32>> {
    /// `union bpf_attr`, `query`.
    #[repr(C)]
    struct Attributes {
        target_fd: u32,
        attach_type: u32,
        query_flags: u32,
        attach_flags: u32,
        prog_ids: u64,
        prog_cnt: u32,
        _pad: u32,
    }
    let mut ids = [0_u32; 64];
    let mut attributes = Attributes {
        target_fd: cgroup.as_raw_fd().cast_unsigned(),
        attach_type,
        query_flags: BPF_F_QUERY_EFFECTIVE,
        attach_flags: 0,
        prog_ids: (&raw mut ids).expose_provenance() as u64,
        prog_cnt: ids.len() as u32,
        _pad: 0,
    };
    bpf(BPF_PROG_QUERY, &mut attributes)?;
    Ok(ids.into_iter().take(attributes.prog_cnt as usize).collect())
}

/// bpf(2). `attributes` must be laid out as the kernel wants them for `command`.
fn bpf<T>(command: libc::c_long, attributes: &mut T) -> io::Result<i32> {
    // SAFETY: the callers above pass the structure that belongs to the
    // command, by its true size; pointers inside are to locals that outlive the call.
    let result = unsafe {
        libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(attributes), size_of::<T>())
    };
    i32::try_from(result).ok().filter(|result| *result >= 0).ok_or_else(io::Error::last_os_error)
}
