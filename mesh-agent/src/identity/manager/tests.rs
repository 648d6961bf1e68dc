use std::sync::atomic::Ordering::SeqCst;

use tokio::time::sleep;

use super::*;
use crate::identity::{
    peer_identity, refusal,
    testing::{exchange, handshake, id, node},
};

const HOUR: Duration = Duration::from_secs(3600);

fn serial(manager: &IdentityManager, identity: &Identity) -> String {
    let status = manager.status().into_iter().find(|s| s.identity == *identity).unwrap();
    status.serial.unwrap()
}

#[tokio::test(start_paused = true)]
async fn rotation_at_half_life_leaves_live_connections_alone() {
    let node = node("cluster.local", HOUR);
    let (web, cart) = (id("ns/shop/sa/web"), id("ns/shop/sa/cart"));
    node.manager.ensure(&web).await.unwrap();
    node.manager.ensure(&cart).await.unwrap();
    let client_config = node.manager.client_config(&web, &cart).unwrap();
    let server_config = node.manager.server_config(&cart).unwrap();
    let (client, server) = handshake(&client_config, &server_config).await;
    let (mut client, mut server) = (client.unwrap(), server.unwrap());
    let first = serial(&node.manager, &cart);

    sleep(HOUR.mul_f64(0.44)).await;
    assert_eq!(serial(&node.manager, &cart), first, "renewed before 0.45 of its life");
    sleep(HOUR.mul_f64(0.12)).await;
    let second = serial(&node.manager, &cart);
    assert_ne!(second, first, "not renewed by 0.56 of its life");
    exchange(&mut client, &mut server).await.unwrap();

    // Long after the first certificate expired, through the configurations of old.
    sleep(HOUR * 5).await;
    exchange(&mut client, &mut server).await.unwrap();
    let (again, proven) = handshake(&client_config, &server_config).await;
    let again = again.unwrap();
    let presented = |c: &rustls::CommonState| c.peer_certificates().unwrap()[0].clone();
    assert_ne!(presented(again.get_ref().1), presented(client.get_ref().1));
    assert_eq!(peer_identity(proven.unwrap().get_ref().1).unwrap(), web);
    let cached = node.manager.client_config(&web, &cart).unwrap();
    assert!(Arc::ptr_eq(&cached, &client_config));
    let fetches = node.source.fetches.load(SeqCst);
    assert!((18..=28).contains(&fetches), "{fetches} fetches for 2 identities in 5.6 lives");
}

#[tokio::test(start_paused = true)]
async fn a_certificate_that_cannot_be_renewed_serves_until_it_expires() {
    let node = node("cluster.local", HOUR);
    let cart = id("ns/shop/sa/cart");
    node.manager.ensure(&cart).await.unwrap();
    let client_config = node.manager.client_config(&cart, &cart).unwrap();
    let server_config = node.manager.server_config(&cart).unwrap();
    node.source.failing.store(true, SeqCst);

    sleep(HOUR.mul_f64(0.9)).await;
    node.manager.server_config(&cart).unwrap();
    handshake(&client_config, &server_config).await.1.unwrap();
    let status = node.manager.status();
    assert!(!status[0].expired);
    assert_eq!(status[0].last_error.as_deref(), Some("test CA: connection refused"));

    sleep(HOUR.mul_f64(0.11)).await;
    let error = node.manager.server_config(&cart).unwrap_err();
    assert!(matches!(error, IdentityError::Expired { .. }), "{error}");
    let text = error.to_string();
    assert!(text.contains("spiffe://cluster.local/ns/shop/sa/cart expired at 20"), "{text}");
    assert!(text.ends_with("could not be renewed: test CA: connection refused"), "{text}");
    assert!(node.manager.client_config(&cart, &cart).is_err());
    assert!(node.manager.status()[0].expired);
    // Configurations that were handed out before present nothing any more.
    let (client, server) = handshake(&client_config, &server_config).await;
    assert!(client.is_err() && server.is_err());
    let error = node.manager.ensure(&cart).await.unwrap_err();
    assert!(matches!(error, IdentityError::Expired { .. }), "{error}");
    assert_eq!(node.manager.status()[0].holders, 1);

    node.source.failing.store(false, SeqCst);
    sleep(Duration::from_secs(80)).await;
    node.manager.server_config(&cart).unwrap();
    handshake(&client_config, &server_config).await.0.unwrap();
    assert_eq!(node.manager.status()[0].last_error, None);
}

