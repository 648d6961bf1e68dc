//! Text that others chose, as it may be shown to people.

use std::{borrow::Cow, fmt::Write as _};

/// One line: what would move the cursor, break the line, or show text in another order than
/// it is in, is escaped (`\\u202e`).
pub fn printable(text: &str) -> Cow<'_, str> {
    escaped(text, |_| false)
}

/// As [`printable`], but for characters that are `kept`.
pub fn escaped(text: &str, kept: impl Fn(char) -> bool) -> Cow<'_, str> {
    let hidden = |c: char| is_hidden(c) && !kept(c);
    if !text.contains(hidden) {
        return Cow::Borrowed(text);
    }
    let mut shown = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        if hidden(c) {
            // Writing to a String does not fail.
            _ = write!(shown, "\\u{:04x}", u32::from(c));
        } else {
            shown.push(c);
        }
    }
    Cow::Owned(shown)
}

/// Controls, and what Unicode has to change directions, lines and widths unseen.
///
/// Spec: Unicode Standard Annex #9, Technical Report #36.
fn is_hidden(c: char) -> bool {
    c.is_control()
        || matches!(
            c,
            '\u{61c}'
                | '\u{200b}'..='\u{200f}'
                | '\u{2028}'..='\u{202e}'
                | '\u{2060}'..='\u{206f}'
                | '\u{feff}'
        )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_can_not_be_seen_is_shown() {
        for (text, expected) in [
            ("plain", "plain"),
            ("é 日本 عربى", "é 日本 عربى"),
            ("a\u{202e}b\u{2066}", "a\\u202eb\\u2066"),
            ("\u{1b}[2J\nready: yes\r", "\\u001b[2J\\u000aready: yes\\u000d"),
            ("\u{9b}2J\u{7f}\u{200b}\u{feff}", "\\u009b2J\\u007f\\u200b\\ufeff"),
        ] {
            assert_eq!(printable(text), expected);
        }
        assert!(matches!(printable("plain"), Cow::Borrowed(_)));
        assert_eq!(escaped("a\nb\u{202e}", |c| c == '\n'), "a\nb\\u202e");
    }
}
