//! A Rust file as tidy reads it: comments and literals blanked out.

use std::path::{Path, PathBuf};

use super::Finding;

/// One file.
#[derive(Debug)]
pub(super) struct Source {
    pub(super) path: PathBuf,
    pub(super) text: String,
    /// The text with comments and the insides of literals replaced by spaces; line
    /// breaks stay where they are.
    pub(super) code: String,
}

impl Source {
    pub(super) fn parse(path: &Path, text: &str) -> Self {
        Self { path: path.to_owned(), text: text.to_owned(), code: blank(text) }
    }

    pub(super) fn finding(&self, line: usize, rule: &'static str, message: String) -> Finding {
        Finding { file: self.path.clone(), line, rule, message }
    }

    /// The code before the file's tests; empty in a file of tests.
    pub(super) fn production_code(&self) -> &str {
        let is_tests = self.path.file_stem().is_some_and(|s| s == "tests")
            || self.path.components().any(|c| c.as_os_str() == "tests");
        if is_tests {
            return "";
        }
        match self.code.find("#[cfg(test)]\nmod ") {
            Some(end) => &self.code[..end],
            None => &self.code,
        }
    }

    pub(super) fn production_lines(&self) -> usize {
        self.production_code().lines().count()
    }

    /// The line that byte `offset` is on, from 1.
    pub(super) fn line_of(&self, offset: usize) -> usize {
        self.code[..offset].matches('\n').count() + 1
    }
}

/// Replaces comments and the insides of string and character literals by spaces.
fn blank(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = bytes.to_vec();
    let mut at = 0;
    let mut wipe = |from: usize, to: usize| {
        for byte in &mut out[from..to.min(bytes.len())] {
            if *byte != b'\n' {
                *byte = b' ';
            }
        }
    };
    while at < bytes.len() {
        let rest = &bytes[at..];
        let end = if rest.starts_with(b"//") {
            rest.iter().position(|&b| b == b'\n').map_or(bytes.len(), |n| at + n)
        } else if rest.starts_with(b"/*") {
            at + block_comment(rest)
        } else if let Some(length) = raw_string(rest, at.checked_sub(1).map(|i| bytes[i])) {
            at + length
        } else if rest[0] == b'"' {
            at + quoted(rest, b'"')
        } else if rest[0] == b'\'' && is_character(rest) {
            at + quoted(rest, b'\'')
        } else {
            at += 1;
            continue;
        };
        wipe(at, end);
        at = end.max(at + 1);
    }
    // Only ASCII bytes were written, over whole characters.
    String::from_utf8_lossy(&out).into_owned()
}

/// The length of a block comment, which may hold others.
fn block_comment(rest: &[u8]) -> usize {
    let (mut depth, mut at) = (0usize, 0);
    while at < rest.len() {
        if rest[at..].starts_with(b"/*") {
            (depth, at) = (depth + 1, at + 2);
        } else if rest[at..].starts_with(b"*/") {
            (depth, at) = (depth - 1, at + 2);
            if depth == 0 {
                break;
            }
        } else {
            at += 1;
        }
    }
    at
}

/// The length of a raw string that starts here.
fn raw_string(rest: &[u8], before: Option<u8>) -> Option<usize> {
    let in_word = before.is_some_and(|b| b.is_ascii_alphanumeric() || b == b'_');
    let after_r = rest.strip_prefix(b"r").or_else(|| rest.strip_prefix(b"br"))?;
    let hashes = after_r.iter().take_while(|&&b| b == b'#').count();
    if in_word && !rest.starts_with(b"br") || after_r.get(hashes) != Some(&b'"') {
        return None;
    }
    let start = rest.len() - after_r.len() + hashes + 1;
    let mut close = vec![b'"'];
    close.extend(std::iter::repeat_n(b'#', hashes));
    let end = rest[start..].windows(close.len()).position(|w| w == close)?;
    Some(start + end + close.len())
}

/// The length of a literal between `quote`s, which may hold escapes.
fn quoted(rest: &[u8], quote: u8) -> usize {
    let mut at = 1;
    while at < rest.len() {
        match rest[at] {
            b'\\' => at += 2,
            byte if byte == quote => return at + 1,
            _ => at += 1,
        }
    }
    rest.len()
}

/// Whether a `'` starts a character rather than a lifetime.
fn is_character(rest: &[u8]) -> bool {
    match rest.get(1) {
        Some(b'\\') => true,
        // One character of one to four bytes, then the closing quote.
        Some(_) => {
            (2..=5).any(|n| rest.get(n) == Some(&b'\'')) && {
                let text = std::str::from_utf8(&rest[1..rest.len().min(6)]);
                let valid = text.map_or_else(|e| e.valid_up_to(), str::len);
                let inside = std::str::from_utf8(&rest[1..=valid]).unwrap_or_default();
                inside.chars().nth(1).map_or(inside.len() == 1, |second| second == '\'')
            }
        }
        None => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_code_is_left() {
        let check = |text: &str, expected: &str| {
            let squeezed: String = blank(text).split_whitespace().collect::<Vec<_>>().join(" ");
            assert_eq!(squeezed, expected, "{text}");
        };
        check("a // b\nc", "a c");
        check("a /* b /* c */ d */ e", "a e");
        check("f(\"crate::x \\\" y\") + g", "f( ) + g");
        check("r#\"a \" b\"# c", "c");
        check("fn f<'a>(x: &'a str) -> char { '\"' }", "fn f<'a>(x: &'a str) -> char { }");
        check("['\\'', 'é', 'b'] z", "[ , , ] z");
        check("for r in x {}", "for r in x {}");
    }

    #[test]
    fn tests_do_not_count() {
        let text = "fn f() {}\n\n#[cfg(test)]\nmod tests {\n    fn g() {}\n}\n";
        assert_eq!(Source::parse(Path::new("src/a.rs"), text).production_lines(), 2);
        assert_eq!(Source::parse(Path::new("src/a/tests.rs"), text).production_lines(), 0);
    }
}
