//! Patterns that take values apart and put them together anew.
//!
//! Spec: `envoy/type/matcher/v3/regex.proto` (`RegexMatchAndSubstitute`),
//! `envoy/extensions/path/{match,rewrite}/uri_template/v3/*.proto`.

use std::{fmt, ops::Range, str::FromStr};

use regex_automata::util::captures::Captures;
use serde::{Serialize, Serializer};

use super::regex::{Program, RegexError, WholeRegex};

/// The longest substitution or template, in bytes, that is accepted.
const TEMPLATE_MAX_BYTES: usize = 4096;

/// The longest value that a rewrite makes, in bytes: what no path can be longer than. One that
/// says a group often would make much more of what a client sends.
const REWRITTEN_MAX_BYTES: usize = 64 << 10;

/// Envoy's bounds for the variables of a template.
const VARIABLES_MAX: usize = 5;
const VARIABLE_NAME_MAX_BYTES: usize = 16;

/// Every place where a pattern matches is replaced, whatever lies between.
///
/// Spec: `envoy.type.matcher.v3.RegexMatchAndSubstitute`.
#[derive(Debug, Clone)]
pub struct RegexRewrite {
    regex: Program,
    substitution: Box<[Part]>,
}

/// Of what a rewritten value is made.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Part {
    Text(Box<str>),
    /// A group of the pattern; 0 is the whole match.
    Group(usize),
}

/// Why a rewrite is not taken.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum RewriteError {
    #[error(transparent)]
    Regex(#[from] RegexError),
    /// Longer than is accepted.
    #[error("{0} bytes are more than {TEMPLATE_MAX_BYTES}")]
    TooLong(usize),
    /// Neither `\0` to `\9` nor `\\`.
    #[error("`\\` is to be followed by a digit or by itself")]
    Escape,
    #[error("the pattern has no group {0}")]
    NoGroup(usize),
}

/// A rewrite makes more of a value than [`REWRITTEN_MAX_BYTES`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("what is rewritten would be longer than {REWRITTEN_MAX_BYTES} bytes")]
pub struct RewrittenTooLong;

impl RegexRewrite {
    /// # Errors
    /// The pattern or what is to stand for it is none.
    pub fn new(pattern: &str, substitution: &str) -> Result<Self, RewriteError> {
        if substitution.len() > TEMPLATE_MAX_BYTES {
            return Err(RewriteError::TooLong(substitution.len()));
        }
        let regex = Program::anywhere(pattern)?;
        let groups = regex.regex().captures_len();
        let mut parts = Vec::new();
        let mut text = String::new();
        let mut chars = substitution.chars();
        while let Some(c) = chars.next() {
            if c != '\\' {
                text.push(c);
                continue;
            }
            match chars.next() {
                Some('\\') => text.push('\\'),
                Some(digit @ '0'..='9') => {
                    let group = digit as usize - '0' as usize;
                    if group >= groups {
                        return Err(RewriteError::NoGroup(group));
                    }
                    push_text(&mut parts, &mut text);
                    parts.push(Part::Group(group));
                }
                _ => return Err(RewriteError::Escape),
            }
        }
        push_text(&mut parts, &mut text);
        Ok(Self { regex, substitution: parts.into() })
    }

    /// The value with every match replaced.
    ///
    /// # Errors
    /// [`RewrittenTooLong`]
    pub fn replace_all(&self, value: &str) -> Result<String, RewrittenTooLong> {
        let mut out = String::new();
        let mut from = 0;
        for captures in self.regex.regex().captures_iter(value) {
            let Some(whole) = captures.get_match() else { continue };
            push(&mut out, &value[from..whole.start()])?;
            append(&self.substitution, value, &captures, &mut out)?;
            from = whole.end();
        }
        push(&mut out, &value[from..])?;
        Ok(out)
    }
}

fn push_text(parts: &mut Vec<Part>, text: &mut String) {
    if !text.is_empty() {
        parts.push(Part::Text(std::mem::take(text).into()));
    }
}

fn push(out: &mut String, text: &str) -> Result<(), RewrittenTooLong> {
    if out.len() + text.len() > REWRITTEN_MAX_BYTES {
        return Err(RewrittenTooLong);
    }
    out.push_str(text);
    Ok(())
}

/// `captures`: of `value`.
fn append(
    parts: &[Part],
    value: &str,
    captures: &Captures,
    out: &mut String,
) -> Result<(), RewrittenTooLong> {
    for part in parts {
        let text = match part {
            Part::Text(text) => text,
            Part::Group(group) => {
                captures.get_group(*group).map_or("", |span| &value[span.range()])
            }
        };
        push(out, text)?;
    }
    Ok(())
}

