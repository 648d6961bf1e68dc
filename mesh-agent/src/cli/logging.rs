//! The agent's own log, on standard error.
//!
//! Whoever logs never waits: a reader of standard error that is stuck, or a disk that is
//! full, must not hold up a connection. A thread writes; what it can't keep up with is
//! dropped and counted.

use std::{
    io::{self, Write},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
        mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel},
    },
    time::{Duration, Instant},
};

use anyhow::{Context as _, anyhow};
use tracing_subscriber::{EnvFilter, fmt::MakeWriter};

use crate::{
    config::{LogConfig, LogFormat},
    observe::printable::escaped,
};

/// Lines that wait to be written.
const QUEUE: usize = 8192;

/// How long the last lines get at the end.
const GRACE: Duration = Duration::from_secs(1);

/// How often the writer looks whether it is to end.
const POLL: Duration = Duration::from_millis(50);

/// Starts logging. Once per process. Dropping what it returns writes the last lines.
pub(super) fn start(config: &LogConfig) -> anyhow::Result<Flush> {
    let filter: EnvFilter = config.filter.parse()?;
    let (lines, flush) = to(io::stderr()).context("logging can't be started")?;
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(lines);
    let started = match config.format {
        LogFormat::Text => {
            let colour = io::IsTerminal::is_terminal(&io::stderr());
            builder.with_ansi(colour).try_init()
        }
        LogFormat::Json => builder.json().flatten_event(true).try_init(),
    };
    started.map_err(|error| anyhow!("logging can't be started: {error}"))?;
    Ok(flush)
}

/// A queue of lines and the thread that writes them to `out`.
fn to(out: impl Write + Send + 'static) -> io::Result<(Lines, Flush)> {
    let (queue, lines) = sync_channel(QUEUE);
    let counts = Arc::new(Counts::default());
    let theirs = Arc::clone(&counts);
    std::thread::Builder::new()
        .name("log".into())
        .spawn(move || write_all(out, &lines, &theirs))?;
    Ok((Lines { queue, counts: Arc::clone(&counts) }, Flush(counts)))
}

#[derive(Debug, Default)]
struct Counts {
    queued: AtomicU64,
    written: AtomicU64,
    lost: AtomicU64,
}

/// Takes each line whole, as `tracing_subscriber` hands it over.
#[derive(Debug, Clone)]
struct Lines {
    queue: SyncSender<Vec<u8>>,
    counts: Arc<Counts>,
}

impl Write for Lines {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        // Counted first, so that whoever flushes never sees more written than queued.
        self.counts.queued.fetch_add(1, Ordering::Relaxed);
        if self.queue.try_send(one_line(line)).is_err() {
            self.counts.lost.fetch_add(1, Ordering::Relaxed);
            self.counts.written.fetch_add(1, Ordering::Release);
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A line as it may be shown: names in it are others'. Colours are ours, `tracing_subscriber`
/// escapes those of others.
fn one_line(line: &[u8]) -> Vec<u8> {
    let text = String::from_utf8_lossy(line);
    let (text, end) = match text.strip_suffix('\n') {
        Some(text) => (text, "\n"),
        None => (&*text, ""),
    };
    let mut shown = escaped(text, |c| matches!(c, '\u{1b}' | '\t')).into_owned();
    shown.push_str(end);
    shown.into_bytes()
}

impl<'a> MakeWriter<'a> for Lines {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        self.clone()
    }
}

/// Waits for the last lines when it is dropped, but not for ever.
#[derive(Debug)]
pub(super) struct Flush(Arc<Counts>);

impl Drop for Flush {
    fn drop(&mut self) {
        let until = Instant::now() + GRACE;
        let queued = self.0.queued.load(Ordering::Relaxed);
        while self.0.written.load(Ordering::Acquire) < queued && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

fn write_all(mut out: impl Write, lines: &Receiver<Vec<u8>>, counts: &Counts) {
    let mut told = 0;
    loop {
        let line = match lines.recv_timeout(POLL) {
            Ok(line) => Some(line),
            Err(RecvTimeoutError::Timeout) => None,
            Err(RecvTimeoutError::Disconnected) => return,
        };
        let lost = counts.lost.load(Ordering::Relaxed);
        if lost > told {
            // Nobody is left to tell where writing fails.
            let _ = writeln!(out, "log: {} lines were lost, nobody read them in time", lost - told);
            told = lost;
        }
        if let Some(line) = line {
            let _ = out.write_all(&line);
            counts.written.fetch_add(1, Ordering::Release);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Mutex, mpsc};

    use super::*;

    /// Writes nothing until it is told to.
    struct Stuck {
        go: mpsc::Receiver<()>,
        written: Arc<Mutex<Vec<u8>>>,
    }

    impl Write for Stuck {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            // An error is a sender that is gone: from now on everything passes.
            let _ = self.go.recv();
            self.written.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_reader_that_is_stuck_holds_nobody_up() {
        let (release, go) = mpsc::channel();
        let written = Arc::new(Mutex::new(Vec::new()));
        let (mut lines, flush) = to(Stuck { go, written: Arc::clone(&written) }).unwrap();
        let began = Instant::now();
        for _ in 0..QUEUE + 100 {
            lines.write_all(b"line\n").unwrap();
        }
        assert!(began.elapsed() < Duration::from_secs(5), "logging waited for its reader");
        drop(release);
        drop(flush);
        // Its reader is back: the next lines say what is missing.
        let until = Instant::now() + Duration::from_secs(10);
        let lost = || String::from_utf8_lossy(&written.lock().unwrap()).contains("lines were lost");
        while !lost() && Instant::now() < until {
            std::thread::sleep(POLL);
        }
        assert!(lost());
    }

    #[test]
    fn a_name_makes_no_line_of_its_own() {
        let line = "clusters[a\u{202e}b\nERROR forged\u{9b}2J]: é\n".as_bytes();
        let shown = String::from_utf8(one_line(line)).unwrap();
        assert_eq!(shown, "clusters[a\\u202eb\\u000aERROR forged\\u009b2J]: é\n");
        assert_eq!(one_line(b"\x1b[2m t\x1b[0m\n"), b"\x1b[2m t\x1b[0m\n");
    }

    #[test]
    fn the_last_lines_are_written() {
        let written = Arc::new(Mutex::new(Vec::new()));
        let (_, go) = mpsc::channel();
        let (mut lines, flush) = to(Stuck { go, written: Arc::clone(&written) }).unwrap();
        lines.write_all(b"the end\n").unwrap();
        drop(flush);
        assert_eq!(*written.lock().unwrap(), b"the end\n");
    }
}
