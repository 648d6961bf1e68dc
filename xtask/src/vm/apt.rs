//! Packages of Debian suites that the machine does not use, unpacked and not installed.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context, Result, ensure};

use super::{Kernel, directory, find, numbers};

const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";
const MIRROR: &str = "http://deb.debian.org/debian";
const SECURITY_MIRROR: &str = "http://deb.debian.org/debian-security";

/// An unpacked QEMU.
#[derive(Debug)]
pub(super) struct Qemu {
    root: PathBuf,
}

/// An unpacked kernel.
#[derive(Debug)]
pub(super) struct Found {
    /// As `uname -r`.
    pub(super) release: String,
    pub(super) image: PathBuf,
    pub(super) modules: PathBuf,
}

/// QEMU for x86. Its package could replace another QEMU of the machine's, so it is not
/// installed.
pub(super) fn qemu() -> Result<Qemu> {
    let qemu = Qemu { root: directory()?.join("qemu") };
    if !qemu.root.exists() {
        println!("vm: fetching QEMU");
        let simulated = output(Command::new("apt-get").args([
            "-s",
            "install",
            "--no-install-recommends",
            "qemu-system-x86",
        ]))?;
        let packages = simulated
            .lines()
            .filter_map(|line| line.strip_prefix("Inst ")?.split_whitespace().next())
            .collect::<Vec<_>>();
        unpack(&[], &packages, &qemu.root)?;
    }
    Ok(qemu)
}

impl Qemu {
    /// The emulator, with its libraries and firmware.
    pub(super) fn command(&self) -> Command {
        let inside = |path: &str| self.root.join(path).display().to_string();
        let libraries = ["usr/lib/x86_64-linux-gnu", "lib/x86_64-linux-gnu"].map(inside).join(":");
        let mut command = Command::new(self.root.join("usr/bin/qemu-system-x86_64"));
        command.env("LD_LIBRARY_PATH", libraries);
        for firmware in ["usr/share/seabios", "usr/share/qemu"] {
            command.arg("-L").arg(self.root.join(firmware));
        }
        command
    }
}

/// busybox, linked statically.
pub(super) fn busybox() -> Result<PathBuf> {
    let root = directory()?.join("busybox");
    if !root.exists() {
        unpack(&[], &["busybox-static"], &root)?;
    }
    find(&[root.join("usr/bin"), root.join("bin")], "busybox")
}

/// The newest cloud kernel of a series.
pub(super) fn kernel(kernel: Kernel) -> Result<Found> {
    let root = directory()?.join("kernels").join(kernel.version);
    if !root.exists() {
        println!("vm: fetching Linux {}", kernel.version);
        let state = State::of(kernel)?;
        let names = output(
            Command::new("apt-cache").args(&state.options).args(["pkgnames", "linux-image-"]),
        )?;
        let image = newest(&names, kernel.version)
            .with_context(|| format!("no kernel {} in {:?}", kernel.version, kernel.suites))?;
        // Since 6.19 the image's package has no files: they are in packages beside it.
        let about = output(Command::new("apt-cache").args(&state.options).args(["show", image]))?;
        let release = image.trim_start_matches("linux-image-");
        let beside = ["linux-binary-", "linux-modules-"].map(|kind| format!("{kind}{release}"));
        let mut packages = vec![image];
        packages.extend(beside.iter().map(String::as_str).filter(|name| about.contains(name)));
        unpack(&state.options, &packages, &root)?;
    }
    let places = ["lib/modules", "usr/lib/modules"].map(|path| root.join(path));
    let modules = find(&places, kernel.version)?;
    let image = find(&[root.join("boot"), modules.clone()], "vmlinuz")?;
    let release = modules.file_name().unwrap_or_default().to_string_lossy().into_owned();
    Ok(Found { release, image, modules })
}

/// Among package names, the cloud image of `series` with the highest version.
fn newest<'a>(names: &'a str, series: &str) -> Option<&'a str> {
    let version = |name: &str| {
        let version = name.strip_prefix("linux-image-")?.strip_suffix("-cloud-amd64")?;
        let rest = version.strip_prefix(series)?;
        // `6.1` is the series of `6.1.0-56` and not of `6.12`, and itself a meta package.
        rest.starts_with('.').then(|| numbers(version))
    };
    names.lines().filter(|name| version(name).is_some()).max_by_key(|name| version(name))
}

/// Lists of packages apart from the machine's own.
struct State {
    options: Vec<String>,
}