impl Serialize for RegexRewrite {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&format_args!("{} -> {:?}", self.regex.as_str(), self.substitution))
    }
}

/// A path with places that stand for others: `/video/{id=*}/{rest=**}`.
///
/// Spec: `envoy.extensions.path.match.uri_template.v3.UriTemplateMatchConfig`.
#[derive(Clone)]
pub struct UriTemplate {
    template: Box<str>,
    regex: WholeRegex,
    variables: Box<[Box<str>]>,
}

/// Why a template is not taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TemplateError {
    #[error("{0} bytes are more than {TEMPLATE_MAX_BYTES}")]
    TooLong(usize),
    /// It makes a regex that is not taken.
    #[error("{0}")]
    Regex(String),
    #[error("it has to begin with `/` and to be made of visible characters")]
    Form,
    #[error("`{0}` is no part of a path")]
    Literal(String),
    #[error("`{0}` is no variable: {{name}} or {{name=pattern}}")]
    Variable(String),
    #[error("variable `{0}` is there twice")]
    Repeated(String),
    #[error("there are more than {VARIABLES_MAX} variables")]
    TooMany,
    #[error("a wildcard can't follow `**`")]
    AfterTextGlob,
    #[error("nothing but a segment's end can follow `*`, `**` or a variable within the path")]
    Prefix,
    #[error("the template that is matched has no variable `{0}`")]
    Unknown(String),
    #[error("`//` is no part of a path")]
    Empty,
}

/// What a segment may be made of: RFC 3986 `pchar` without `*` and `=`.
const LITERAL_CLASS: &str = r"a-zA-Z0-9._~%!$\&'()+,;:@\-";

fn is_literal(text: &str) -> bool {
    let allowed = |b: u8| b.is_ascii_alphanumeric() || b"-._~%!$&'()+,;:@".contains(&b);
    !text.is_empty() && text.bytes().all(allowed)
}

fn is_variable_name(name: &str) -> bool {
    name.len() <= VARIABLE_NAME_MAX_BYTES
        && name.starts_with(|c: char| c.is_ascii_alphabetic())
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
}

/// Puts a template's regular expression together.
struct Translation {
    regex: String,
    variables: Vec<Box<str>>,
    seen_text_glob: bool,
}

impl Translation {
    /// One operator or literal up to the next `/`; what is left.
    fn part<'a>(&mut self, text: &'a str) -> Result<&'a str, TemplateError> {
        let (glob, rest) = match text.strip_prefix("**") {
            Some(rest) => (Some(true), rest),
            None => match text.strip_prefix('*') {
                Some(rest) => (Some(false), rest),
                None => (None, text),
            },
        };
        match glob {
            Some(is_text) => self.glob(is_text)?,
            None => {
                let end = text.find('/').unwrap_or(text.len());
                self.literal(&text[..end])?;
                return Ok(&text[end..]);
            }
        }
        Ok(rest)
    }

    fn glob(&mut self, is_text: bool) -> Result<(), TemplateError> {
        if self.seen_text_glob {
            return Err(TemplateError::AfterTextGlob);
        }
        self.seen_text_glob = is_text;
        let (more, count) = if is_text { ("/", '*') } else { ("", '+') };
        self.regex.push('[');
        self.regex.push_str(LITERAL_CLASS);
        self.regex.push_str(more);
        self.regex.push(']');
        self.regex.push(count);
        Ok(())
    }

    fn literal(&mut self, text: &str) -> Result<(), TemplateError> {
        if !is_literal(text) {
            return Err(TemplateError::Literal(text.to_owned()));
        }
        self.regex.push_str(&regex::escape(text));
        Ok(())
    }

    /// `{name}` or `{name=pattern}`; what is left.
    fn variable<'a>(&mut self, text: &'a str) -> Result<&'a str, TemplateError> {
        let wrong = || TemplateError::Variable(text.to_owned());
        let (inner, rest) = text[1..].split_once('}').ok_or_else(wrong)?;
        let (name, pattern) = match inner.split_once('=') {
            Some((name, pattern)) => (name, Some(pattern)),
            None => (inner, None),
        };
        if !is_variable_name(name) {
            return Err(wrong());
        }
        if self.variables.iter().any(|known| **known == *name) {
            return Err(TemplateError::Repeated(name.to_owned()));
        }
        if self.variables.len() >= VARIABLES_MAX {
            return Err(TemplateError::TooMany);
        }
        self.variables.push(name.into());
        self.regex.push_str(&format!("(?P<{name}>"));
        match pattern {
            None => self.glob(false)?,
            Some("") => return Err(wrong()),
            Some(mut pattern) => loop {
                pattern = self.part(pattern)?;
                if pattern.is_empty() {
                    break;
                }
                pattern = pattern.strip_prefix('/').filter(|p| !p.is_empty()).ok_or_else(wrong)?;
                self.regex.push('/');
            },
        }
        self.regex.push(')');
        Ok(rest)
    }
}

