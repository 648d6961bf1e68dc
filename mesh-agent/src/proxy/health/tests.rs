use super::*;

#[test]
fn what_is_expected_has_to_come_in_its_order() {
    let blocks = |blocks: &[&'static str]| -> Vec<Bytes> {
        blocks.iter().map(|block| Bytes::from_static(block.as_bytes())).collect()
    };
    for (wanted, came, expected) in [
        (&["a", "b"][..], "xaxxbx", true),
        (&["a", "b"], "ba", false),
        (&["aa", "aa"], "aaa", false),
        (&["aa", "aa"], "aaaa", true),
        (&["abc"], "ab", false),
        (&[], "", true),
    ] {
        assert_eq!(has_all(&blocks(wanted), came.as_bytes()), expected, "{wanted:?} in {came}");
    }
}