impl State {
    fn of(kernel: Kernel) -> Result<Self> {
        let root = directory()?.join("apt").join(kernel.version);
        for part in ["state/lists/partial", "cache/archives/partial"] {
            fs::create_dir_all(root.join(part)).context("make apt's directories")?;
        }
        let [debian, security] = mirrors();
        let lines = kernel.suites.iter().map(|suite| {
            let mirror = if suite.ends_with("-security") { &security } else { &debian };
            format!("deb [signed-by={KEYRING}] {mirror} {suite} main\n")
        });
        let list = root.join("sources.list");
        fs::write(&list, lines.collect::<String>()).context("write sources.list")?;
        let path = |part: &str| root.join(part).display().to_string();
        let options: Vec<String> = [
            format!("Dir::State={}", path("state")),
            "Dir::State::status=/dev/null".to_owned(),
            format!("Dir::Cache={}", path("cache")),
            format!("Dir::Etc::sourcelist={}", list.display()),
            "Dir::Etc::sourceparts=-".to_owned(),
            "Acquire::Languages=none".to_owned(),
            "Acquire::IndexTargets::deb::DEP-11::DefaultEnabled=false".to_owned(),
            // The archive of a suite that has ended is not signed anew.
            "Acquire::Check-Valid-Until=false".to_owned(),
        ]
        .into_iter()
        .flat_map(|option| ["-o".to_owned(), option])
        .collect();
        output(Command::new("apt-get").args(&options).arg("update"))?;
        Ok(Self { options })
    }
}

/// The Debian mirrors that the machine uses, for the archive and for its security updates.
fn mirrors() -> [String; 2] {
    let mut files = vec![PathBuf::from("/etc/apt/sources.list")];
    let parts = fs::read_dir("/etc/apt/sources.list.d").into_iter().flatten();
    files.extend(parts.filter_map(Result::ok).map(|entry| entry.path()));
    let text: String = files.iter().filter_map(|file| fs::read_to_string(file).ok()).collect();
    mirrors_in(&text)
}

fn mirrors_in(text: &str) -> [String; 2] {
    let mut words = text
        .lines()
        .filter(|line| !line.trim_start().starts_with('#'))
        .flat_map(str::split_whitespace)
        .filter(|word| word.starts_with("http"));
    let all: Vec<&str> = words.by_ref().map(|word| word.trim_end_matches('/')).collect();
    [("/debian", MIRROR), ("/debian-security", SECURITY_MIRROR)].map(|(end, default)| {
        let found = all.iter().find(|word| word.ends_with(end));
        (*found.unwrap_or(&default)).to_owned()
    })
}

/// Downloads packages and unpacks them in `root`, which is there only once all is in it.
fn unpack(options: &[String], packages: &[&str], root: &Path) -> Result<()> {
    let partial = root.with_extension("partial");
    let archives = partial.join("archives");
    if partial.exists() {
        fs::remove_dir_all(&partial).context("remove a partial download")?;
    }
    fs::create_dir_all(&archives).with_context(|| format!("make {}", archives.display()))?;
    let mut download = Command::new("apt-get");
    download.args(options).args(["-q", "-o", "APT::Sandbox::User=root", "download"]).args(packages);
    output(download.current_dir(&archives))?;
    for entry in fs::read_dir(&archives).context("list the archives")?.filter_map(Result::ok) {
        output(Command::new("dpkg-deb").arg("-x").arg(entry.path()).arg(&partial))?;
    }
    fs::remove_dir_all(&archives).context("remove the archives")?;
    fs::rename(&partial, root).with_context(|| format!("rename to {}", root.display()))
}

/// Runs a program for its output.
pub(super) fn output(command: &mut Command) -> Result<String> {
    let shown = format!("{command:?}");
    let ran = command.stdin(Stdio::null()).output();
    let ran = ran.with_context(|| format!("`{shown}` did not start"))?;
    let errors = String::from_utf8_lossy(&ran.stderr);
    ensure!(ran.status.success(), "`{shown}` failed ({}): {}", ran.status, errors.trim());
    Ok(String::from_utf8_lossy(&ran.stdout).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_cloud_kernel_of_a_series_is_taken() {
        let names = "linux-image-6.1-cloud-amd64\nlinux-image-6.1.0-9-cloud-amd64\n\
                     linux-image-6.1.0-56-cloud-amd64\nlinux-image-6.1.0-57-amd64\n\
                     linux-image-6.1.0-58-cloud-amd64-unsigned\nlinux-image-6.12.90+deb13-cloud-amd64\n";
        assert_eq!(newest(names, "6.1"), Some("linux-image-6.1.0-56-cloud-amd64"));
        assert_eq!(newest(names, "6.12"), Some("linux-image-6.12.90+deb13-cloud-amd64"));
        assert_eq!(newest(names, "7.3"), None);
    }

    #[test]
    fn the_machines_own_mirrors_are_used() {
        let text = "# deb http://old.example/debian x\nURIs: http://near.example/debian/\n\
                    deb [arch=amd64] http://near.example/debian-security y main\n";
        let expected = ["http://near.example/debian", "http://near.example/debian-security"];
        assert_eq!(mirrors_in(text), expected);
        assert_eq!(mirrors_in("deb http://other.example/packages x"), [MIRROR, SECURITY_MIRROR]);
    }
}
