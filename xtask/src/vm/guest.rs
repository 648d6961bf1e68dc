//! One boot of a guest, and what its console said.

use std::{
    fs::File,
    io::{BufRead as _, BufReader, Write as _},
    path::Path,
    process::{Child, Stdio},
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};

use super::{
    apt::{Found, Qemu},
    directory,
};

/// Emulation takes seconds for what takes milliseconds.
const PATIENCE: Duration = Duration::from_secs(600);
/// What the line of a feature starts with.
const ROW: &str = "feature: ";
const END: &str = "vm: smoke ended with ";

/// Whether a feature works on a kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    Works,
    /// Not on this kernel, and the agent says so.
    Off,
    Failed,
}

/// One line of `smoke`'s.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Row {
    pub(super) feature: String,
    pub(super) state: State,
    pub(super) why: String,
}

/// What one boot showed.
#[derive(Debug)]
pub(super) struct Outcome {
    pub(super) rows: Vec<Row>,
    /// `smoke` came to its end and was content.
    ended_well: bool,
}

impl Outcome {
    #[cfg(test)]
    pub(super) fn of(rows: Vec<Row>) -> Self {
        Self { rows, ended_well: true }
    }

    /// Whether something that has to work does not.
    pub(super) fn has_failed(&self) -> bool {
        !self.ended_well || self.rows.iter().any(|row| row.state == State::Failed)
    }

    /// For one line.
    pub(super) fn summary(&self) -> String {
        let count = |state| self.rows.iter().filter(|row| row.state == state).count();
        let [works, off, failed] = [State::Works, State::Off, State::Failed].map(count);
        let end =
            if self.ended_well || failed > 0 { "" } else { ", and it did not come to its end" };
        format!("{works} work, {off} off, {failed} failed{end}")
    }
}

/// Kills QEMU when the boot is over, however it is.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Boots `kernel` with `initrd`, and reads its console until it is done.
pub(super) fn run(qemu: &Qemu, kernel: &Found, initrd: &Path) -> Result<Outcome> {
    let mut command = qemu.command();
    command
        .args(["-accel", "tcg,thread=multi", "-cpu", "max", "-M", "q35", "-smp", "2"])
        .args(["-m", "2048", "-nodefaults", "-no-user-config", "-display", "none"])
        .args(["-serial", "stdio", "-no-reboot"])
        .args(["-append", "console=ttyS0 panic=-1 mitigations=off quiet"])
        .arg("-kernel")
        .arg(&kernel.image)
        .arg("-initrd")
        .arg(initrd)
        .stdin(Stdio::null())
        .stdout(Stdio::piped());
    let mut running = Running(command.spawn().context("start QEMU")?);
    let console = running.0.stdout.take().context("QEMU has no console")?;
    let path = directory()?.join(format!("console-{}.log", kernel.release));
    let mut log = File::create(&path).context("make the console's log")?;
    let (lines, received) = mpsc::channel();
    thread::spawn(move || {
        for line in BufReader::new(console).split(b'\n').map_while(Result::ok) {
            let line = String::from_utf8_lossy(&line).trim_end().to_owned();
            if lines.send(line).is_err() {
                return;
            }
        }
    });
    let end = Instant::now() + PATIENCE;
    let mut outcome = Outcome { rows: Vec::new(), ended_well: false };
    while let Ok(line) = received.recv_timeout(end.saturating_duration_since(Instant::now())) {
        writeln!(log, "{line}").context("write the console's log")?;
        if let Some(row) = line.strip_prefix(ROW).and_then(parse) {
            outcome.rows.push(row);
        }
        if let Some(code) = line.strip_prefix(END) {
            outcome.ended_well = code == "0";
        }
    }
    if outcome.has_failed() {
        println!("vm: {} did not go well; its console: {}", kernel.release, path.display());
    }
    Ok(outcome)
}

/// `feature`, `works | off | failed` and the reason, separated by tabs.
fn parse(line: &str) -> Option<Row> {
    let mut parts = line.splitn(3, '\t').map(str::to_owned);
    let feature = parts.next()?;
    let state = match parts.next()?.as_str() {
        "works" => State::Works,
        "off" => State::Off,
        _ => State::Failed,
    };
    Some(Row { feature, state, why: parts.next().unwrap_or_default() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_boot_that_says_nothing_has_failed() {
        let row = parse("capture\toff\tneeds 5.14").unwrap();
        assert_eq!((row.state, row.why.as_str()), (State::Off, "needs 5.14"));
        let outcome = |ended_well, rows| Outcome { rows, ended_well };
        assert!(outcome(false, vec![row.clone()]).has_failed());
        assert!(!outcome(true, vec![row.clone()]).has_failed());
        let failed = Row { state: State::Failed, ..row };
        assert!(outcome(true, vec![failed]).has_failed());
    }
}
