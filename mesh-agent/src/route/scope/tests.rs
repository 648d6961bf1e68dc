use super::*;

fn head(headers: &[(&str, &str)]) -> Parts {
    let mut request = http::Request::builder().uri("http://shop.test/cart?x=1");
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    request.body(()).unwrap().into_parts().0
}

fn key(
    header: &str,
    separator: &str,
    extract: Extract,
    headers: &[(&str, &str)],
) -> Option<String> {
    let header = header.to_owned();
    let fragment = KeyFragment { header, separator: separator.to_owned(), extract };
    scope_key(&[fragment], &head(headers)).map(|key| key.concat())
}

#[test]
fn an_element_is_taken_by_its_place() {
    let at = |separator, index, value| key("x", separator, Extract::Index(index), &[("x", value)]);
    assert_eq!(at("", 0, "a;b").as_deref(), Some("a;b"));
    assert_eq!(at(";", 0, "a;b").as_deref(), Some("a"));
    assert_eq!(at(";", 1, "a;b").as_deref(), Some("b"));
    assert_eq!(at(";", 1, "a;;b").as_deref(), Some(""));
    assert_eq!(at(";", 2, "a;b"), None);
    assert_eq!(at("::", 1, "a::b:c").as_deref(), Some("b:c"));
    assert_eq!(at("", 0, "").as_deref(), Some(""));
}

#[test]
fn an_element_is_taken_by_its_key_and_the_first_one_counts() {
    let of = |separator, value| {
        let (own, key_is) = ("=".to_owned(), "vip".to_owned());
        key("x", separator, Extract::Element { separator: own, key: key_is }, &[("x", value)])
    };
    assert_eq!(of(",", "a=1,vip=2,vip=3").as_deref(), Some("2"));
    assert_eq!(of("", "vip=2,b=3").as_deref(), Some("2,b=3"));
    assert_eq!(of(",", "vip=2=3").as_deref(), Some("2=3"));
    assert_eq!(of(",", ",vip").as_deref(), Some(""));
    assert_eq!(of(",", "vips=1,VIP=2"), None);
    assert_eq!(of(",", ""), None);
}

#[test]
fn only_the_first_value_of_a_header_is_looked_at_and_a_missing_one_makes_no_key() {
    let index = Extract::Index(0);
    assert_eq!(key("x", "", index.clone(), &[("x", "a"), ("x", "b")]).as_deref(), Some("a"));
    assert_eq!(key("x", "", index.clone(), &[("y", "a")]), None);
    assert_eq!(key(":authority", "", index.clone(), &[]).as_deref(), Some("shop.test"));
    assert_eq!(key(":path", "", index.clone(), &[]).as_deref(), Some("/cart?x=1"));
    let fragment = |header: &str| KeyFragment {
        header: header.to_owned(),
        separator: String::new(),
        extract: index.clone(),
    };
    let both = [fragment("x"), fragment("y")];
    assert_eq!(scope_key(&both, &head(&[("x", "a")])), None);
    let found = scope_key(&both, &head(&[("y", "b"), ("x", "a")]));
    assert_eq!(found, Some(vec!["a".to_owned(), "b".to_owned()]));
}
