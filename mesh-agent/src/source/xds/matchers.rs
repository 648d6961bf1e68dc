//! Matchers of strings, paths, headers and regexes.
//!
//! Spec: `envoy/type/matcher/v3/{string,regex,path}.proto`,
//! `envoy/config/route/v3/route_components.proto` (`HeaderMatcher`).

use envoy_types::pb::envoy::{
    config::route::v3::{
        HeaderMatcher as PbHeaderMatcher, header_matcher::HeaderMatchSpecifier as Specifier,
    },
    r#type::{
        matcher::v3::{
            MetadataMatcher as PbMetadataMatcher, PathMatcher, RegexMatchAndSubstitute,
            RegexMatcher, StringMatcher as PbStringMatcher, ValueMatcher as PbValueMatcher,
            double_matcher, list_matcher,
            metadata_matcher::path_segment,
            path_matcher,
            regex_matcher::{EngineType, GoogleRe2},
            string_matcher::MatchPattern,
            value_matcher,
        },
        v3::{DoubleRange, Int64Range},
    },
};

use super::reject::{Decoder, unsupported};
use crate::model::{
    authz::{StringMatcher, StringPattern},
    metadata::{MetadataMatcher, ValueMatcher},
    regex::{REGEX_MAX_BYTES, RegexError, WholeRegex},
    rewrite::RegexRewrite,
    route::{HeaderMatchKind, HeaderMatcher},
};

/// The request's pseudo-headers that a matcher may name.
const PSEUDO_HEADERS: [&str; 3] = [":authority", ":method", ":path"];

/// Spec: `envoy.type.matcher.v3.RegexMatcher`.
pub(super) fn regex(d: &mut Decoder, value: RegexMatcher) -> Option<WholeRegex> {
    let RegexMatcher { regex, engine_type } = value;
    #[expect(deprecated, reason = "control planes still send it, and it says nothing")]
    if let Some(EngineType::GoogleRe2(GoogleRe2 { max_program_size })) = engine_type {
        d.field("google_re2", |d| unsupported!(d; max_program_size));
    }
    d.field("regex", |d| {
        if regex.is_empty() {
            return d.refused("is missing");
        }
        match regex.parse() {
            Ok(regex) => Some(regex),
            Err(RegexError::TooLong(_)) => {
                d.refused(format!("is longer than {REGEX_MAX_BYTES} bytes"))
            }
            Err(error @ (RegexError::TooBig | RegexError::TooMany | RegexError::Refused(_))) => {
                d.refused(error.to_string())
            }
            Err(RegexError::Invalid(error)) => {
                // The last line says what is wrong; those above draw where.
                let error = error.to_string();
                let why = error.lines().last().unwrap_or_default();
                d.refused(format!("`{regex}`: {}", why.trim_start_matches("error: ")))
            }
        }
    })
}

/// Spec: `envoy.type.matcher.v3.RegexMatchAndSubstitute`.
pub(super) fn regex_rewrite(
    d: &mut Decoder,
    value: RegexMatchAndSubstitute,
) -> Option<RegexRewrite> {
    let RegexMatchAndSubstitute { pattern, substitution } = value;
    let Some(pattern) = pattern else { return d.field("pattern", |d| d.refused("is missing")) };
    // Says what is wrong with the pattern, by its own path.
    d.field("pattern", |d| regex(d, pattern.clone()))?;
    d.field("substitution", |d| match RegexRewrite::new(&pattern.regex, &substitution) {
        Ok(rewrite) => Some(rewrite),
        Err(error) => d.refused(format!("`{substitution}`: {error}")),
    })
}

/// Spec: `envoy.type.matcher.v3.StringMatcher`.
pub(super) fn string(d: &mut Decoder, value: PbStringMatcher) -> Option<StringMatcher> {
    let PbStringMatcher { ignore_case, match_pattern } = value;
    let not_empty = |d: &mut Decoder, field: &str, s: String| match s.is_empty() {
        true => d.field(field, |d| d.refused("is empty, which would match everything")),
        false => Some(s),
    };
    let pattern = match match_pattern {
        Some(MatchPattern::Exact(s)) => StringPattern::Exact(s),
        Some(MatchPattern::Prefix(s)) => StringPattern::Prefix(not_empty(d, "prefix", s)?),
        Some(MatchPattern::Suffix(s)) => StringPattern::Suffix(not_empty(d, "suffix", s)?),
        Some(MatchPattern::Contains(s)) => StringPattern::Contains(not_empty(d, "contains", s)?),
        Some(MatchPattern::SafeRegex(r)) => {
            if ignore_case {
                d.refuse_field("ignore_case", "has no effect on safe_regex; use (?i)");
            }
            StringPattern::Regex(d.field("safe_regex", |d| regex(d, r))?)
        }
        Some(MatchPattern::Custom(_)) => {
            return d.not_supported("custom");
        }
        None => return d.refused("has no pattern"),
    };
    Some(StringMatcher { pattern, ignore_case })
}

/// Spec: `envoy.type.matcher.v3.MetadataMatcher`.
pub(super) fn metadata(d: &mut Decoder, value: PbMetadataMatcher) -> Option<MetadataMatcher> {
    let PbMetadataMatcher { filter, path, value, invert } = value;
    if filter.is_empty() {
        d.refuse_field("filter", "is missing");
    }
    if path.is_empty() {
        d.refuse_field("path", "is empty");
    }
    let path = d.all("path", path, |d, segment| match segment.segment {
        Some(path_segment::Segment::Key(key)) if !key.is_empty() => Some(key),
        _ => d.refused("has no key"),
    });
    let value = d.field("value", |d| match value {
        Some(value) => self::value(d, value),
        None => d.refused("is missing"),
    });
    Some(MetadataMatcher { namespace: filter, path: path?, value: value?, invert })
}

