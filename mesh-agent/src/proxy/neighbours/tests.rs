use std::io;

use super::*;
use crate::{
    model::{
        socket::PodSockets,
        workload::{MtlsMode, Workload},
    },
    policy::fixtures::{addr, identity},
};

#[derive(Debug)]
struct NoSockets;

impl PodSockets for NoSockets {
    fn tcp(&self, _: std::net::SocketAddr) -> io::Result<socket2::Socket> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn tcp_from(
        &self,
        _: std::net::SocketAddr,
        _: std::net::SocketAddr,
    ) -> io::Result<socket2::Socket> {
        Err(io::ErrorKind::Unsupported.into())
    }
}

type Known = (Arc<Pod>, Vec<IpAddr>);

fn known(name: &str, address: &str) -> Known {
    let addresses = vec![address.parse().unwrap()];
    let workload = Workload {
        uid: WorkloadUid(name.into()),
        name: name.to_owned(),
        identity: identity(name),
        addresses: addresses.clone(),
        labels: Default::default(),
        mtls: MtlsMode::Strict,
    };
    (Arc::new(Pod { workload, sockets: Arc::new(NoSockets) }), addresses)
}

fn target(source: &Known, authority: &str, expected: &str) -> HboneTarget {
    HboneTarget {
        pod: Arc::clone(&source.0),
        tunnel: addr("10.1.0.3:15008"),
        authority: addr(authority),
        identity: identity(expected),
        workload: None,
    }
}

/// Whether a tunnel for `to` stays within; `Some(token)`: for as long as it is not cancelled.
fn meets(neighbours: &Neighbours, source: &Known, to: &HboneTarget) -> Option<CancellationToken> {
    let table = neighbours.table.load();
    table.pair(&source.0, to).map(|[_, to]| to.leaving.clone())
}

#[test]
fn only_who_is_meant_is_met() {
    let neighbours = Neighbours::default();
    let (client, web) = (known("client", "10.1.0.2"), known("web", "10.1.0.3"));
    let to_web = target(&client, "10.1.0.3:80", "web");
    assert!(meets(&neighbours, &client, &to_web).is_none());
    neighbours.replace(vec![client.clone(), web.clone()], Judged::default());
    assert!(meets(&neighbours, &client, &to_web).is_some());

    let of_another = target(&client, "10.1.0.3:80", "db");
    assert!(meets(&neighbours, &client, &of_another).is_none(), "another identity");
    let elsewhere = target(&client, "10.1.0.4:80", "web");
    assert!(meets(&neighbours, &client, &elsewhere).is_none(), "no pod of this node");
    let to_itself = target(&web, "10.1.0.3:80", "web");
    assert!(meets(&neighbours, &web, &to_itself).is_none(), "itself");
    let stranger = known("stranger", "10.1.0.9");
    assert!(meets(&neighbours, &stranger, &to_web).is_none(), "by no such source");
    let workload = Some(WorkloadUid("web-2".into()));
    let other_instance = HboneTarget { workload, ..to_web.clone() };
    assert!(meets(&neighbours, &client, &other_instance).is_none(), "another instance");
    let mut posing = known("client", "10.1.0.2");
    Arc::get_mut(&mut posing.0).unwrap().workload.identity = identity("admin");
    assert!(meets(&neighbours, &posing, &to_web).is_none(), "another identity of the source");
}

#[test]
fn an_address_of_two_is_nobodys() {
    let neighbours = Neighbours::default();
    let (client, web) = (known("client", "10.1.0.2"), known("web", "10.1.0.3"));
    let twin = known("twin", "10.1.0.3");
    neighbours.replace(vec![client.clone(), web, twin], Judged::default());
    assert!(meets(&neighbours, &client, &target(&client, "10.1.0.3:80", "web")).is_none());
}

#[test]
fn who_leaves_is_told_and_who_stays_is_not() {
    let neighbours = Neighbours::default();
    let (client, web) = (known("client", "10.1.0.2"), known("web", "10.1.0.3"));
    let to_web = target(&client, "10.1.0.3:80", "web");
    neighbours.replace(vec![client.clone(), web.clone()], Judged::default());
    let leaving = meets(&neighbours, &client, &to_web).unwrap();
    neighbours.replace(vec![client.clone(), web.clone()], Judged::default());
    assert!(!leaving.is_cancelled());
    // Enrolled anew, it is another.
    neighbours.replace(vec![client.clone(), known("web", "10.1.0.3")], Judged::default());
    assert!(leaving.is_cancelled());
    let leaving = meets(&neighbours, &client, &to_web).unwrap();
    neighbours.replace(vec![client.clone()], Judged::default());
    assert!(leaving.is_cancelled());
    assert!(meets(&neighbours, &client, &to_web).is_none());
}