impl FromStr for UriTemplate {
    type Err = TemplateError;

    fn from_str(template: &str) -> Result<Self, Self::Err> {
        if template.len() > TEMPLATE_MAX_BYTES {
            return Err(TemplateError::TooLong(template.len()));
        }
        let mut rest = template.strip_prefix('/').ok_or(TemplateError::Form)?;
        if !template.bytes().all(|b| b.is_ascii_graphic()) {
            return Err(TemplateError::Form);
        }
        let mut translation =
            Translation { regex: "/".to_owned(), variables: Vec::new(), seen_text_glob: false };
        while !rest.is_empty() {
            rest = match rest.as_bytes()[0] {
                b'{' => translation.variable(rest)?,
                _ => translation.part(rest)?,
            };
            if rest.is_empty() {
                break;
            }
            match rest.strip_prefix('/') {
                Some(next) => {
                    translation.regex.push('/');
                    rest = next;
                }
                // What stands behind the last wildcard: `*.mpd`.
                None if !rest.contains('/') => {
                    translation.literal(rest)?;
                    break;
                }
                None => return Err(TemplateError::Prefix),
            }
        }
        // Escaped literals and a few classes: far below every limit.
        let regex = translation
            .regex
            .parse()
            .map_err(|error: RegexError| TemplateError::Regex(error.to_string()))?;
        Ok(Self { template: template.into(), regex, variables: translation.variables.into() })
    }
}

impl UriTemplate {
    /// Whether a path without query matches as a whole. Linear in its length.
    pub fn is_match(&self, path: &str) -> bool {
        self.regex.is_match(path)
    }
}

impl fmt::Debug for UriTemplate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("UriTemplate").field(&self.template).finish()
    }
}

impl Serialize for UriTemplate {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.template)
    }
}

/// A path made of the variables of another template.
///
/// Spec: `envoy.extensions.path.rewrite.uri_template.v3.UriTemplateRewriteConfig`.
#[derive(Debug, Clone)]
pub struct TemplateRewrite {
    matched: UriTemplate,
    parts: Box<[Part]>,
}

impl TemplateRewrite {
    /// # Errors
    /// It is no template, or names a variable that `matched` does not have.
    pub fn new(template: &str, matched: &UriTemplate) -> Result<Self, TemplateError> {
        if template.len() > TEMPLATE_MAX_BYTES {
            return Err(TemplateError::TooLong(template.len()));
        }
        if !template.starts_with('/') {
            return Err(TemplateError::Form);
        }
        if template.contains("//") {
            return Err(TemplateError::Empty);
        }
        let mut parts = Vec::new();
        let mut rest = template;
        while !rest.is_empty() {
            let Range { start, end } = 0..rest.find('{').unwrap_or(rest.len());
            let text = &rest[start..end];
            if !text.is_empty() {
                if !text.split('/').all(|part| part.is_empty() || is_literal(part)) {
                    return Err(TemplateError::Literal(text.to_owned()));
                }
                parts.push(Part::Text(text.into()));
            }
            rest = &rest[end..];
            let Some(variable) = rest.strip_prefix('{') else { break };
            let wrong = || TemplateError::Variable(rest.to_owned());
            let (name, left) = variable.split_once('}').ok_or_else(wrong)?;
            let index = matched.variables.iter().position(|known| **known == *name);
            let index = index.ok_or_else(|| TemplateError::Unknown(name.to_owned()))?;
            parts.push(Part::Group(index + 1));
            rest = left;
        }
        Ok(Self { matched: matched.clone(), parts: parts.into() })
    }

    /// The new path; `None` where the path is not the template's.
    ///
    /// # Errors
    /// [`RewrittenTooLong`]
    pub fn rewrite(&self, path: &str) -> Result<Option<String>, RewrittenTooLong> {
        let Some(captures) = self.matched.regex.captures(path) else { return Ok(None) };
        let mut out = String::new();
        append(&self.parts, path, &captures, &mut out)?;
        Ok(Some(out))
    }
}

impl Serialize for TemplateRewrite {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&format_args!("{} -> {:?}", self.matched.template, self.parts))
    }
}

#[cfg(test)]
mod tests;
