use super::*;

/// What a check says of TCP itself shows whether the check is right.
#[test]
fn plain_tcp_passes_every_check() {
    for (name, _, check) in spliced() {
        // On a busy machine one that waits for a moment may not get it.
        let seen: Vec<_> =
            (0..5).map(|_| check(&Wiring(None))).take_while(Result::is_err).collect();
        assert!(seen.len() < 5, "{name}: {seen:?}");
    }
}

#[test]
fn every_check_comes_to_an_end_in_time_and_is_named_once() {
    let begun = Instant::now();
    let test = self_test();
    assert!(begun.elapsed() < 10 * DEADLINE, "{:?}", begun.elapsed());
    let mut names: Vec<_> = test.checks.iter().map(|check| &check.name).collect();
    assert_eq!(names.len(), spliced().count() + features::CHECKS.len());
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), test.checks.len());
    assert!(test.checks.iter().all(|check| !check.detail.is_empty()), "{test:?}");
}
