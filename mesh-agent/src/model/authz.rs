//! Authorization rules as data; `policy` evaluates them.
//!
//! Spec: `envoy/config/rbac/v3/rbac.proto`, `envoy/type/matcher/v3/string.proto`.

use std::{fmt, str::FromStr, sync::Arc};

use ipnet::IpNet;
use serde::{Serialize, Serializer};

use super::route::HeaderMatcher;

/// Spec: `envoy.config.rbac.v3.RBAC`.
#[derive(Debug, Clone, Serialize)]
pub struct Rbac {
    pub stat_prefix: String,
    pub action: RbacAction,
    /// In order of name, so that the policy that decides is always the same one.
    pub policies: Vec<RbacPolicy>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum RbacAction {
    /// Denied unless a policy matches.
    Allow,
    /// Allowed unless a policy matches.
    Deny,
    /// Never denies; a match is put into the access log.
    Log,
}

#[derive(Debug, Clone, Serialize)]
pub struct RbacPolicy {
    pub name: Arc<str>,
    /// Matches if any does.
    pub permissions: Vec<Permission>,
    /// Matches if any does.
    pub principals: Vec<Principal>,
}

/// What is asked for.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Permission {
    And(Vec<Permission>),
    Or(Vec<Permission>),
    Not(Box<Permission>),
    Any,
    /// HTTP only. On a TCP connection it can't be judged: it then helps no `Allow`
    /// policy to match and keeps no `Deny` policy from matching.
    Header(HeaderMatcher),
    /// HTTP only: the path without query and fragment.
    UrlPath(StringMatcher),
    DestinationIp(IpNet),
    DestinationPort(u16),
    /// Inclusive start, exclusive end.
    DestinationPortRange {
        start: u32,
        end: u32,
    },
}

/// Who asks.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Principal {
    And(Vec<Principal>),
    Or(Vec<Principal>),
    Not(Box<Principal>),
    Any,
    /// The identity that mTLS proved; `None` matches any proven identity.
    Authenticated(Option<StringMatcher>),
    /// The address of the TCP peer.
    DirectRemoteIp(IpNet),
    /// The same here as [`Principal::DirectRemoteIp`]: no header is trusted for it.
    RemoteIp(IpNet),
    /// HTTP only.
    Header(HeaderMatcher),
    /// HTTP only.
    UrlPath(StringMatcher),
}

/// Spec: `envoy.type.matcher.v3.StringMatcher`.
#[derive(Debug, Clone, Serialize)]
pub struct StringMatcher {
    pub pattern: StringPattern,
    /// Not for regexes.
    pub ignore_case: bool,
}

impl StringMatcher {
    /// Whether `value` matches. Allocates only for a regex on what is not UTF-8.
    ///
    /// A regex sees bytes that are not UTF-8 as U+FFFD, so that `.*` still spans them.
    pub fn matches(&self, value: &[u8]) -> bool {
        let same = |a: &[u8], b: &[u8]| {
            if self.ignore_case { a.eq_ignore_ascii_case(b) } else { a == b }
        };
        match &self.pattern {
            StringPattern::Exact(exact) => same(value, exact.as_bytes()),
            StringPattern::Prefix(prefix) => {
                value.get(..prefix.len()).is_some_and(|head| same(head, prefix.as_bytes()))
            }
            StringPattern::Suffix(suffix) => {
                let start = value.len().checked_sub(suffix.len());
                start.is_some_and(|start| same(&value[start..], suffix.as_bytes()))
            }
            StringPattern::Contains(part) => {
                let part = part.as_bytes();
                // `windows` refuses a width of nought; every value contains nothing.
                part.is_empty() || value.windows(part.len()).any(|window| same(window, part))
            }
            StringPattern::Regex(regex) => regex.is_match(&String::from_utf8_lossy(value)),
        }
    }
}