#[tokio::test(start_paused = true)]
async fn certificates_of_seconds_are_rotated_in_time() {
    let node = node("cluster.local", Duration::from_secs(4));
    let cart = id("ns/shop/sa/cart");
    node.manager.ensure(&cart).await.unwrap();
    for _ in 0..40 {
        sleep(Duration::from_millis(500)).await;
        node.manager.server_config(&cart).unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn a_first_certificate_that_fails_or_hangs_is_an_error_and_holds_nothing() {
    let node = node("cluster.local", HOUR);
    let cart = id("ns/shop/sa/cart");
    node.source.failing.store(true, SeqCst);
    let error = node.manager.ensure(&cart).await.unwrap_err();
    assert_eq!(
        error.to_string(),
        "cannot get a certificate for spiffe://cluster.local/ns/shop/sa/cart: \
         test CA: connection refused"
    );
    assert!(node.manager.status().is_empty());

    node.source.hanging.store(true, SeqCst);
    let error = node.manager.ensure(&cart).await.unwrap_err();
    assert!(error.to_string().ends_with("no certificate within 30s"), "{error}");
    let fetches = node.source.fetches.load(SeqCst);
    sleep(HOUR).await;
    assert_eq!(node.source.fetches.load(SeqCst), fetches, "still fetching for nobody");
    assert!(matches!(node.manager.server_config(&cart), Err(IdentityError::Unknown { .. })));
}

#[tokio::test(start_paused = true)]
async fn holders_share_one_certificate_until_the_last_one_leaves() {
    let node = node("cluster.local", HOUR);
    let cart = id("ns/shop/sa/cart");
    let (one, two) = tokio::join!(node.manager.ensure(&cart), node.manager.ensure(&cart));
    one.and(two).unwrap();
    assert_eq!(node.source.fetches.load(SeqCst), 1);
    // A caller that gives up while it waits gives its hold back.
    node.source.hanging.store(true, SeqCst);
    let web = id("ns/shop/sa/web");
    let given_up = tokio::time::timeout(Duration::from_secs(1), node.manager.ensure(&web)).await;
    assert!(given_up.is_err());
    assert_eq!(node.manager.status().len(), 1);

    node.manager.release(&cart);
    node.manager.server_config(&cart).unwrap();
    node.manager.release(&cart);
    let error = node.manager.server_config(&cart).unwrap_err();
    assert!(matches!(error, IdentityError::Unknown { .. }), "{error}");
    node.manager.release(&cart);
}

#[tokio::test(start_paused = true)]
async fn shutdown_ends_rotation_and_waiting() {
    let node = node("cluster.local", HOUR);
    let cart = id("ns/shop/sa/cart");
    node.manager.ensure(&cart).await.unwrap();
    node.source.hanging.store(true, SeqCst);
    let web = id("ns/shop/sa/web");
    let (waiting, ()) = tokio::join!(node.manager.ensure(&web), async {
        sleep(Duration::from_secs(1)).await;
        node.manager.shutdown().await;
    });
    assert!(matches!(waiting, Err(IdentityError::Stopping { .. })));
    node.manager.server_config(&cart).unwrap();
    assert!(node.manager.ensure(&id("ns/a/sa/b")).await.is_err());
}

#[tokio::test(start_paused = true)]
async fn a_clock_set_forward_is_noticed_and_a_peer_behind_it_refused() {
    let node = node("cluster.local", HOUR);
    let cart = id("ns/shop/sa/cart");
    node.manager.ensure(&cart).await.unwrap();
    let client_config = node.manager.client_config(&cart, &cart).unwrap();
    let server_config = node.manager.server_config(&cart).unwrap();
    let first = serial(&node.manager, &cart);
    node.clock.set_offset(2 * 3600);
    assert!(node.manager.server_config(&cart).is_err());
    sleep(Duration::from_secs(61)).await;
    assert_ne!(serial(&node.manager, &cart), first);
    handshake(&client_config, &server_config).await.0.unwrap();

    node.clock.set_offset(0);
    let (client, _) = handshake(&client_config, &server_config).await;
    assert_eq!(refusal(&client.unwrap_err()).unwrap().reason(), "not_yet_valid");
}

#[tokio::test(start_paused = true)]
async fn a_useless_certificate_is_not_taken() {
    let node = node("cluster.local", HOUR);
    let foreign = "spiffe://other.example/ns/shop/sa/cart".parse().unwrap();
    let error = node.manager.ensure(&foreign).await.unwrap_err();
    assert!(error.to_string().contains("this CA is for trust domain `cluster.local`"), "{error}");
    node.source.ca.distrust(&"cluster.local".parse().unwrap());
    let error = node.manager.ensure(&id("ns/shop/sa/cart")).await.unwrap_err();
    assert!(error.to_string().contains("does not verify against the trust bundle"), "{error}");
}

#[tokio::test(start_paused = true)]
async fn the_cache_of_client_configurations_is_bounded() {
    let node = node("cluster.local", HOUR);
    let cart = id("ns/shop/sa/cart");
    node.manager.ensure(&cart).await.unwrap();
    let first = node.manager.client_config(&cart, &id("ns/shop/sa/x0")).unwrap();
    for i in 1..=CLIENT_CONFIGS {
        node.manager.client_config(&cart, &id(&format!("ns/shop/sa/x{i}"))).unwrap();
    }
    let entry = node.manager.usable(&cart).unwrap();
    let clients = lock(&entry.clients);
    assert_eq!((clients.configs.len(), clients.order.len()), (CLIENT_CONFIGS, CLIENT_CONFIGS));
    drop(clients);
    let again = node.manager.client_config(&cart, &id("ns/shop/sa/x0")).unwrap();
    assert!(!Arc::ptr_eq(&first, &again));
}
