//! Collecting every reason why a resource can't be honoured, each with its full path.

use std::collections::HashMap;

use envoy_types::pb::google::protobuf::Any;

use super::config_source::Reference;
use crate::snapshot::RejectedResource;

/// More than this many rejections are counted, not kept.
pub(in crate::source) const REJECTIONS_MAX: usize = 100;

/// The longest path or reason, in characters.
const TEXT_MAX_CHARS: usize = 1024;

/// A rejection whose text is fit for a log and a terminal, whatever a resource is
/// called: bounded, on one line, without control characters.
pub(in crate::source) fn rejection(path: &str, reason: impl Into<String>) -> RejectedResource {
    RejectedResource { path: printable(path), reason: printable(&reason.into()) }
}

fn printable(text: &str) -> String {
    // Bidirectional controls reorder what is shown around them.
    let hidden =
        |c: char| c.is_control() || matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    let mut shown = String::new();
    for (i, c) in text.chars().enumerate() {
        match c {
            _ if i == TEXT_MAX_CHARS => {
                shown.push('…');
                break;
            }
            c if hidden(c) => shown.extend(c.escape_default()),
            c => shown.push(c),
        }
    }
    shown
}

/// Where a decoder is in a resource, and what it has refused so far.
///
/// Decoders go on after a refusal, so that an operator sees all of them at once;
/// they return `None` for what they could not make.
#[derive(Debug)]
pub(super) struct Decoder {
    path: String,
    rejected: Vec<RejectedResource>,
    more: usize,
    references: Vec<Reference>,
}

impl Decoder {
    /// A decoder at a resource: `listeners[web]`.
    pub(super) fn new(root: String) -> Self {
        Self { path: root, rejected: Vec::new(), more: 0, references: Vec::new() }
    }

    /// Goes into `.field` for as long as `decode` runs.
    pub(super) fn field<T>(&mut self, field: &str, decode: impl FnOnce(&mut Self) -> T) -> T {
        self.within(format_args!(".{field}"), decode)
    }

    /// Goes into `.field[index]` for as long as `decode` runs.
    pub(super) fn item<T>(
        &mut self,
        field: &str,
        index: impl std::fmt::Display,
        decode: impl FnOnce(&mut Self) -> T,
    ) -> T {
        self.within(format_args!(".{field}[{index}]"), decode)
    }

    /// Goes into `[index]` for as long as `decode` runs.
    pub(super) fn within_index<T>(
        &mut self,
        index: usize,
        decode: impl FnOnce(&mut Self) -> T,
    ) -> T {
        self.within(format_args!("[{index}]"), decode)
    }

    fn within<T>(
        &mut self,
        step: std::fmt::Arguments<'_>,
        decode: impl FnOnce(&mut Self) -> T,
    ) -> T {
        use std::fmt::Write as _;

        let length = self.path.len();
        // Writing to a string can't fail.
        let _ = self.path.write_fmt(step);
        let decoded = decode(self);
        self.path.truncate(length);
        decoded
    }

    /// Decodes every item of a repeated field, with its index in the path.
    /// `None` if any was refused; all are looked at.
    pub(super) fn all<P, T>(
        &mut self,
        field: &str,
        items: impl IntoIterator<Item = P>,
        mut decode: impl FnMut(&mut Self, P) -> Option<T>,
    ) -> Option<Vec<T>> {
        let mut whole = Some(Vec::new());
        for (i, item) in items.into_iter().enumerate() {
            let decoded = self.item(field, i, |d| decode(d, item));
            match (&mut whole, decoded) {
                (Some(list), Some(decoded)) => list.push(decoded),
                _ => whole = None,
            }
        }
        whole
    }

    /// Refuses what is at the current path.
    pub(super) fn refuse(&mut self, reason: impl Into<String>) {
        if self.rejected.len() < REJECTIONS_MAX {
            self.rejected.push(rejection(&self.path, reason));
        } else {
            self.more += 1;
        }
    }

    /// Refuses what is at the current path; for the tail of a decoder.
    pub(super) fn refused<T>(&mut self, reason: impl Into<String>) -> Option<T> {
        self.refuse(reason);
        None
    }

    /// Refuses a field below the current path.
    pub(super) fn refuse_field(&mut self, field: &str, reason: impl Into<String>) {
        self.field(field, |d| d.refuse(reason));
    }