/// Spec: `envoy.type.matcher.v3.ValueMatcher`.
fn value(d: &mut Decoder, matcher: PbValueMatcher) -> Option<ValueMatcher> {
    use value_matcher::MatchPattern as Pattern;
    match matcher.match_pattern {
        Some(Pattern::NullMatch(_)) => Some(ValueMatcher::Null),
        Some(Pattern::DoubleMatch(double)) => {
            d.field("double_match", |d| match double.match_pattern {
                Some(double_matcher::MatchPattern::Exact(exactly)) => {
                    Some(ValueMatcher::Exactly(exactly))
                }
                Some(double_matcher::MatchPattern::Range(DoubleRange { start, end })) => {
                    Some(ValueMatcher::Range { start, end })
                }
                None => d.refused("has no pattern"),
            })
        }
        Some(Pattern::StringMatch(string)) => {
            d.field("string_match", |d| self::string(d, string)).map(ValueMatcher::String)
        }
        Some(Pattern::BoolMatch(wanted)) => Some(ValueMatcher::Bool(wanted)),
        Some(Pattern::PresentMatch(present)) => Some(ValueMatcher::Present(present)),
        Some(Pattern::ListMatch(list)) => d.field("list_match", |d| match list.match_pattern {
            Some(list_matcher::MatchPattern::OneOf(one)) => {
                let one = d.field("one_of", |d| value(d, *one))?;
                Some(ValueMatcher::OneOf(Box::new(one)))
            }
            None => d.refused("has no pattern"),
        }),
        Some(Pattern::OrMatch(any)) => d.field("or_match", |d| {
            if any.value_matchers.len() < 2 {
                d.refuse_field("value_matchers", "has less than two");
            }
            d.all("value_matchers", any.value_matchers, value).map(ValueMatcher::Or)
        }),
        None => d.refused("has no pattern"),
    }
}

/// Spec: `envoy.type.matcher.v3.PathMatcher`.
pub(super) fn path(d: &mut Decoder, value: PathMatcher) -> Option<StringMatcher> {
    match value.rule {
        Some(path_matcher::Rule::Path(matcher)) => d.field("path", |d| string(d, matcher)),
        None => d.refused("has no path"),
    }
}

/// Spec: `envoy.config.route.v3.HeaderMatcher`, with its deprecated kinds.
pub(super) fn header(d: &mut Decoder, value: PbHeaderMatcher) -> Option<HeaderMatcher> {
    let PbHeaderMatcher {
        name,
        invert_match,
        treat_missing_header_as_empty,
        header_match_specifier,
    } = value;
    let name = d.field("name", |d| header_name(d, &name));
    let exactly =
        |pattern| Some(HeaderMatchKind::String(StringMatcher { pattern, ignore_case: false }));
    let not_empty = |d: &mut Decoder, field: &str, s: String, pattern: fn(String) -> _| {
        if s.is_empty() {
            return d.field(field, |d| d.refused("is empty, which would match everything"));
        }
        exactly(pattern(s))
    };
    #[expect(deprecated, reason = "control planes still send the deprecated kinds")]
    let kind = match header_match_specifier {
        // As Envoy: a matcher that says nothing else asks for the header's presence.
        None => Some(HeaderMatchKind::Present(true)),
        Some(Specifier::PresentMatch(present)) => Some(HeaderMatchKind::Present(present)),
        Some(Specifier::StringMatch(matcher)) => {
            d.field("string_match", |d| string(d, matcher)).map(HeaderMatchKind::String)
        }
        Some(Specifier::RangeMatch(Int64Range { start, end })) => d.field("range_match", |d| {
            if start < end {
                return Some(HeaderMatchKind::Range { start, end });
            }
            d.refused(format!("{start} up to but not {end} is empty and would never match"))
        }),
        Some(Specifier::ExactMatch(s)) => exactly(StringPattern::Exact(s)),
        Some(Specifier::SafeRegexMatch(r)) => {
            let regex = d.field("safe_regex_match", |d| regex(d, r));
            regex.and_then(|regex| exactly(StringPattern::Regex(regex)))
        }
        Some(Specifier::PrefixMatch(s)) => not_empty(d, "prefix_match", s, StringPattern::Prefix),
        Some(Specifier::SuffixMatch(s)) => not_empty(d, "suffix_match", s, StringPattern::Suffix),
        Some(Specifier::ContainsMatch(s)) => {
            not_empty(d, "contains_match", s, StringPattern::Contains)
        }
    };
    Some(HeaderMatcher {
        name: name?,
        kind: kind?,
        invert: invert_match,
        treat_missing_as_empty: treat_missing_header_as_empty,
    })
}

pub(super) fn header_name(d: &mut Decoder, name: &str) -> Option<String> {
    let name = name.to_ascii_lowercase();
    match name.as_str() {
        "" => d.refused("is missing"),
        // Envoy's header map knows the two as one.
        "host" => Some(":authority".to_owned()),
        pseudo if PSEUDO_HEADERS.contains(&pseudo) => Some(pseudo.to_owned()),
        other if http::HeaderName::try_from(other).is_ok() => Some(other.to_owned()),
        other => d.refused(format!("`{other}` is not a header's name")),
    }
}
