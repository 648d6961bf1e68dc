//! Clients of a gateway that come by loopback: upstreams are told of the host instead.

use std::{
    io::{self, Read as _, Write as _},
    net::{IpAddr, SocketAddr, TcpStream},
};

use nix::ifaddrs::getifaddrs;
use serde_json::json;
use socket2::{Domain, Socket, Type};
use tests::{eventually, netns::Netns};

use super::{
    script::Play,
    world::{LISTENER, answers, http_manager},
};

const PORT: u16 = 7600;
const PORT_V6: u16 = 7601;
/// Who a proxy before has told of.
const BEFORE: &str = "192.0.2.1";

/// `x-forwarded-for` and `x-envoy-external-address` as an upstream has them.
fn asked(host: &Netns, from: IpAddr, to: SocketAddr) -> io::Result<[String; 2]> {
    host.enter(|| {
        let socket = Socket::new(Domain::for_address(to), Type::STREAM, None)?;
        socket.bind(&SocketAddr::new(from, 0).into())?;
        socket.connect(&to.into())?;
        let mut stream = TcpStream::from(socket);
        write!(
            stream,
            "GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\nx-forwarded-for: {BEFORE}\r\n\r\n"
        )?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        let told = |name: &str| {
            let line = answer.lines().find_map(|line| line.strip_prefix(name));
            line.unwrap_or_else(|| panic!("{answer}")).to_owned()
        };
        Ok(["x-xff: ", "x-external: "].map(told))
    })
}

/// The first address of IPv4 that is not loopback's own.
fn first_address(host: &Netns) -> String {
    let all = host.enter(|| {
        let interfaces = getifaddrs().unwrap();
        let ip = interfaces.filter_map(|of| Some(of.address?.as_sockaddr_in()?.ip()));
        ip.collect::<Vec<_>>()
    });
    let first = all.iter().find(|ip| ip.to_string() != "127.0.0.1");
    first.expect("a host has an address").to_string()
}

#[test]
fn who_comes_by_loopback_is_told_of_as_the_host() {
    let mut play = Play::start("loopback", true);
    let told = |name: &str, value: &str| json!({ "header": { "key": name, "value": value } });
    let mut routes = answers(200, "told");
    routes[0]["response_headers_to_add"] = json!([
        told("x-xff", "%REQ(X-FORWARDED-FOR)%"),
        told("x-external", "%REQ(X-ENVOY-EXTERNAL-ADDRESS)%"),
    ]);
    let mut manager = http_manager("edge", routes);
    manager["typed_config"]["use_remote_address"] = true.into();
    for (address, port) in [("0.0.0.0", PORT), ("::1", PORT_V6)] {
        let listener = json!({
            "address": { "socket_address": { "address": address, "port_value": port } },
            "filter_chains": [{ "filters": [manager] }],
        });
        play.world.put(LISTENER, &format!("edge-{port}"), listener);
    }
    play.push().expect(&[]);
    for host in play.twins.hosts() {
        let own = first_address(host);
        for (from, to, told) in [
            ("127.0.0.1", format!("127.0.0.1:{PORT}"), &*own),
            ("::1", format!("[::1]:{PORT_V6}"), &*own),
            // An address like any.
            ("127.0.0.2", format!("127.0.0.1:{PORT}"), "127.0.0.2"),
        ] {
            let heard = eventually("the listener answers", || {
                asked(host, from.parse().unwrap(), to.parse().unwrap())
            });
            let expected = [format!("{BEFORE},{told}"), from.to_owned()];
            assert_eq!(heard, expected, "{} {from}", host.name());
        }
    }
    play.twins.control_plane.expect_no_violations();
}
