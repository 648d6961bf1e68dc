//! Envoy's published tables, "Priority levels", "Degraded endpoints" and "Panic
//! threshold". Where their rows contradict each other, or round the rest differently,
//! this is what Envoy does.

use super::*;

/// Of a hundred endpoints, so many are healthy and degraded.
fn level((healthy, degraded): (u64, u64)) -> Level {
    let count = Count { total: 100, healthy, degraded };
    Level { endpoints: count, health: count }
}

fn shares(levels: &[(u64, u64)], threshold: u8) -> Vec<(u32, u32, bool)> {
    let levels: Vec<_> = levels.iter().copied().map(level).collect();
    let shares = distribute(&levels, 140, threshold);
    shares.into_iter().map(|share| (share.healthy, share.degraded, share.panic)).collect()
}

#[test]
fn priorities_spill_over_as_envoys_tables_say() {
    for (healthy, expected) in [
        (&[100, 100][..], &[100, 0][..]),
        (&[72, 100], &[100, 0]),
        (&[71, 100], &[99, 1]),
        (&[50, 100], &[70, 30]),
        (&[25, 100], &[35, 65]),
        (&[0, 100], &[0, 100]),
        (&[72, 72], &[100, 0]),
        (&[71, 71], &[99, 1]),
        (&[50, 50], &[70, 30]),
        (&[25, 25], &[50, 50]),
        (&[100, 100, 100], &[100, 0, 0]),
        (&[72, 72, 100], &[100, 0, 0]),
        (&[71, 71, 100], &[99, 1, 0]),
        (&[50, 50, 100], &[70, 30, 0]),
        (&[25, 100, 100], &[35, 65, 0]),
        (&[25, 25, 100], &[35, 35, 30]),
        (&[25, 25, 20], &[37, 35, 28]),
    ] {
        let levels: Vec<_> = healthy.iter().map(|healthy| (*healthy, 0)).collect();
        let got: Vec<_> = shares(&levels, 0).iter().map(|share| share.0).collect();
        assert_eq!(got, expected, "{healthy:?}");
    }
}

#[test]
fn degraded_endpoints_take_what_healthy_ones_can_not_bear() {
    for ((healthy, degraded), expected) in [
        ((100, 0), (100, 0)),
        ((71, 0), (100, 0)),
        ((71, 29), (99, 1)),
        ((25, 65), (35, 65)),
        ((5, 0), (100, 0)),
        ((0, 5), (0, 100)),
    ] {
        let got = shares(&[(healthy, degraded)], 0)[0];
        assert_eq!((got.0, got.1), expected, "{healthy} {degraded}");
    }
    // Any healthy endpoint comes first, also of a lower priority.
    assert_eq!(shares(&[(25, 65), (50, 50)], 50), [(35, 0, false), (65, 0, false)]);
}

#[test]
fn panic_is_for_priorities_that_lack_while_all_together_lack() {
    for (healthy, expected) in [
        ([72, 100], [(100, false), (0, false)]),
        ([0, 100], [(0, false), (100, false)]),
        ([72, 72], [(100, false), (0, false)]),
        ([50, 60], [(70, false), (30, false)]),
        ([25, 25], [(50, true), (50, true)]),
        ([5, 65], [(8, true), (92, false)]),
    ] {
        let levels = healthy.map(|healthy| (healthy, 0));
        let got: Vec<_> = shares(&levels, 50).iter().map(|share| (share.0, share.2)).collect();
        assert_eq!(got, expected, "{healthy:?}");
    }
    // Degraded endpoints are available ones.
    assert_eq!(shares(&[(20, 40)], 50), [(34, 66, false)]);
    assert_eq!(shares(&[(20, 20)], 50), [(100, 0, true)]);
}

#[test]
fn in_total_panic_each_priority_takes_as_much_as_it_has_endpoints() {
    let of = |total| {
        let count = Count { total, healthy: 0, degraded: 0 };
        Level { endpoints: count, health: count }
    };
    let got = |totals: &[u64], threshold| -> Vec<_> {
        let levels: Vec<_> = totals.iter().copied().map(of).collect();
        distribute(&levels, 140, threshold).iter().map(|s| (s.healthy, s.panic)).collect()
    };
    assert_eq!(got(&[1, 2], 50), [(34, true), (66, true)]);
    assert_eq!(got(&[0, 3], 50), [(0, true), (100, true)]);
    assert_eq!(got(&[0], 50), [(100, true)]);
    assert_eq!(got(&[], 50), []);
    // Without panic the first takes all, and has nobody to give it to.
    assert_eq!(got(&[1, 2], 0), [(100, false), (0, false)]);
}

#[test]
fn shares_always_add_up() {
    for seed in 0..5000_u64 {
        let part = |salt: u64| (seed * 7919 + salt * 104_729) % 101;
        let levels: Vec<_> = (0..1 + seed % 4)
            .map(|i| {
                let healthy = part(i);
                let degraded = part(i + 9) % (101 - healthy);
                let total = healthy + degraded + part(i + 5) % 3;
                let count = Count { total, healthy, degraded };
                Level { endpoints: count, health: count }
            })
            .collect();
        for (factor, threshold) in [(140, 50), (100, 0), (1, 100), (u32::MAX, 50)] {
            let shares = distribute(&levels, factor, threshold);
            let sum: u32 = shares.iter().map(|share| share.healthy + share.degraded).sum();
            assert_eq!(sum, 100, "{levels:?} {factor} {threshold}");
        }
    }
}
