//! The guest's initramfs.

use std::{
    fs::{self, File},
    io::{self, Write as _},
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context, Result, ensure};

use super::{
    apt::{self, Found, output},
    directory,
};
use crate::build::workspace;

/// What runs in the guest besides busybox: found on the `PATH`, or built by us.
const PROGRAMS: [&str; 4] = ["ip", "tc", "curl", "nginx"];
const OURS: [&str; 3] = ["smoke", "peer", "mesh-agent"];

/// What a node needs that cloud kernels have as modules; those that a kernel has built in,
/// or not at all, are left out.
const MODULES: [&str; 7] =
    ["veth", "inet_diag", "tcp_diag", "sch_ingress", "cls_bpf", "tls", "sch_netem"];

const INIT: &str = include_str!("init.sh");

/// The part of the initramfs that is the same for every kernel.
#[derive(Debug)]
pub(super) struct Guest {
    busybox: PathBuf,
    archive: PathBuf,
}

impl Guest {
    /// Collects programs with the libraries they load.
    pub(super) fn prepare() -> Result<Self> {
        let busybox = apt::busybox()?;
        let root = empty(&directory()?.join("guest"))?;
        for path in [
            "bin",
            "dev",
            "etc",
            "mesh",
            "proc",
            "root",
            "run",
            "sys",
            "tmp",
            "var/log/nginx",
            "var/lib/nginx",
        ] {
            fs::create_dir_all(root.join(path)).context("make the guest's directories")?;
        }
        copy(&busybox, &root.join("bin/busybox"))?;
        symlink("busybox", root.join("bin/sh")).context("link the guest's shell")?;
        fs::write(root.join("etc/passwd"), "root:x:0:0:root:/root:/bin/sh\n")
            .context("write passwd")?;
        fs::write(root.join("etc/group"), "root:x:0:\nnogroup:x:65534:\n")
            .context("write group")?;
        fs::write(root.join("init"), INIT).context("write the guest's init")?;
        output(Command::new("chmod").arg("755").arg(root.join("init")))?;
        for name in PROGRAMS {
            let program = which(name)?;
            copy(&program, &root.join("bin").join(name))?;
            libraries(&program, &root)?;
        }
        for name in OURS {
            let program = workspace().join("target/debug").join(name);
            let there = root.join("mesh").join(name);
            output(Command::new("strip").arg("-o").arg(&there).arg(&program))?;
            libraries(&program, &root)?;
        }
        let archive = directory()?.join("guest.cpio");
        pack(&busybox, &root, &archive)?;
        Ok(Self { busybox, archive })
    }

    /// The initramfs for one kernel: a second archive with its modules follows the first.
    pub(super) fn initrd(&self, kernel: &Found) -> Result<PathBuf> {
        let root = empty(&directory()?.join("modules").join(&kernel.release))?;
        let into = root.join("modules");
        fs::create_dir_all(&into).context("make the directory for modules")?;
        let mut order = Vec::new();
        for name in MODULES {
            module(&kernel.modules, name, &into, &mut order)?;
        }
        fs::write(into.join("order"), order.join("\n") + "\n")
            .context("write the modules' order")?;
        let modules = root.with_extension("cpio");
        pack(&self.busybox, &root, &modules)?;
        let initrd = root.with_extension("initrd");
        let mut file = File::create(&initrd).context("make the initramfs")?;
        for part in [&self.archive, &modules] {
            let mut part = File::open(part).context("open a part of the initramfs")?;
            io::copy(&mut part, &mut file).context("write the initramfs")?;
        }
        Ok(initrd)
    }
}

/// Copies a module after those it needs; one that is there already, or that the kernel
/// does not have as a file, is passed over.
fn module(from: &Path, name: &str, into: &Path, order: &mut Vec<String>) -> Result<()> {
    let Some(file) = walk(from, name)? else { return Ok(()) };
    if order.iter().any(|known| known == name) {
        return Ok(());
    }
    let there = into.join(format!("{name}.ko"));
    if file.extension().is_some_and(|extension| extension == "xz") {
        let unpacked = File::create(&there).context("make a module")?;
        let status = Command::new("xz").arg("-dc").arg(&file).stdout(unpacked).status();
        ensure!(status.is_ok_and(|s| s.success()), "`xz -dc {}` failed", file.display());
    } else {
        copy(&file, &there)?;
    }
    let bytes = fs::read(&there).context("read a module")?;
    for needed in depends(&bytes) {
        module(from, &needed, into, order)?;
    }
    order.push(name.to_owned());
    Ok(())
}

