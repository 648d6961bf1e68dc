//! Lines of configured access logs, on their way to where the configuration has them.
//!
//! Requests hand a line over and go on; one thread writes. What does not fit into the queue,
//! or can't be written, is counted and lost.

use std::{
    collections::HashMap,
    fs::{File, OpenOptions},
    io::{self, Write},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
        mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use prometheus_client::metrics::counter::Counter;

use crate::model::access_log::LogSink;

/// Lines that wait, and their bytes together.
const QUEUE: usize = 4096;
const QUEUE_MAX_BYTES: usize = 16 << 20;
/// A line is cut behind as many bytes.
const LINE_MAX_BYTES: usize = 64 << 10;
/// Files that are open at once; the rest are opened again for each batch of lines.
const FILES_MAX: usize = 64;
/// Of one batch.
const BATCH: usize = 512;

/// A file is opened anew after so long, so that one that was moved away is let go.
const REOPEN: Duration = Duration::from_secs(10);

enum Message {
    Line(LogSink, Vec<u8>),
    End,
}

/// Takes lines. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Lines {
    queue: Option<SyncSender<Message>>,
    waiting: Arc<AtomicUsize>,
    dropped: Counter,
}

/// The thread's end; close it after the last line.
#[derive(Debug)]
pub struct LinesWriter {
    queue: SyncSender<Message>,
    thread: JoinHandle<()>,
}

impl Lines {
    /// Takes none.
    pub fn off() -> Self {
        Self { queue: None, waiting: Arc::default(), dropped: Counter::default() }
    }

    /// Starts the thread; `dropped` counts the lines that were lost.
    ///
    /// # Errors
    /// The thread can't be started.
    pub fn start(dropped: Counter) -> io::Result<(Self, LinesWriter)> {
        let (queue, lines) = sync_channel(QUEUE);
        let waiting = Arc::<AtomicUsize>::default();
        let files = Files { open: HashMap::new(), failing: false, dropped: dropped.clone() };
        let taken = Arc::clone(&waiting);
        let thread = std::thread::Builder::new()
            .name("access-log-lines".into())
            .spawn(move || files.write_all(&lines, &taken))?;
        let writer = LinesWriter { queue: queue.clone(), thread };
        Ok((Self { queue: Some(queue), waiting, dropped }, writer))
    }

    /// Hands a line over, with its line feed if it is to have one; never waits.
    pub fn write(&self, sink: &LogSink, mut line: Vec<u8>) {
        let Some(queue) = &self.queue else { return };
        if line.len() > LINE_MAX_BYTES {
            line.truncate(LINE_MAX_BYTES - 1);
            line.push(b'\n');
        }
        let bytes = line.len();
        let before = self.waiting.fetch_add(bytes, Ordering::Relaxed);
        if before + bytes > QUEUE_MAX_BYTES
            || queue.try_send(Message::Line(sink.clone(), line)).is_err()
        {
            self.waiting.fetch_sub(bytes, Ordering::Relaxed);
            self.dropped.inc();
        }
    }
}

impl LinesWriter {
    /// Writes what is queued and ends the thread; `false` where that took longer than
    /// `deadline`. Blocks: not for an async worker thread.
    pub fn close(self, deadline: Duration) -> bool {
        let until = Instant::now() + deadline;
        let mut ended = false;
        while !self.thread.is_finished() {
            ended = ended || self.queue.try_send(Message::End).is_ok();
            if Instant::now() >= until {
                return false;
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        self.thread.join().is_ok()
    }
}

struct Files {
    open: HashMap<Arc<str>, (File, Instant)>,
    failing: bool,
    dropped: Counter,
}

impl Files {
    fn write_all(mut self, lines: &Receiver<Message>, waiting: &AtomicUsize) {
        let mut batch: HashMap<LogSink, (Vec<u8>, u64)> = HashMap::new();
        loop {
            let mut next = match lines.recv_timeout(REOPEN) {
                Ok(message) => Some(message),
                Err(RecvTimeoutError::Timeout) => None,
                Err(RecvTimeoutError::Disconnected) => return,
            };
            let mut count = 0;
            let mut end = false;
            while let Some(message) = next.take() {
                let Message::Line(sink, line) = message else {
                    end = true;
                    break;
                };
                waiting.fetch_sub(line.len(), Ordering::Relaxed);
                let (text, lines_of) = batch.entry(sink).or_default();
                text.extend_from_slice(&line);
                *lines_of += 1;
                count += 1;
                next = if count < BATCH { lines.try_recv().ok() } else { None };
            }
            for (sink, (text, count)) in batch.drain() {
                let written = self.write(&sink, &text);
                self.report(&sink, written, count);
            }
            self.open.retain(|_, (_, since)| since.elapsed() < REOPEN);
            if end {
                return;
            }
        }
    }

    fn write(&mut self, sink: &LogSink, text: &[u8]) -> io::Result<()> {
        let path = match sink {
            LogSink::Stdout => {
                let mut out = io::stdout().lock();
                return out.write_all(text).and_then(|()| out.flush());
            }
            LogSink::Stderr => return io::stderr().lock().write_all(text),
            LogSink::File(path) => path,
        };
        if !self.open.contains_key(path) {
            if self.open.len() >= FILES_MAX {
                self.open.clear();
            }
            let file = OpenOptions::new().create(true).append(true).open(&**path)?;
            self.open.insert(Arc::clone(path), (file, Instant::now()));
        }
        match self.open.get_mut(path) {
            Some((file, _)) => file.write_all(text),
            None => Ok(()),
        }
    }

    /// Says once that writing fails, and once that it works again.
    fn report(&mut self, sink: &LogSink, written: io::Result<()>, lines: u64) {
        match written {
            Ok(()) => self.failing = false,
            Err(error) => {
                self.dropped.inc_by(lines);
                if !self.failing {
                    tracing::error!(%error, ?sink, "access log lines are lost: they can't be written");
                }
                self.failing = true;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(directory: &tempfile::TempDir, name: &str) -> LogSink {
        LogSink::File(directory.path().join(name).to_str().unwrap().into())
    }

    #[test]
    fn lines_are_written_in_order_to_their_files() {
        let directory = tempfile::tempdir().unwrap();
        let dropped = Counter::default();
        let (lines, writer) = Lines::start(dropped.clone()).unwrap();
        for n in 0..100 {
            lines.write(
                &file(&directory, if n % 2 == 0 { "even" } else { "odd" }),
                format!("{n}\n").into(),
            );
        }
        assert!(writer.close(Duration::from_secs(30)));
        let text = std::fs::read_to_string(directory.path().join("odd")).unwrap();
        assert_eq!(text, (0..50).map(|n| format!("{}\n", 2 * n + 1)).collect::<String>());
        assert_eq!(dropped.get(), 0);
    }

    #[test]
    fn what_cannot_be_written_or_kept_is_counted() {
        let directory = tempfile::tempdir().unwrap();
        let dropped = Counter::default();
        let (lines, writer) = Lines::start(dropped.clone()).unwrap();
        lines.write(&file(&directory, "none/of/these"), b"lost\n".to_vec());
        lines.write(&file(&directory, "long"), vec![b'x'; 2 * LINE_MAX_BYTES]);
        assert!(writer.close(Duration::from_secs(30)));
        assert_eq!(dropped.get(), 1);
        let long = std::fs::read(directory.path().join("long")).unwrap();
        assert_eq!((long.len(), long.last()), (LINE_MAX_BYTES, Some(&b'\n')));
        // The thread is gone.
        lines.write(&file(&directory, "late"), b"late\n".to_vec());
        assert_eq!(dropped.get(), 2);
    }
}
