//! `cargo xtask tidy`: the house rules that neither rustc nor clippy knows.

mod layers;
mod source;

use std::{
    fmt, fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, ensure};

use source::Source;

/// A file longer than this, tests apart, fails.
const MAX_LINES: usize = 800;
/// A file longer than this, tests apart, is pointed out.
const LONG_LINES: usize = 600;

/// Never in code that is checked in.
const FORBIDDEN_CODE: &[(&str, &str)] = &[
    ("todo!", "finish it or leave it out"),
    ("unimplemented!", "finish it or leave it out"),
    ("dbg!", "use tracing"),
    ("#[ignore", "a test that does not run is no test"),
];

/// The reason for `#[ignore]` on what is no test: a test binary's own helper process.
const HELPER_PROCESS: &str = "= \"re-executed by the tests\"";

/// Never in any file: paths of somebody's machine. In halves, as this file is checked too.
const FORBIDDEN_WORDS: &[(&str, &str)] =
    &[("/wo", "rk/"), ("/ro", "ot/"), ("/ho", "me/"), ("/tmp/me", "sh/"), ("/tmp/ba", "sh_")];

/// Extensions of files whose words are checked.
const TEXT: &[&str] = &["rs", "toml", "md", "yaml", "yml", "json", "sh", "lock", "run", "conf"];

/// One breach of one rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Finding {
    file: PathBuf,
    line: usize,
    rule: &'static str,
    message: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { file, line, rule, message } = self;
        write!(f, "{}:{line}: {rule}: {message}", file.display())
    }
}

/// Checks the workspace at `root`, prints each breach, fails if there is one.
pub(crate) fn run(root: &Path) -> Result<()> {
    let (mut findings, mut warnings, mut checked) = (Vec::new(), Vec::new(), 0);
    for path in files(root)? {
        let Ok(text) = fs::read_to_string(root.join(&path)) else { continue };
        checked += 1;
        findings.extend(words(&path, &text));
        if path.extension().is_some_and(|e| e == "rs") {
            let source = Source::parse(&path, &text);
            findings.extend(code(&source));
            findings.extend(docs(&source));
            findings.extend(layers::check(&source));
            match source.production_lines() {
                lines if lines > MAX_LINES => findings.push(length(&path, lines)),
                lines if lines > LONG_LINES => warnings.push(length(&path, lines)),
                _ => {}
            }
        }
    }
    for warning in &warnings {
        println!("warning: {warning}");
    }
    for finding in &findings {
        println!("{finding}");
    }
    ensure!(findings.is_empty(), "tidy: {} breaches in {checked} files", findings.len());
    println!("tidy: {checked} files");
    Ok(())
}

/// All files below `root` that could be checked in, relative to it.
fn files(root: &Path) -> Result<Vec<PathBuf>> {
    const SKIPPED: &[&str] = &["target", ".git", "artifacts", "corpus", "__pycache__"];
    let (mut found, mut directories) = (Vec::new(), vec![root.to_owned()]);
    while let Some(directory) = directories.pop() {
        let entries =
            fs::read_dir(&directory).with_context(|| format!("list {}", directory.display()))?;
        for entry in entries {
            let path = entry.context("list a directory")?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            if SKIPPED.contains(&&*name) {
                continue;
            }
            if path.is_dir() {
                directories.push(path);
            } else {
                found.push(path.strip_prefix(root).unwrap_or(&path).to_owned());
            }
        }
    }
    found.sort();
    Ok(found)
}

fn words(path: &Path, text: &str) -> Vec<Finding> {
    let extension = path.extension().and_then(|e| e.to_str());
    if extension.is_some_and(|e| !TEXT.contains(&e)) {
        return Vec::new();
    }
    let mut findings = Vec::new();
    for (number, line) in text.lines().enumerate() {
        for (one, two) in FORBIDDEN_WORDS {
            let word = format!("{one}{two}");
            if line.contains(&word) {
                let message = format!("`{word}` is a path of somebody's machine");
                findings.push(Finding {
                    file: path.to_owned(),
                    line: number + 1,
                    rule: "words",
                    message,
                });
            }
        }
    }
    findings
}

fn code(source: &Source) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (number, (line, written)) in source.code.lines().zip(source.text.lines()).enumerate() {
        for (word, advice) in FORBIDDEN_CODE {
            if line.contains(word) && !written.contains(HELPER_PROCESS) {
                findings.push(source.finding(number + 1, "code", format!("`{word}`: {advice}")));
            }
        }
    }
    findings
}

fn docs(source: &Source) -> Option<Finding> {
    // `x/tests.rs` is what its name says.
    if source.path.file_name().is_some_and(|name| name == "tests.rs") {
        return None;
    }
    let documented = source.text.lines().take(10).any(|line| line.starts_with("//!"));
    (!documented).then(|| {
        source.finding(1, "docs", "a module starts with `//!`: its purpose in one sentence".into())
    })
}

fn length(path: &Path, lines: usize) -> Finding {
    let message = format!("{lines} lines without tests: split it ({MAX_LINES} at most)");
    Finding { file: path.to_owned(), line: 1, rule: "length", message }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(text: &str) -> Source {
        Source::parse(Path::new("mesh-agent/src/codec/detect.rs"), text)
    }

    #[test]
    fn forbidden_code_is_found_with_its_line() {
        let check = |text: &str, lines: &[usize]| {
            let found: Vec<usize> = code(&source(text)).iter().map(|f| f.line).collect();
            assert_eq!(found, lines, "{text}");
        };
        check("fn f() {\n    todo!()\n}", &[2]);
        check("#[ignore = \"slow\"]\nfn f() { dbg!(1); }", &[1, 2]);
        check("#[ignore = \"re-executed by the tests\"]\nfn child() {}", &[]);
        check("// todo! later\nlet s = \"dbg!\";\n/* unimplemented! */", &[]);
    }

    #[test]
    fn modules_need_docs() {
        assert_eq!(docs(&source("//! Does it.\n")), None);
        assert_eq!(docs(&source("#![no_std]\n//! Does it.\n")), None);
        assert!(docs(&source("// Does it.\nfn f() {}\n")).is_some());
    }

    #[test]
    fn machine_paths_are_found() {
        let path = format!("see {}{}here", "/wo", "rk/");
        assert_eq!(words(Path::new("README.md"), &format!("ok\n{path}\n"))[0].line, 2);
        assert_eq!(words(Path::new("a.pcap"), &path), []);
        assert_eq!(words(Path::new("README.md"), "see /sys/fs/bpf"), []);
    }

    #[test]
    fn this_workspace_is_tidy_about_itself() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        for path in files(root).expect("list the crate") {
            let text = fs::read_to_string(root.join(&path)).expect("read a file");
            assert_eq!(words(&path, &text), []);
        }
    }
}