/// A module's `depends=`, from its `.modinfo` section.
fn depends(module: &[u8]) -> Vec<String> {
    const KEY: &[u8] = b"\0depends=";
    let Some(at) = module.windows(KEY.len()).position(|window| window == KEY) else {
        return Vec::new();
    };
    let value = module[at + KEY.len()..].split(|&byte| byte == 0).next().unwrap_or_default();
    let value = String::from_utf8_lossy(value).into_owned();
    value.split(',').filter(|name| !name.is_empty()).map(str::to_owned).collect()
}

/// Finds `<name>.ko[.xz]`; module names have `_` where some file names have `-`.
fn walk(directory: &Path, name: &str) -> Result<Option<PathBuf>> {
    for entry in fs::read_dir(directory).with_context(|| format!("list {}", directory.display()))? {
        let entry = entry.context("list modules")?;
        let path = entry.path();
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            if let Some(found) = walk(&path, name)? {
                return Ok(Some(found));
            }
            continue;
        }
        let file = entry.file_name().to_string_lossy().replace('-', "_");
        if file.strip_prefix(name).is_some_and(|rest| rest == ".ko" || rest == ".ko.xz") {
            return Ok(Some(path));
        }
    }
    Ok(None)
}

/// Copies the libraries of `program` to where it looks for them.
fn libraries(program: &Path, root: &Path) -> Result<()> {
    for word in output(Command::new("ldd").arg(program))?.split_whitespace() {
        let there = root.join(word.trim_start_matches('/'));
        if word.starts_with('/') && !there.exists() {
            fs::create_dir_all(there.parent().context("a library in no directory")?)
                .context("make a directory for libraries")?;
            copy(Path::new(word), &there)?;
        }
    }
    Ok(())
}

fn which(name: &str) -> Result<PathBuf> {
    let places = ["/usr/sbin", "/usr/bin", "/sbin", "/bin"];
    let found = places.iter().map(|place| Path::new(place).join(name)).find(|p| p.is_file());
    found.with_context(|| format!("`{name}` is not installed"))
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    fs::copy(from, to).map(drop).with_context(|| format!("copy {}", from.display()))
}

fn empty(directory: &Path) -> Result<PathBuf> {
    if directory.exists() {
        fs::remove_dir_all(directory).with_context(|| format!("empty {}", directory.display()))?;
    }
    fs::create_dir_all(directory).with_context(|| format!("make {}", directory.display()))?;
    Ok(directory.to_owned())
}

/// Packs a directory as the kernel wants it (Documentation/driver-api/early-userspace).
fn pack(busybox: &Path, root: &Path, archive: &Path) -> Result<()> {
    let names = output(Command::new("find").arg(".").current_dir(root))?;
    let file = File::create(archive).context("make an archive")?;
    let mut cpio = Command::new(busybox)
        .args(["cpio", "-o", "-H", "newc"])
        .current_dir(root)
        .stdin(Stdio::piped())
        .stdout(file)
        .stderr(Stdio::null())
        .spawn()
        .context("start cpio")?;
    let mut input = cpio.stdin.take().context("cpio has no input")?;
    input.write_all(names.as_bytes()).context("tell cpio what to pack")?;
    drop(input);
    let status = cpio.wait().context("wait for cpio")?;
    ensure!(status.success(), "cpio failed ({status})");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_module_says_what_it_needs() {
        let with = |list: &str| depends(format!("junk\0depends={list}\0name=x\0").as_bytes());
        assert_eq!(with("inet_diag,udp_tunnel"), ["inet_diag", "udp_tunnel"]);
        assert!(with("").is_empty());
        assert!(depends(b"no section").is_empty());
    }
}
