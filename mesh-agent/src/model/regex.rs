//! Regular expressions of the configuration, and what they may take.

use std::{fmt, str::FromStr, sync::Arc};

use regex_automata::{meta, util::captures::Captures};
use regex_syntax::hir::{Hir, Look};
use serde::{Serialize, Serializer};

use super::budget::{Budget, Charge};

/// The longest pattern, in bytes, that is accepted.
pub const REGEX_MAX_BYTES: usize = 16 * 1024;

/// The largest compiled program, in bytes, that is accepted.
pub const REGEX_MAX_PROGRAM_BYTES: usize = 2 * 1024 * 1024;

/// What all compiled programs together may take, in bytes: those in force, and those of a
/// version that is not yet. `/api/v[0-9]+/.*` takes 8 kB, `\w` 50 kB.
pub const REGEXES_MAX_BYTES: usize = 128 * 1024 * 1024;

/// What a search may cache, for each pattern and each thread, in bytes. It grows by what
/// clients send; a search that would need more of it is slower instead.
const CACHE_MAX_BYTES: usize = 256 * 1024;

/// A regular expression that matches a whole value or nothing, as Envoy's
/// `RegexMatcher` does: `a|ab` matches `ab`, and `b` does not match `abc`.
///
/// `FromStr` is the only constructor, so that no room can forget the anchors.
///
/// Spec: `envoy/type/matcher/v3/regex.proto` ("a match on the entire string").
#[derive(Clone)]
pub struct WholeRegex(Program);

/// A compiled pattern that is charged for what it takes; copies share it.
#[derive(Clone)]
pub(super) struct Program(Arc<Compiled>);

struct Compiled {
    pattern: String,
    regex: meta::Regex,
    _charge: Charge,
}

/// Why a pattern is not taken.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum RegexError {
    /// Longer than [`REGEX_MAX_BYTES`].
    #[error("regex of {0} bytes is longer than {REGEX_MAX_BYTES}")]
    TooLong(usize),
    /// Does not parse.
    #[error(transparent)]
    Invalid(#[from] Box<regex_syntax::Error>),
    /// Compiles to more than [`REGEX_MAX_PROGRAM_BYTES`].
    #[error("needs more than {REGEX_MAX_PROGRAM_BYTES} bytes once compiled")]
    TooBig,
    /// Nothing is left of [`REGEXES_MAX_BYTES`].
    #[error("all regexes together would need more than {REGEXES_MAX_BYTES} bytes once compiled")]
    TooMany,
    /// Anything else that the compiler has against it.
    #[error("{0}")]
    Refused(String),
}

/// What all of them take.
pub static REGEXES: Budget = Budget::new("regexes", REGEXES_MAX_BYTES);

impl Program {
    /// A pattern that matches wherever it does.
    ///
    /// # Errors
    /// See [`RegexError`].
    pub(super) fn anywhere(pattern: &str) -> Result<Self, RegexError> {
        Self::compile(pattern, false, &REGEXES)
    }

    pub(super) fn as_str(&self) -> &str {
        &self.0.pattern
    }

    pub(super) fn regex(&self) -> &meta::Regex {
        &self.0.regex
    }

    fn compile(pattern: &str, anchored: bool, budget: &'static Budget) -> Result<Self, RegexError> {
        if pattern.len() > REGEX_MAX_BYTES {
            return Err(RegexError::TooLong(pattern.len()));
        }
        let parsed = regex_syntax::parse(pattern).map_err(Box::new)?;
        // What is left limits the compilation too: one that does not fit costs little.
        let limit = REGEX_MAX_PROGRAM_BYTES.min(budget.left_bytes());
        // Anchored as parsed, not as text: `a)(?:b` closes no group of ours.
        let whole = match anchored {
            true => Hir::concat(vec![Hir::look(Look::Start), parsed, Hir::look(Look::End)]),
            false => parsed,
        };
        let config =
            meta::Config::new().nfa_size_limit(Some(limit)).hybrid_cache_capacity(CACHE_MAX_BYTES);
        let built = meta::Builder::new().configure(config).build_from_hir(&whole);
        let regex = built.map_err(|error| match error.size_limit() {
            Some(REGEX_MAX_PROGRAM_BYTES) => RegexError::TooBig,
            Some(_) => RegexError::TooMany,
            None => RegexError::Refused(error.to_string()),
        })?;
        let bytes = regex.memory_usage() + pattern.len() + size_of::<Compiled>();
        let charge = budget.take(bytes).ok_or(RegexError::TooMany)?;
        let pattern = pattern.to_owned();
        Ok(Self(Arc::new(Compiled { pattern, regex, _charge: charge })))
    }
}

