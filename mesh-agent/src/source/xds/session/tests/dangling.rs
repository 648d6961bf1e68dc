//! What leads to a cluster that is not there, not yet, or no more.

use super::{messages::validated_routes, *};

/// A listener, its routes to cluster `a`, and its endpoints, in force.
fn serving() -> Bench {
    let mut bench = Bench::sotw(Variant::Sotw);
    bench.says(CDS, "1", "c1", vec![cluster("a")]);
    bench.says(EDS, "1", "e1", vec![endpoints("a", 1)]);
    bench.says(LDS, "1", "l1", vec![http_listener("l", 80, "r")]);
    bench.says(RDS, "1", "r1", vec![routes("r", "a")]);
    bench.expect_in_force(&["cds/a", "eds/a:1", "lds/l", "rds/r"]);
    bench
}

#[test]
fn routes_and_opaque_listeners_do_without_a_cluster_that_is_not_there() {
    let mut bench = Bench::sotw(Variant::Sotw);
    bench.says(CDS, "1", "c1", vec![]);
    bench.says(LDS, "1", "l1", vec![http_listener("l", 80, "r"), tcp_listener("t", 81, "a")]);
    bench.says(RDS, "1", "r1", vec![routes("r", "a")]);
    bench.expect_in_force(&["lds/l", "lds/t", "rds/r"]);
    assert!(bench.warming().is_empty());
}

#[test]
fn routes_that_are_to_be_validated_wait_for_their_clusters() {
    let mut bench = serving();
    let updates = bench.updates;
    bench.says(RDS, "2", "r2", vec![validated_routes("r", "b")]);
    assert_eq!(bench.updates, updates);
    assert_eq!(bench.warming(), ["routes[r] waits for clusters[b]"]);
    bench.says(CDS, "2", "c2", vec![cluster("a"), cluster("b")]);
    bench.says(EDS, "2", "e2", vec![endpoints("a", 1), endpoints("b", 1)]);
    assert!(bench.warming().is_empty());
}

#[test]
fn routes_in_force_stay_until_the_cluster_of_the_next_ones_has_its_endpoints() {
    let mut bench = serving();
    bench.says(CDS, "2", "c2", vec![cluster("a"), cluster("b")]);
    bench.says(RDS, "2", "r2", vec![routes("r", "b")]);
    assert_eq!(
        bench.warming(),
        ["routes[r] waits for clusters[b]", "clusters[b] waits for endpoints[b]"]
    );
    bench.says(EDS, "2", "e2", vec![endpoints("a", 1), endpoints("b", 2)]);
    assert!(bench.warming().is_empty());
    bench.expect_in_force(&["cds/a", "cds/b", "eds/a:1", "eds/b:2", "lds/l", "rds/r"]);
}

#[test]
fn a_cluster_that_goes_while_something_leads_to_it_has_a_while_to_be_left() {
    let mut bench = serving();
    bench.says(CDS, "2", "c2", vec![]);
    bench.after(Duration::from_secs(14));
    bench.expect_in_force(&["cds/a", "eds/a:1", "lds/l", "rds/r"]);
    bench.after(Duration::from_secs(2));
    bench.expect_in_force(&["lds/l", "rds/r"]);

    // One that comes back in time stays.
    let mut bench = serving();
    bench.says(CDS, "2", "c2", vec![]);
    bench.after(Duration::from_secs(14));
    bench.says(CDS, "3", "c3", vec![cluster("a")]);
    bench.after(Duration::from_secs(3600));
    bench.expect_in_force(&["cds/a", "eds/a:1", "lds/l", "rds/r"]);

    // One that is left goes at once.
    let mut bench = serving();
    bench.says(CDS, "2", "c2", vec![]);
    bench.says(LDS, "2", "l2", vec![]);
    bench.expect_in_force(&[]);
}

#[test]
fn a_whole_service_goes_and_comes_back() {
    let mut bench = Bench::new(Variant::Delta);
    let comes = |bench: &mut Bench, round: &str| {
        bench.tells(CDS, &format!("c{round}"), &[("a", cluster("a"))], &[]);
        bench.tells(LDS, &format!("l{round}"), &[("l", http_listener("l", 80, "r"))], &[]);
        bench.tells(EDS, &format!("e{round}"), &[("a", endpoints("a", 1))], &[]);
        if round != "1" {
            bench.expect_in_force(&["cds/a", "eds/a:1"]);
        }
        bench.tells(RDS, &format!("r{round}"), &[("r", routes("r", "a"))], &[]);
        bench.expect_in_force(&["cds/a", "eds/a:1", "lds/l", "rds/r"]);
    };
    comes(&mut bench, "1");
    // In whatever order it is told.
    let goes: [&[(&str, &str)]; 2] = [
        &[(CDS, "a"), (EDS, "a"), (LDS, "l"), (RDS, "r")],
        &[(LDS, "l"), (RDS, "r"), (CDS, "a"), (EDS, "a")],
    ];
    // The listener is told before its routes, which must not be taken for absent.
    for (round, order) in goes.iter().enumerate() {
        for (kind, name) in *order {
            bench.tells(kind, &format!("gone-{round}-{kind}"), &[], &[name]);
        }
        bench.expect_in_force(&[]);
        comes(&mut bench, &format!("again-{round}"));
    }
}
