use super::*;

#[test]
fn little_does_not_become_much() {
    let value = "v".repeat(60_000);
    for (pattern, substitution) in
        [(".*", r"\0".repeat(2000)), ("", "x".repeat(4000)), ("(.)", r"\1\1".to_owned())]
    {
        let rewrite = RegexRewrite::new(pattern, &substitution).unwrap();
        let taken = allocation_counter::measure(|| {
            assert_eq!(rewrite.replace_all(&value), Err(RewrittenTooLong), "{pattern}");
        });
        assert!(taken.bytes_max < 1 << 20, "{pattern}: {} bytes", taken.bytes_max);
        assert!(rewrite.replace_all("/v").is_ok(), "{pattern}");
    }
    let whole = RegexRewrite::new("^v*$", r"\0").unwrap();
    assert_eq!(whole.replace_all(&value).as_ref(), Ok(&value));
    let matched = "/{all=**}".parse().unwrap();
    let rewrite = TemplateRewrite::new(&"/{all}".repeat(600), &matched).unwrap();
    assert_eq!(rewrite.rewrite(&format!("/{value}")), Err(RewrittenTooLong));
    assert!(rewrite.rewrite("/v").unwrap().unwrap().starts_with("/v/v/v"));
}

#[test]
fn a_regex_is_replaced_wherever_it_matches() {
    for (pattern, substitution, value, expected) in [
        ("one", "two", "/xx/one/yy/one/zz", "/xx/two/yy/two/zz"),
        (
            "^/service/([^/]+)(/.*)$",
            r"\2/instance/\1",
            "/service/foo/v1/api",
            "/v1/api/instance/foo",
        ),
        ("(?i)/aaa/", "/", "/aaa/AaA/b", "/AaA/b"),
        ("b", r"\\\0$1", "abc", r"a\b$1c"),
        ("x", "y", "abc", "abc"),
    ] {
        let rewrite = RegexRewrite::new(pattern, substitution).unwrap();
        assert_eq!(rewrite.replace_all(value).unwrap(), expected, "{pattern} {substitution}");
    }
    for (pattern, substitution, expected) in [
        ("a", r"\1", RewriteError::NoGroup(1)),
        ("a", r"\", RewriteError::Escape),
        ("a", r"\x", RewriteError::Escape),
    ] {
        assert_eq!(RegexRewrite::new(pattern, substitution).unwrap_err(), expected);
    }
    assert!(matches!(RegexRewrite::new("(", ""), Err(RewriteError::Regex(_))));
    let long = "x".repeat(TEMPLATE_MAX_BYTES + 1);
    assert!(matches!(RegexRewrite::new("a", &long), Err(RewriteError::TooLong(_))));
}

#[test]
fn a_template_matches_a_whole_path() {
    for (template, path, expected) in [
        ("/", "/", true),
        ("/", "/a", false),
        ("/a/*/c", "/a/b/c", true),
        ("/a/*/c", "/a/b/d/c", false),
        ("/a/*/c", "/a//c", false),
        ("/a/**", "/a/b/c", true),
        ("/a/**", "/a/", true),
        ("/a/**", "/a", false),
        ("/a/{v}/c", "/a/b/c", true),
        ("/a/{v=x/*}/c", "/a/x/b/c", true),
        ("/a/{v=x/*}/c", "/a/y/b/c", false),
        ("/a/{v=**}.mpd", "/a/b/c.mpd", true),
        ("/a/*.m3u8", "/a/b.m3u8", true),
        ("/a/*.m3u8", "/a/bxm3u8", false),
        ("/a/", "/a/", true),
        ("/a/", "/a", false),
        // Not of a segment's characters.
        ("/a/*", "/a/b=c", false),
    ] {
        let template: UriTemplate = template.parse().unwrap();
        assert_eq!(template.is_match(path), expected, "{template:?} {path}");
    }
}

#[test]
fn a_template_is_refused_that_envoy_refuses() {
    for template in [
        "",
        "a",
        "/a b",
        "/**/*",
        "/**/{v}",
        "/{v}/{v}",
        "/{}",
        "/{v",
        "/{v=}",
        "/{v=a/}",
        "/{1}",
        "/{abcdefghijklmnopq}",
        "/*a/b",
        "/a//b",
        "/a=b",
        "/{a}/{b}/{c}/{d}/{e}/{f}",
    ] {
        assert!(template.parse::<UriTemplate>().is_err(), "{template} was accepted");
    }
}

#[test]
fn a_path_is_made_of_variables() {
    let matched: UriTemplate = "/{lang}/{format=**}".parse().unwrap();
    let rewrite = TemplateRewrite::new("/{format}/en-{lang}", &matched).unwrap();
    assert_eq!(rewrite.rewrite("/de/a/b").unwrap().as_deref(), Some("/a/b/en-de"));
    assert_eq!(rewrite.rewrite("x"), Ok(None));
    for template in ["", "x", "/{other}", "/{lang", "/a//b", "/a=b"] {
        assert!(TemplateRewrite::new(template, &matched).is_err(), "{template} was accepted");
    }
}