impl WholeRegex {
    /// Whether the whole of `value` matches. Linear in its length.
    pub fn is_match(&self, value: &str) -> bool {
        self.0.regex().is_match(value)
    }

    /// Where the pattern's groups match, where the whole of `value` does.
    pub(super) fn captures(&self, value: &str) -> Option<Captures> {
        let mut captures = self.0.regex().create_captures();
        self.0.regex().captures(value, &mut captures);
        captures.is_match().then_some(captures)
    }

    /// The pattern as the configuration has it, without the anchors.
    pub fn as_str(&self) -> &str {
        self.0.as_str()
    }
}

impl fmt::Debug for Program {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Program").field(&self.as_str()).finish()
    }
}

impl FromStr for WholeRegex {
    type Err = RegexError;

    fn from_str(pattern: &str) -> Result<Self, Self::Err> {
        Ok(Self(Program::compile(pattern, true, &REGEXES)?))
    }
}

impl fmt::Debug for WholeRegex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("WholeRegex").field(&self.as_str()).finish()
    }
}

impl fmt::Display for WholeRegex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl Serialize for WholeRegex {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_regex_matches_a_whole_value() {
        for (pattern, value, expected) in [
            ("a|ab", "ab", true),
            ("a|ab", "a", true),
            ("a|ab", "abc", false),
            ("ab|a", "xab", false),
            ("b", "abc", false),
            ("", "", true),
            ("", "a", false),
            (".*", "anything", true),
            // `$` alone would take a trailing newline in other dialects.
            ("a", "a\n", false),
            // Multi-line mode must not loosen the anchors around the group.
            ("(?m)^a$", "b\na", false),
            ("(?i)get", "GET", true),
            ("/api/v[0-9]+/.*", "/api/v1/x", true),
            ("/api/v[0-9]+/.*", "/x/api/v1/x", false),
            // A comment swallows no anchor.
            ("(?x)a # b", "a", true),
            ("(?x)a # b", "ab", false),
        ] {
            let regex: WholeRegex = pattern.parse().unwrap();
            assert_eq!(regex.is_match(value), expected, "`{pattern}` on {value:?}");
            assert_eq!(regex.as_str(), pattern);
            assert_eq!(serde_json::to_string(&regex).unwrap(), format!("{pattern:?}"));
        }
    }

    #[test]
    fn a_pattern_that_escapes_its_group_is_refused() {
        for pattern in ["a)(b", "a)(?:b", "a)|(?:b", "(", "a)", "*", "(?P<x", "[", "\\"] {
            assert!(pattern.parse::<WholeRegex>().is_err(), "{pattern} was accepted");
        }
    }

    #[test]
    fn a_pattern_that_is_too_large_is_refused() {
        let long = "a".repeat(REGEX_MAX_BYTES + 1);
        let error = long.parse::<WholeRegex>().unwrap_err();
        assert!(matches!(error, RegexError::TooLong(length) if length == long.len()), "{error}");
        let error = r"((\w{100}){100}){100}".parse::<WholeRegex>().unwrap_err();
        assert!(matches!(error, RegexError::TooBig), "{error}");
    }

    #[test]
    fn all_patterns_together_have_a_limit_and_give_back_what_they_took() {
        static BUDGET: Budget = Budget::new("test", 5 << 20);
        let large = r"\w{30}";
        let mut kept = Vec::new();
        let error = loop {
            match Program::compile(large, true, &BUDGET) {
                Ok(regex) => kept.push(regex),
                Err(error) => break error,
            }
        };
        assert!(matches!(error, RegexError::TooMany), "{error}");
        assert!((1..=4).contains(&kept.len()), "{} of them", kept.len());
        assert!(BUDGET.used_bytes() <= 5 << 20);
        // A copy shares what is compiled, and keeps it.
        let copy = kept[0].clone();
        kept.clear();
        assert!(BUDGET.used_bytes() > 0);
        assert!(copy.regex().is_match(&"w".repeat(30)));
        drop(copy);
        assert_eq!(BUDGET.used_bytes(), 0);
        assert!(Program::compile(large, true, &BUDGET).is_ok());
    }
}