#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum StringPattern {
    Exact(String),
    Prefix(String),
    Suffix(String),
    Contains(String),
    /// The whole value must match.
    Regex(WholeRegex),
}

/// A regular expression that matches a whole value or nothing, as Envoy's
/// `RegexMatcher` does: `a|ab` matches `ab`, and `b` does not match `abc`.
///
/// `FromStr` is the only constructor, so that no room can forget the anchors.
///
/// Spec: `envoy/type/matcher/v3/regex.proto` ("a match on the entire string").
#[derive(Clone)]
pub struct WholeRegex(regex::Regex);

/// Why a pattern is not taken.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum RegexError {
    /// Longer than [`REGEX_MAX_BYTES`].
    #[error("regex of {0} bytes is longer than {REGEX_MAX_BYTES}")]
    TooLong(usize),
    /// Does not parse, or compiles to more than [`REGEX_MAX_PROGRAM_BYTES`].
    #[error(transparent)]
    Invalid(#[from] regex::Error),
}

/// The longest pattern, in bytes, that is accepted.
pub const REGEX_MAX_BYTES: usize = 16 * 1024;

/// The largest compiled program, in bytes, that is accepted.
pub const REGEX_MAX_PROGRAM_BYTES: usize = 2 * 1024 * 1024;

const REGEX_HEAD: &str = r"\A(?:";
const REGEX_TAIL: &str = r")\z";

impl WholeRegex {
    /// Whether the whole of `value` matches. Linear in its length.
    pub fn is_match(&self, value: &str) -> bool {
        self.0.is_match(value)
    }

    /// What the pattern's groups match, where the whole of `value` does.
    pub(super) fn captures<'a>(&self, value: &'a str) -> Option<regex::Captures<'a>> {
        self.0.captures(value)
    }

    /// The pattern as the configuration has it, without the anchors.
    pub fn as_str(&self) -> &str {
        let anchored = self.0.as_str();
        let bare = anchored.strip_prefix(REGEX_HEAD).and_then(|s| s.strip_suffix(REGEX_TAIL));
        bare.unwrap_or(anchored)
    }
}

impl FromStr for WholeRegex {
    type Err = RegexError;

    fn from_str(pattern: &str) -> Result<Self, Self::Err> {
        if pattern.len() > REGEX_MAX_BYTES {
            return Err(RegexError::TooLong(pattern.len()));
        }
        let compile = |pattern: &str| {
            regex::RegexBuilder::new(pattern).size_limit(REGEX_MAX_PROGRAM_BYTES).build()
        };
        // The bare pattern first: `a)(?:b` would otherwise close the group that
        // anchors it. A comment in `(?x)` mode can swallow the tail, which leaves
        // the group open and is an error too.
        compile(pattern)?;
        Ok(Self(compile(&format!("{REGEX_HEAD}{pattern}{REGEX_TAIL}"))?))
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
        ] {
            let regex: WholeRegex = pattern.parse().unwrap();
            assert_eq!(regex.is_match(value), expected, "`{pattern}` on {value:?}");
            assert_eq!(regex.as_str(), pattern);
            assert_eq!(serde_json::to_string(&regex).unwrap(), format!("{pattern:?}"));
        }
    }

    #[test]
    fn a_pattern_that_escapes_its_group_is_refused() {
        for pattern in
            ["a)(b", "a)(?:b", "a)|(?:b", "(", "a)", "*", "(?x)a # b", "(?P<x", "[", "\\"]
        {
            assert!(pattern.parse::<WholeRegex>().is_err(), "{pattern} was accepted");
        }
    }

    #[test]
    fn a_pattern_that_is_too_large_is_refused() {
        let long = "a".repeat(REGEX_MAX_BYTES + 1);
        assert_eq!(long.parse::<WholeRegex>().unwrap_err(), RegexError::TooLong(long.len()));
        assert!(r"((\w{100}){100}){100}".parse::<WholeRegex>().is_err());
    }
}
