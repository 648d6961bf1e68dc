use super::*;

fn turns(weights: &[u32], start: u32, count: usize) -> Vec<usize> {
    let rotation = Rotation::new(weights.iter().copied(), start);
    (0..count).map(|_| rotation.next().unwrap()).collect()
}

fn shares(turns: &[usize], hosts: usize) -> Vec<usize> {
    (0..hosts).map(|host| turns.iter().filter(|turn| **turn == host).count()).collect()
}

#[test]
fn equal_weights_take_turns() {
    assert_eq!(turns(&[1, 1, 1], 0, 6), [0, 1, 2, 0, 1, 2]);
    assert_eq!(turns(&[7, 7, 7], 2, 4), [2, 0, 1, 2]);
    assert_eq!(turns(&[5], 9, 3), [0, 0, 0]);
    assert!(Rotation::new([].into_iter(), 0).next().is_none());
    assert!(Rotation::new([].into_iter(), 3).next().is_none());
}

#[test]
fn the_position_may_wrap() {
    let rotation = Rotation::Even { count: 3, position: AtomicUsize::new(usize::MAX - 1) };
    for _ in 0..6 {
        assert!(rotation.next().unwrap() < 3);
    }
}

#[test]
fn weights_are_kept_exactly_in_every_round() {
    for weights in [&[1, 2][..], &[5, 1, 1], &[1, 2, 3, 4], &[100, 1], &[3, 3, 1], &[1, 1000]] {
        let round: usize = weights.iter().map(|w| usize::try_from(*w).unwrap()).sum();
        let expected: Vec<usize> =
            weights.iter().map(|w| usize::try_from(*w).unwrap() * 10).collect();
        for (host, share) in
            shares(&turns(weights, 0, round * 10), weights.len()).iter().enumerate()
        {
            assert!(share.abs_diff(expected[host]) <= 1, "{weights:?} host {host}: {share}");
        }
    }
}

#[test]
fn heavy_endpoints_do_not_come_in_bursts() {
    // In any window, each endpoint has its share to within one turn.
    let weights = [5u32, 3, 2];
    let taken = turns(&weights, 0, 1000);
    for window in taken.windows(10) {
        for (host, share) in shares(window, 3).iter().enumerate() {
            assert!(share.abs_diff(weights[host] as usize) <= 1, "{window:?}");
        }
    }
    // The lightest of them is not starved either.
    let weights = [1, 1, 98];
    assert!(turns(&weights, 0, 1000).windows(102).all(|window| window.contains(&0)));
}

#[test]
fn agents_begin_at_different_endpoints() {
    let first = |start| turns(&[3, 2, 1], start, 1)[0];
    assert!((1..3).any(|start| first(start) != first(0)));
    // A large start costs no more than one round of picks.
    assert!(turns(&[3, 2, 1], u32::MAX, 1)[0] < 3);
}

#[test]
fn extreme_weights_neither_overflow_nor_starve() {
    let taken = turns(&[u32::MAX, u32::MAX - 1, u32::MAX / 2], 0, 1000);
    let shares = shares(&taken, 3);
    assert!(shares[0].abs_diff(400) <= 2 && shares[2].abs_diff(200) <= 2, "{shares:?}");
    // Weight 0 is not in the model; it counts as 1.
    assert!(turns(&[0, 2], 0, 6).contains(&0));
}

#[test]
fn threads_share_one_rotation() {
    let rotation = Rotation::new([2, 1].into_iter(), 0);
    let taken: Vec<usize> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..3)
            .map(|_| scope.spawn(|| (0..100).filter_map(|_| rotation.next()).collect::<Vec<_>>()))
            .collect();
        threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
    });
    let shares = shares(&taken, 2);
    assert!(shares[0].abs_diff(200) <= 1, "{shares:?}");
}
