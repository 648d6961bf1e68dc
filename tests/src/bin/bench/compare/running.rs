//! What each contender runs with, exactly: command lines, and the files that they name.

use std::{
    fs,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use tests::Process;

use super::{lane::Settings, machine::Machine};

/// The samples' file.
pub(crate) const SAMPLES: &str = "samples.jsonl";
const MACHINE: &str = "machine.json";
const PROGRAMS: &str = "programs.json";
const PROGRAMS_AS_SHIPPED: &str = "programs-as-shipped.json";

/// What a run keeps, its report apart.
pub(crate) const FILES: [&str; 4] = [SAMPLES, MACHINE, PROGRAMS, PROGRAMS_AS_SHIPPED];

/// One program of the comparison.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Program {
    /// Its lane, or what else it is for.
    pub(crate) of: String,
    pub(crate) command: String,
    /// Names and texts, without private keys.
    pub(crate) files: Vec<(String, String)>,
}

impl Program {
    pub(crate) fn of(of: &str, process: &Process) -> Self {
        let line = fs::read(format!("/proc/{}/cmdline", process.pid())).unwrap_or_default();
        let line = String::from_utf8_lossy(&line);
        // nginx writes its own, with spaces.
        let arguments: Vec<&str> = line.split(['\0', ' ']).filter(|p| !p.is_empty()).collect();
        let named = arguments.iter().skip(1).map(Path::new).flat_map(files);
        let files = named
            .filter_map(|file| {
                let name = file.file_name()?.to_string_lossy().into_owned();
                Some((name, without_keys(&fs::read_to_string(file).ok()?)))
            })
            .collect();
        Self { of: of.to_owned(), command: arguments.join(" "), files }
    }
}

/// The configuration at `path`: that file, or each in that directory.
fn files(path: &Path) -> Vec<PathBuf> {
    if path.is_file() {
        return vec![path.to_owned()];
    }
    let is_config = path.file_name().is_some_and(|name| name == "config");
    let Some(listed) = is_config.then(|| fs::read_dir(path).ok()).flatten() else {
        return Vec::new();
    };
    let mut files: Vec<PathBuf> =
        listed.filter_map(|entry| Some(entry.ok()?.path()).filter(|path| path.is_file())).collect();
    files.sort();
    files
}

fn without_keys(text: &str) -> String {
    const BEGIN: &str = "-----BEGIN PRIVATE KEY-----";
    const END: &str = "-----END PRIVATE KEY-----";
    let mut pieces = text.split(BEGIN);
    let first = pieces.next().unwrap_or_default().to_owned();
    pieces.fold(first, |text, piece| {
        text + "(a private key)" + piece.split_once(END).map_or("", |(_, rest)| rest)
    })
}

/// Where a run keeps them, for a report that is made later.
fn file(out: &Path, settings: Settings) -> PathBuf {
    out.join(match settings {
        Settings::Equal => PROGRAMS,
        Settings::AsShipped => PROGRAMS_AS_SHIPPED,
    })
}

pub(crate) fn keep(out: &Path, settings: Settings, programs: &[Program]) {
    let text = serde_json::to_string_pretty(programs).expect("it is JSON");
    fs::write(file(out, settings), text).expect("write what runs");
}

/// What the run is made on, for a report that is made elsewhere or later.
pub(crate) fn keep_machine(out: &Path, machine: &Machine) {
    let text = serde_json::to_string_pretty(machine).expect("it is JSON");
    fs::write(out.join(MACHINE), text).expect("write what it runs on");
}

pub(crate) fn kept_machine(out: &Path) -> Option<Machine> {
    serde_json::from_str(&fs::read_to_string(out.join(MACHINE)).ok()?).ok()
}

/// Nothing of a run that there was none of.
pub(crate) fn kept(out: &Path, settings: Settings) -> Vec<Program> {
    let text = fs::read_to_string(file(out, settings)).unwrap_or_default();
    serde_json::from_str(&text).unwrap_or_default()
}