    /// Refuses a field below the current path that nothing here honours.
    pub(super) fn not_supported<T>(&mut self, field: &str) -> Option<T> {
        self.refuse_field(field, "is not supported");
        None
    }

    /// Refuses a field, if it is set, because nothing here honours it.
    pub(super) fn unsupported(&mut self, field: &str, value: &impl IsSet) {
        if value.is_set() {
            self.refuse_field(field, "is not supported");
        }
    }

    /// Refuses each entry of a map, by its key.
    pub(super) fn unsupported_entries(&mut self, field: &str, entries: &HashMap<String, Any>) {
        let mut keys: Vec<_> = entries.keys().collect();
        keys.sort();
        for key in keys {
            self.item(field, key, |d| d.refuse("is not supported"));
        }
    }

    /// Where it is.
    pub(super) fn path(&self) -> &str {
        &self.path
    }

    /// Takes over refusals from another decoder, below the current path.
    pub(super) fn adopt(&mut self, rejected: Vec<RejectedResource>) {
        for RejectedResource { path, reason } in rejected {
            self.refuse_field(&path, reason);
        }
    }

    /// Notes that a name comes from a source of its own.
    pub(super) fn refer(&mut self, reference: Reference) {
        self.references.push(reference);
    }

    /// What was noted.
    pub(super) fn take_references(&mut self) -> Vec<Reference> {
        std::mem::take(&mut self.references)
    }

    /// What was decoded, unless something was refused.
    pub(super) fn finish<T>(mut self, decoded: Option<T>) -> Result<T, Vec<RejectedResource>> {
        if self.more > 0 {
            let reason = format!("and {} more rejections", self.more);
            self.rejected.push(rejection(&self.path, reason));
        } else if self.rejected.is_empty() {
            if let Some(decoded) = decoded {
                return Ok(decoded);
            }
            // A decoder that gives up says why; this keeps the promise if one forgets.
            self.rejected.push(rejection(&self.path, "could not be decoded"));
        }
        Err(self.rejected)
    }
}

/// Refuses each of these destructured fields that is set.
///
/// Together with a `let Message { .. }` pattern that lists every field, a field that
/// a newer proto adds can't be ignored in silence: the pattern stops compiling.
macro_rules! unsupported {
    ($decoder:expr; $($field:ident),* $(,)?) => {
        { $( $decoder.unsupported(stringify!($field), &$field); )* }
    };
}
pub(super) use unsupported;

/// Whether a protobuf field differs from its default.
pub(super) trait IsSet {
    fn is_set(&self) -> bool;
}

impl<T> IsSet for Option<T> {
    fn is_set(&self) -> bool {
        self.is_some()
    }
}

impl<T> IsSet for Vec<T> {
    fn is_set(&self) -> bool {
        !self.is_empty()
    }
}

impl<K, V> IsSet for HashMap<K, V> {
    fn is_set(&self) -> bool {
        !self.is_empty()
    }
}

impl IsSet for String {
    fn is_set(&self) -> bool {
        !self.is_empty()
    }
}

impl IsSet for bool {
    fn is_set(&self) -> bool {
        *self
    }
}

impl IsSet for i32 {
    fn is_set(&self) -> bool {
        *self != 0
    }
}

impl IsSet for u32 {
    fn is_set(&self) -> bool {
        *self != 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rejections_can_be_shown() {
        let shown = rejection("a\n\u{1b}[31m\u{202e}ü", "x".repeat(5000));
        assert_eq!(shown.path, "a\\n\\u{1b}[31m\\u{202e}ü");
        assert_eq!(shown.reason.chars().count(), TEXT_MAX_CHARS + 1);
    }

    #[test]
    fn rejections_are_bounded_and_counted() {
        let mut decoder = Decoder::new("clusters[a]".to_owned());
        for i in 0..REJECTIONS_MAX + 7 {
            decoder.item("filters", i, |d| d.refuse("no"));
        }
        let rejected = decoder.finish(Some(())).unwrap_err();
        assert_eq!(rejected.len(), REJECTIONS_MAX + 1);
        assert_eq!(rejected[3].to_string(), "clusters[a].filters[3]: no");
        assert_eq!(rejected[REJECTIONS_MAX].to_string(), "clusters[a]: and 7 more rejections");
    }
}
