//! Exclusions, refusals, full maps, and pods or agents that go away.

use std::{path::PathBuf, process::Command};

use aya::maps::{Array, Map, MapData};
use mesh_agent::{
    capture::{
        Capture, CaptureError, CaptureOptions, CheckStatus, EnrollError, Exclusions,
        GuardAttachment, GuardMode, NetnsError, NetnsRef, doctor,
    },
    model::workload::WorkloadUid,
};
use mesh_common::{
    abi::{ABI_VERSION, map},
    value::Config,
};
use tokio::{io::AsyncReadExt, net::TcpSocket};

use super::{
    address,
    bed::{Bed, PEER4, PEER6, POD4, POD6, chain, ip_out, netns_path},
    count, enroll, pong, soon, uid,
};

#[tokio::test(flavor = "multi_thread")]
async fn what_is_excluded_is_left_alone() {
    let bed = Bed::new();
    let _served: Vec<_> =
        ["0.0.0.0:3306", "0.0.0.0:80", "[::]:81"].map(|at| bed.serve_in_peer(at)).into();
    let _own: Vec<_> = ["0.0.0.0:9100", "0.0.0.0:80"].map(|at| bed.serve_in_pod(at)).into();
    let mut options = bed.options();
    options.exclusions.outbound_ports = vec![3306];
    let capture = Capture::start(options).unwrap();
    let mut request = bed.request();
    request.exclusions = Exclusions {
        outbound_ports: vec![],
        outbound_cidrs: vec!["10.77.0.1/32".parse().unwrap(), "fd77::/64".parse().unwrap()],
        inbound_ports: vec![9100],
    };
    let pod = capture.enroll(request).await.unwrap();
    capture.activate(&uid()).unwrap();
    for (asked, own) in [
        (format!("{PEER4}:3306"), POD4),
        (format!("{PEER4}:80"), POD4),
        (format!("[::ffff:{PEER4}]:80"), POD4),
        (format!("[{PEER6}]:81"), POD6),
    ] {
        let seen = bed.dial_from_pod(&asked).line();
        assert_eq!(seen, format!("peer={asked} answer=hello {own} ping"));
    }
    let seen = bed.dial_from_peer(&format!("{POD4}:9100")).line();
    assert_eq!(seen, format!("peer={POD4}:9100 answer=hello {PEER4} ping"));
    assert_eq!(count(&capture, "outbound_port_excluded"), 1);
    assert_eq!(count(&capture, "outbound_cidr_excluded"), 3);
    assert_eq!(count(&capture, "inbound_port_excluded"), 1);

    // What is beside the exclusions is captured.
    for asked in ["10.77.0.3:80", "[fd78::1]:81"] {
        let mut client = bed.dial_from_pod(asked);
        let (stream, captured) = soon(pod.outbound.accept()).await.unwrap();
        assert_eq!(captured.original_destination, address(asked));
        pong(stream).await;
        assert_eq!(client.line(), format!("peer={asked} answer=pong"));
    }
    let mut client = bed.dial_from_peer(&format!("{POD4}:80"));
    pong(soon(pod.inbound.accept()).await.unwrap().0).await;
    assert_eq!(client.line(), format!("peer={POD4}:80 answer=pong"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failed_enrolment_leaves_nothing() {
    let bed = Bed::new();
    let mut options = bed.options();
    options.capacities.excluded_ports = 1;
    let capture = Capture::start(options).unwrap();
    let _in_peer = bed.serve_in_peer("0.0.0.0:80");
    let uncaptured = || {
        let seen = bed.dial_from_pod(&format!("{PEER4}:80")).line();
        assert_eq!(seen, format!("peer={PEER4}:80 answer=hello {POD4} ping"));
        assert!(capture.persisted().unwrap().is_empty());
    };
    let plain = || {
        uncaptured();
        for family in ["-4", "-6"] {
            let rules = ip_out(&format!("{family} -n {} rule", bed.pod()));
            assert!(!rules.contains("15006"), "{rules}");
        }
    };

    let squatter = bed.serve_in_pod("0.0.0.0:15008");
    let error = capture.enroll(bed.request()).await.unwrap_err();
    assert!(
        chain(&error).starts_with("workload pod-1: cannot listen on 0.0.0.0:15008 inside the pod"),
        "{}",
        chain(&error)
    );
    drop(squatter);
    plain();

    let mut request = bed.request();
    request.exclusions.outbound_ports = vec![1, 2];
    let error = capture.enroll(request).await.unwrap_err();
    assert_eq!(
        chain(&error),
        "workload pod-1: map OUTBOUND_PORTS is full (1 entries): raise its capacity"
    );
    plain();

    let mut request = bed.request();
    request.netns = NetnsRef::Path(PathBuf::from("/nonexistent/netns"));
    let error = capture.enroll(request).await.unwrap_err();
    assert!(chain(&error).contains("cannot open network namespace /nonexistent/netns"));
    let mut request = bed.request();
    request.netns = NetnsRef::Path(PathBuf::from("/etc/passwd"));
    let error = capture.enroll(request).await.unwrap_err();
    assert!(matches!(error, EnrollError::Netns { source: NetnsError::Enter { .. }, .. }));
    let mut request = bed.request();
    request.netns = NetnsRef::Pid(std::process::id());
    let error = capture.enroll(request).await.unwrap_err();
    assert!(matches!(error, EnrollError::HostNetwork(_)), "{error}");
    let mut request = bed.request();
    request.uid = WorkloadUid("../x".into());
    let error = capture.enroll(request).await.unwrap_err();
    assert!(matches!(error, EnrollError::Uid(_)), "{error}");
    plain();

    // Cancelled where it first has to wait: the kernel may have answered all before the last
    // question. Routing that is left then harms nobody.
    let cancelled = capture.enroll(bed.request());
    tokio::select! {
        biased;
        done = cancelled => {
            drop(done.unwrap());
            capture.unenroll(&uid()).await.unwrap();
        }
        () = std::future::ready(()) => {}
    }
    uncaptured();

    let _pod = enroll(&bed, &capture).await;
    let error = capture.enroll(bed.request()).await.unwrap_err();
    assert!(matches!(error, EnrollError::AlreadyEnrolled(_)), "{error}");
    let mut request = bed.request();
    request.uid = WorkloadUid("pod-2".into());
    let error = capture.enroll(request).await.unwrap_err();
    assert!(matches!(error, EnrollError::NetnsInUse { .. }), "{error}");
    let error = capture.activate(&WorkloadUid("pod-2".into())).unwrap_err();
    assert!(matches!(error, EnrollError::NotEnrolled(_)), "{error}");
    assert_eq!(capture.persisted().unwrap().len(), 1);
}

/// Its record is lost and enrolling it again fails: no reason to let it out in the clear.
#[tokio::test(flavor = "multi_thread")]
async fn a_captured_pod_stays_captured_whatever_fails() {
    let bed = Bed::new();
    let _in_peer = bed.serve_in_peer("0.0.0.0:80");
    let capture = bed.capture();
    drop(enroll(&bed, &capture).await);
    drop(capture);
    let record = bed.options().state_dir.join("pods").join(format!("{}.json", uid()));
    std::fs::write(&record, "{").unwrap();

    let capture = bed.capture();
    let refused = || {
        let seen = bed.dial_from_pod(&format!("{PEER4}:80")).line();
        assert_eq!(seen, "failed: ConnectionRefused");
    };
    refused();
    let squatter = bed.serve_in_pod("0.0.0.0:15008");
    let error = capture.enroll(bed.request()).await.unwrap_err();
    assert!(matches!(error, EnrollError::Listen { .. }), "{error}");
    refused();
    drop(squatter);
    let pod = enroll(&bed, &capture).await;
    assert_eq!(capture.persisted().unwrap(), [bed.request()]);

    // Let go of, it stays captured as well.
    drop(pod);
    capture.abandon(&uid()).unwrap();
    refused();
    assert!(capture.persisted().unwrap().is_empty());
    let _pod = enroll(&bed, &capture).await;
    capture.unenroll(&uid()).await.unwrap();
    let plain = bed.dial_from_pod(&format!("{PEER4}:80")).line();
    assert_eq!(plain, format!("peer={PEER4}:80 answer=hello {POD4} ping"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_map_refuses_who_has_waited_longest() {
    let bed = Bed::new();
    let mut options = bed.options();
    options.capacities.original_destinations = 1;
    let capture = Capture::start(options).unwrap();
    let pod = enroll(&bed, &capture).await;
    let published = |expected| {
        let capture = &capture;
        async move {
            while count(capture, "published") != expected {
                tokio::time::sleep(std::time::Duration::from_millis(5)).await;
            }
        }
    };
    let mut first = bed.dial_from_pod("10.99.0.1:80");
    published(1).await;
    let mut second = bed.dial_from_pod("10.99.0.2:80");
    published(2).await;
    // Accepting meets the first, which is reset, and the second.
    let (stream, captured) = soon(pod.outbound.accept()).await.unwrap();
    assert_eq!(captured.original_destination, address("10.99.0.2:80"));
    pong(stream).await;
    assert_eq!(second.line(), "peer=10.99.0.2:80 answer=pong");
    assert!(first.line().starts_with("failed: "));
    let mut third = bed.dial_from_pod("10.99.0.3:80");
    let (stream, captured) = soon(pod.outbound.accept()).await.unwrap();
    assert_eq!(captured.original_destination, address("10.99.0.3:80"));
    pong(stream).await;
    assert_eq!(third.line(), "peer=10.99.0.3:80 answer=pong");
    assert!(capture.maintain().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_but_capture_reaches_the_listeners() {
    let bed = Bed::new();
    let capture = bed.capture();
    let pod = enroll(&bed, &capture).await;
    // This process is in the pod's namespace, but not in the captured cgroup.
    let dial = |target: &str| {
        let socket = bed.inside(&bed.pod(), TcpSocket::new_v4).unwrap();
        socket.connect(address(target))
    };
    // Bound to the pod's interface.
    let refused = soon(dial("127.0.0.1:15006")).await.unwrap_err();
    assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused);
    let mut stranger = soon(dial("127.0.0.1:15001")).await.unwrap();
    let mut buffer = [0; 1];
    tokio::select! {
        _ = pod.outbound.accept() => panic!("took a stranger"),
        read = soon(stranger.read(&mut buffer)) => {
            assert_eq!(read.unwrap_err().kind(), std::io::ErrorKind::ConnectionReset);
        }
    }
}

/// The client may be long gone when the agent comes to accept.
#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_closed_is_still_known() {
    let bed = Bed::new();
    let capture = bed.capture();
    let pod = enroll(&bed, &capture).await;
    let client = bed.dial_from_pod("10.99.0.1:80");
    while count(&capture, "published") == 0 {
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
    drop(client);
    let (_, captured) = soon(pod.outbound.accept()).await.unwrap();
    assert_eq!(captured.original_destination, address("10.99.0.1:80"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_named_by_process_outlives_the_process() {
    let bed = Bed::new();
    let process = bed.serve_in_pod("0.0.0.0:80");
    // The program's main thread stays outside: name the thread that entered.
    let capture = bed.capture();
    let tid = std::fs::read_dir(format!("/proc/{}/task", process.id()))
        .unwrap()
        .filter_map(|task| task.unwrap().file_name().to_str().unwrap().parse::<u32>().ok())
        .find(|tid| {
            let inode = |path: String| {
                std::os::unix::fs::MetadataExt::ino(&std::fs::metadata(path).unwrap())
            };
            inode(format!("/proc/{tid}/ns/net"))
                == inode(netns_path(&bed.pod()).display().to_string())
        })
        .unwrap();
    let mut request = bed.request();
    request.netns = NetnsRef::Pid(tid);
    let pod = capture.enroll(request).await.unwrap();
    capture.activate(&uid()).unwrap();
    drop((process, pod, capture));

    let capture = bed.capture();
    let persisted = capture.persisted().unwrap();
    assert!(matches!(&persisted[0].netns, NetnsRef::Path(path) if path.ends_with("netns/pod-1")));
    let pod = capture.enroll(persisted[0].clone()).await.unwrap();
    let mut client = bed.dial_from_pod("10.99.0.1:80");
    pong(soon(pod.outbound.accept()).await.unwrap().0).await;
    assert_eq!(client.line(), "peer=10.99.0.1:80 answer=pong");
    assert!(capture.maintain().is_empty());
    capture.unenroll(&uid()).await.unwrap();
    assert!(!bed.options().state_dir.join("netns/pod-1").exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_that_vanishes_is_noticed() {
    let bed = Bed::new();
    let capture = bed.capture();
    let pod = enroll(&bed, &capture).await;
    assert!(capture.maintain().is_empty());
    assert!(Command::new("ip").args(["netns", "del", &bed.pod()]).status().unwrap().success());
    assert_eq!(capture.maintain(), [uid()]);
    drop((pod, capture));
    // The next agent drops it, in the kernel too.
    let capture = bed.capture();
    assert!(capture.persisted().unwrap().is_empty());
    let pinned = bed.options().bpffs.join("test/pods");
    let mut left = std::fs::read_dir(&pinned).unwrap().count();
    for _ in 0..100 {
        if left == 0 {
            break;
        }
        // The namespace dies in the background; until then its link is not dead.
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        capture.maintain();
        left = std::fs::read_dir(&pinned).unwrap().count();
    }
    assert_eq!(left, 0);
}

/// Who deletes the pins of an agent that lives takes nothing away, and finds them again.
#[tokio::test(flavor = "multi_thread")]
async fn deleted_pins_let_nothing_through_and_come_back() {
    let bed = Bed::new();
    let _in_peer = bed.serve_in_peer("0.0.0.0:80");
    let capture = bed.capture();
    let pod = enroll(&bed, &capture).await;
    let instance = bed.options().bpffs.join("test");
    let pins = || -> Vec<String> {
        let listed = Command::new("find").arg(&instance).args(["-type", "f"]).output().unwrap();
        let mut pins: Vec<_> =
            String::from_utf8(listed.stdout).unwrap().lines().map(str::to_owned).collect();
        pins.sort();
        pins
    };
    let before = pins();
    std::fs::remove_dir_all(&instance).unwrap();
    let captured = async || {
        let mut client = bed.dial_from_pod(&format!("{PEER4}:80"));
        pong(soon(pod.outbound.accept()).await.unwrap().0).await;
        assert_eq!(client.line(), format!("peer={PEER4}:80 answer=pong"));
        assert!(dial_past_the_hooks(&bed).is_err());
    };
    captured().await;
    assert!(capture.maintain().is_empty());
    assert_eq!(pins(), before);
    captured().await;
    // Without the agent they hold as ever, and the next one adopts them.
    drop((pod, capture));
    assert!(bed.dial_from_pod(&format!("{PEER4}:80")).line().starts_with("failed: "));
    assert!(dial_past_the_hooks(&bed).is_err());
    let capture = bed.capture();
    assert_eq!(capture.persisted().unwrap().len(), 1);
    let _pod = enroll(&bed, &capture).await;
    // What is taken out on purpose does not come back.
    capture.unenroll(&uid()).await.unwrap();
    capture.maintain();
    dial_past_the_hooks(&bed).unwrap();
    assert!(!pins().iter().any(|pin| pin.contains("/guards/") || pin.contains("/pods/")));
}

#[tokio::test(flavor = "multi_thread")]
async fn instances_on_one_kernel_do_not_meet() {
    let bed = Bed::new();
    let capture = bed.capture();
    let mut options = bed.options();
    options.instance = "other".to_owned();
    options.state_dir = bed.options().bpffs.with_file_name("other-state");
    let other = Capture::start(options).unwrap();
    let pod = enroll(&bed, &capture).await;
    let mut client = bed.dial_from_pod("10.99.0.1:80");
    let (stream, captured) = soon(pod.outbound.accept()).await.unwrap();
    assert_eq!(captured.original_destination, address("10.99.0.1:80"));
    pong(stream).await;
    assert_eq!(client.line(), "peer=10.99.0.1:80 answer=pong");
    assert_eq!(count(&other, "outbound_captured"), 0);
    other.teardown().await.unwrap();
    let mut client = bed.dial_from_pod("10.99.0.1:80");
    pong(soon(pod.outbound.accept()).await.unwrap().0).await;
    assert_eq!(client.line(), "peer=10.99.0.1:80 answer=pong");
}

#[tokio::test(flavor = "multi_thread")]
async fn maps_of_another_version_are_not_adopted() {
    let bed = Bed::new();
    let capture = bed.capture();
    let pod = enroll(&bed, &capture).await;
    drop((pod, capture));
    let instance = bed.options().bpffs.join("test");
    let current = instance.join(format!("maps-v{ABI_VERSION}"));

    // As an agent of another version would have left it.
    let old = instance.join("maps-v0");
    std::fs::rename(&current, &old).unwrap();
    let capture = bed.capture();
    assert!(!old.exists());
    assert!(current.exists());
    // The pod has been carried over: refused, not open.
    let mut client = bed.dial_from_pod(&format!("{PEER4}:80"));
    assert_eq!(client.line(), "failed: ConnectionRefused");
    let pod = capture.enroll(bed.request()).await.unwrap();
    let mut client = bed.dial_from_peer(&format!("{POD4}:80"));
    pong(soon(pod.inbound.accept()).await.unwrap().0).await;
    assert_eq!(client.line(), format!("peer={POD4}:80 answer=pong"));
    drop((pod, capture));

    let data = MapData::from_pin(current.join(map::CONFIG)).unwrap();
    let mut config: Array<_, Config> = Map::from_map_data(data).unwrap().try_into().unwrap();
    config
        .set(0, Config { abi_version: 99, log: 0, kernel_path_max: 0, drop_non_tcp: 0 }, 0)
        .unwrap();
    let error = Capture::start(bed.options()).unwrap_err();
    assert!(matches!(error, CaptureError::Abi { found: 99, .. }), "{error}");
}

/// As another build of the same version would have left them.
#[tokio::test(flavor = "multi_thread")]
async fn maps_of_another_layout_are_refused_by_name() {
    let bed = Bed::new();
    drop(bed.capture());
    let maps = bed.options().bpffs.join(format!("test/maps-v{ABI_VERSION}"));
    let (pods, aside) = (maps.join(map::PODS), maps.join("aside"));
    std::fs::rename(&pods, &aside).unwrap();
    std::fs::rename(maps.join(map::OUTBOUND_PORTS), &pods).unwrap();
    let error = chain(&Capture::start(bed.options()).unwrap_err());
    assert!(error.contains(&format!("pinned map {}", pods.display())), "{error}");
    assert!(error.contains("(16, 4) bytes where this agent's have (8, 32)"), "{error}");
    std::fs::rename(&aside, &pods).unwrap();
    drop(bed.capture());
}

#[tokio::test(flavor = "multi_thread")]
async fn this_kernel_passes_the_doctor() {
    let bed = Bed::new();
    let checks = doctor(&bed.options());
    let failed: Vec<_> = checks.iter().filter(|check| check.status == CheckStatus::Fail).collect();
    assert!(failed.is_empty(), "{failed:#?}");
    assert!(checks.len() >= 15, "{checks:#?}");
}

/// What speaks in the pod without being in the cgroup that is captured.
fn dial_past_the_hooks(bed: &Bed) -> std::io::Result<std::net::TcpStream> {
    let to = address(&format!("{PEER4}:80"));
    let patience = std::time::Duration::from_millis(500);
    bed.inside(&bed.pod(), || std::net::TcpStream::connect_timeout(&to, patience))
}

/// As before Linux 6.6: filters of a qdisc, which nothing pins.
#[tokio::test(flavor = "multi_thread")]
async fn the_guard_works_as_a_filter_and_is_adopted_as_one() {
    let bed = Bed::new();
    let _in_peer = bed.serve_in_peer("0.0.0.0:80");
    let filters = |side: &str| {
        let show = format!("-n {} filter show dev eth0 {side}", bed.pod());
        let out = Command::new("tc").args(show.split(' ')).output().unwrap();
        String::from_utf8(out.stdout).unwrap().matches("handle 0x6d mesh_guard").count()
    };
    let options = || CaptureOptions {
        guard: GuardMode::On,
        guard_attachment: GuardAttachment::Filters,
        ..bed.options()
    };
    for _ in 0..2 {
        let capture = Capture::start(options()).unwrap();
        let pod = enroll(&bed, &capture).await;
        assert_eq!((filters("ingress"), filters("egress")), (1, 1));
        assert!(dial_past_the_hooks(&bed).is_err());
        assert!(count(&capture, "guard_uncaptured") > 0);
        drop((pod, capture));
        assert!(dial_past_the_hooks(&bed).is_err(), "without an agent");
    }
    let capture = Capture::start(options()).unwrap();
    let _pod = enroll(&bed, &capture).await;
    capture.unenroll(&uid()).await.unwrap();
    assert_eq!((filters("ingress"), filters("egress")), (0, 0));
    dial_past_the_hooks(&bed).unwrap();
}

/// An upgrade that changes the maps: the guard goes on with the new ones.
#[tokio::test(flavor = "multi_thread")]
async fn the_guard_outlives_its_maps_version() {
    let bed = Bed::new();
    let _in_peer = bed.serve_in_peer("0.0.0.0:80");
    let capture = bed.capture();
    let pod = enroll(&bed, &capture).await;
    drop((pod, capture));
    let instance = bed.options().bpffs.join("test");
    let current = instance.join(format!("maps-v{ABI_VERSION}"));
    std::fs::rename(&current, instance.join("maps-v0")).unwrap();
    assert!(dial_past_the_hooks(&bed).is_err());
    let capture = bed.capture();
    assert!(dial_past_the_hooks(&bed).is_err(), "before the pod is enrolled again");
    let _pod = enroll(&bed, &capture).await;
    assert!(dial_past_the_hooks(&bed).is_err());
    assert!(count(&capture, "guard_uncaptured") > 0, "in the new maps");
    capture.teardown().await.unwrap();
    dial_past_the_hooks(&bed).unwrap();
}

/// Multipath TCP is no way around capture.
#[tokio::test(flavor = "multi_thread")]
async fn multipath_tcp_does_not_escape() {
    let bed = Bed::new();
    let _in_peer = bed.serve_in_peer("0.0.0.0:80");
    let capture = bed.capture();
    let pod = enroll(&bed, &capture).await;
    let mut client = bed.mptcp_from_pod(&format!("{PEER4}:80"));
    let answer = tokio::select! {
        accepted = pod.outbound.accept() => {
            drop(accepted);
            return;
        }
        answer = tokio::task::spawn_blocking(move || client.line()) => answer.unwrap(),
    };
    assert!(answer.starts_with("failed: "), "{answer}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_without_ipv6_is_enrolled() {
    let bed = Bed::new();
    for interface in ["all", "default"] {
        let path = format!("/proc/sys/net/ipv6/conf/{interface}/disable_ipv6");
        bed.inside(&bed.pod(), || std::fs::write(path, "1")).unwrap();
    }
    let capture = bed.capture();
    let pod = enroll(&bed, &capture).await;
    assert_eq!(pod.pod.workload.addresses, [POD4.parse::<std::net::IpAddr>().unwrap()]);
    let mut client = bed.dial_from_pod("10.99.0.1:80");
    pong(soon(pod.outbound.accept()).await.unwrap().0).await;
    assert_eq!(client.line(), "peer=10.99.0.1:80 answer=pong");
    assert!(bed.dial_from_pod("[fd99::1]:80").line().starts_with("failed: "));
    capture.unenroll(&uid()).await.unwrap();
}

/// Many at once: none is lost, none gets another's destination.
#[tokio::test(flavor = "multi_thread")]
async fn a_burst_keeps_its_destinations() {
    const BURST: u16 = 200;
    let bed = Bed::new();
    let capture = bed.capture();
    let pod = enroll(&bed, &capture).await;
    let mut client = bed.burst_from_pod(&format!("10.99.0.1:{BURST}"));
    for _ in 0..BURST {
        let (mut stream, captured) = soon(pod.outbound.accept()).await.unwrap();
        // The client says which port it dialled.
        let mut asked = String::new();
        stream.read_to_string(&mut asked).await.unwrap();
        assert_eq!(captured.original_destination.to_string(), asked);
    }
    assert_eq!(client.line(), "done");
    assert_eq!(count(&capture, "published"), u64::from(BURST));
}
