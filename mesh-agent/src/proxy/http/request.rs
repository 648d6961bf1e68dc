//! One request's way: checked, judged, routed, forwarded, answered.

use std::{sync::Arc, time::Instant};

use bytes::Bytes;
use http::{
    HeaderValue, Request, Response, StatusCode, Version, header::USER_AGENT, request::Parts,
};
use http_body::Body as _;
use hyper::{body::Incoming, ext, upgrade::OnUpgrade};

use super::{
    HttpConnection, RequestBody,
    access_log::Logging,
    answer::Answer,
    body::ResponseBody,
    client_certificate, cookies,
    filter::{self, Next, grpc_web, run::Filtering},
    forward::{Forward, Upgrade, forward},
    forwarding, grpc,
    headers::{self, Checked, REQUEST_ID},
    lookups::{Lookups, Unrouted, not_obtained},
    mirror::{self, Mirroring},
    mutations::{self, ResponseMutations},
    normalize::normalize,
    record::RequestLog,
    redirect,
    refusals::{denied_reply, no_destination, no_route, refuse, unknown_cluster},
    reply::Reply,
    rewrites::Rewrites,
    spans::Trace,
    switch::{self, Switch},
    timing::{Deadline, Exchange},
};
use crate::{
    codec::guard::GuardShared,
    model::{
        filter::HttpFilter,
        route::{Route, RouteAction},
    },
    observe::Protocol,
    policy::{Chain, Denied, Progress, Step},
    route::{
        Choice, Matched, NoDestination, WantedHost, choose, configuration_for, decide_request,
        match_route,
    },
    snapshot::Snapshot,
};

/// Answers one request; never fails: what goes wrong before the response's head is
/// answered, what goes wrong after cuts its body.
pub(super) async fn serve(
    connection: Arc<HttpConnection>,
    guard: Option<Arc<GuardShared>>,
    request: Request<Incoming>,
) -> Response<ResponseBody> {
    let refused = guard.as_ref().and_then(|guard| guard.next_request());
    let (mut head, body) = request.into_parts();
    let protocol = match head.version {
        Version::HTTP_2 => Protocol::Http2,
        _ => Protocol::Http1,
    };
    let exchange = Exchange::new();
    let mut log = RequestLog::new(Arc::clone(&connection), guard, Arc::clone(&exchange), protocol);
    if let Some(refusal) = refused {
        return refuse(refusal).into_response(log, &head, head.version, false);
    }
    let body = RequestBody::new(body, exchange, protocol == Protocol::Http2);
    let version = head.version;
    let grpc = headers::is_grpc(&head.headers);
    let answered = match answer(&connection, &mut log, &mut head, body).await {
        Ok(answer) if log.grpc_web && !grpc_web::is_answer(answer.response.headers()) => {
            Err(answer.told_by_grpc(&log).await)
        }
        answered => answered,
    };
    let mut response = match answered {
        Ok(answer) => answer.into_response(log, &head, version),
        Err(reply) => reply.into_response(log, &head, version, grpc),
    };
    if protocol == Protocol::Http1 {
        headers::name_status(&mut response);
    }
    response
}

/// How a request goes to its filters.
enum Begin {
    First,
    /// To the first one again, by the configuration that is in force now.
    Anew,
    /// On, by a route that is matched anew.
    At(Progress),
}

async fn answer(
    connection: &HttpConnection,
    log: &mut RequestLog,
    head: &mut Parts,
    mut body: RequestBody,
) -> Result<Answer, Reply> {
    let extended = head.extensions.remove::<ext::Protocol>();
    if let Some(protocol) = &extended {
        switch::from_extended(head, protocol)?;
    }
    log.record.method = Some(head.method.clone());
    log.record.path = head.uri.path_and_query().map(|path| path.as_str().to_owned());
    log.record.user_agent = head.headers.get(USER_AGENT).cloned();
    log.record.request_id = head.headers.get(REQUEST_ID).cloned();
    headers::check_names(&mut head.headers, connection.http.options.underscores)?;
    if head.headers.len() > usize::try_from(connection.http.max_headers_count).unwrap_or(usize::MAX)
    {
        return Err(headers::too_many());
    }
    let Checked { mut authority } = headers::check(head)?;
    log.record.authority = HeaderValue::from_str(authority.as_str()).ok();
    let in_force = || {
        let snapshot = connection.services.snapshots.load();
        connection.judge(&snapshot).map(|judged| (snapshot, judged))
    };
    let (mut snapshot, mut judged) = in_force()?;
    let http = connection.manager(&judged.permit)?;
    log.options = Arc::clone(&http.options);
    log.logging = Logging::of(http, &judged);
    let flow = judged.permit.flow();
    client_certificate::of_request(&mut head.headers, log.options.client_certificates, flow);
    let (remote, local) = (flow.source(), flow.original_destination());
    normalize(head, &mut authority, &log.options, local.port())?;
    let secure = flow.is_secure();
    let peer = forwarding::Peer { ip: remote.ip(), secure };
    log.record.client =
        forwarding::of_request(&mut head.headers, &log.options, peer).map_err(|status| {
            let details = "rejecting_because_detection_failed";
            Reply::new(status, "", None, details)
        })?;
    log.record.request_id = head.headers.get(REQUEST_ID).cloned();

    let mut lookups = Lookups::default();
    let random = rand::random();
    // What the client's side becomes, if it wants another protocol.
    let mut downstream = head.extensions.remove::<OnUpgrade>();
    let mut begin = Begin::First;
    'request: loop {
        let mut progress = None;
        // One version of the configuration for the whole request, unless it waited for one.
        match std::mem::replace(&mut begin, Begin::First) {
            Begin::First => {}
            Begin::Anew => (snapshot, judged) = in_force()?,
            Begin::At(reached) => progress = Some(reached),
        }
        let permit = &judged.permit;
        let pod = &permit.flow().pod().workload.uid;
        let http = connection.manager(permit)?;
        log.record.policy = permit.policy_name();

        // The route is known before the first filter; without one the filters go first all
        // the same.
        let routes = match &judged.routes {
            None => Err(Unrouted::NoTable),
            Some(table) => configuration_for(table, head).map_err(Unrouted::Scope),
        };
        let matched = routes.as_ref().map_err(Unrouted::clone).and_then(|routes| {
            match_route(routes, head, &snapshot.runtime, random)
                .map_err(|error| Unrouted::Route(Arc::clone(routes), error))
        });
        let route = matched.as_ref().ok().map(|matched| matched.route);
        Trace::begin(log, http, route, head, (&judged, &snapshot), &connection.services.spans);
        let chosen = match matched.as_ref().map(|matched| &matched.route.action) {
            Ok(RouteAction::Forward(action)) => {
                choose(&action.clusters, head, &snapshot.runtime, random)
            }
            _ => None,
        };
        let entry = chosen.as_ref().and_then(|chosen| chosen.entry);
        let (header_levels, filter_levels) = match &matched {
            Ok(matched) => (
                mutations::levels(matched, entry.map(|entry| &entry.headers)),
                filter::levels(matched, entry),
            ),
            Err(_) => Default::default(),
        };
        let idle = match &matched {
            Ok(Matched { route: Route { action: RouteAction::Forward(action), .. }, .. }) => {
                action.idle_timeout.map_or(http.stream_idle_timeout, |own| own.limit())
            }
            _ => http.stream_idle_timeout,
        };
        let stream = match &matched {
            Ok(Matched { route: Route { action: RouteAction::Forward(action), .. }, .. }) => {
                action.max_stream_duration
            }
            _ => None,
        };
        log.exchange.limit_request(http.request_timeout);
        let of_listener = http.max_stream_duration;
        let stream = grpc::stream_duration(stream, of_listener, &mut head.headers);
        log.exchange.limit_whole(stream);
        log.record.route = matched.as_ref().ok().map(|matched| Arc::clone(&matched.route.name));
        let on_the_way_out = filter::response_mutations(http, &snapshot, filter_levels);
        // What filters wanted that have been passed stays.
        let wanted = progress.as_ref().and_then(|_| log.mutations.take());
        if progress.is_none() {
            log.calls.clear();
        }
        log.mutations = ResponseMutations::of(header_levels, on_the_way_out, &judged);
        ResponseMutations::keep(&mut log.mutations, wanted);
        if log.mutations.is_some() || log.logging.is_some() || log.trace.is_some() {
            let cluster = chosen.as_ref().map(|chosen| &*chosen.cluster);
            log.chosen = cluster.filter(|cluster| snapshot.cluster(cluster).is_some()).cloned();
        }

        let switch = Switch::asked(head);
        // By a stream, what Envoy does not take for an offer would be one all the same.
        if switch.is_some() || extended.is_some() {
            let of_route = match matched.as_ref().map(|matched| &matched.route.action) {
                Ok(RouteAction::Forward(action)) => Some(&action.upgrades),
                _ => None,
            };
            let name = switch.as_ref().map_or(&b""[..], Switch::name);
            let allowed = http.options.upgrades.allow(of_route, name);
            if !allowed || downstream.is_none() || !body.is_end_stream() {
                // What comes next may be no request.
                let reply = Reply::new(StatusCode::FORBIDDEN, "", None, "upgrade_failed");
                return Err(Reply { close: true, ..reply });
            }
        }

        let denied = |denied: Denied, log: &mut RequestLog| {
            log.record.policy = denied.policy_name();
            tracing::debug!(%denied, "request denied");
            denied_reply(&denied)
        };
        let from = (&*head, log.record.client);
        let mut chain = Chain::new(permit, http, &snapshot, filter_levels, from)
            .map_err(|why| denied(why, log))?;
        let filtering = Filtering {
            connection,
            judged: &judged,
            http,
            snapshot: &snapshot,
            levels: filter_levels,
            route: matched.as_ref().ok().map(|matched| matched.route),
            cluster: chosen.as_ref().map(|chosen| &*chosen.cluster),
            authority: &authority,
            idle,
        };
        if let Some(progress) = progress {
            chain = chain.at(progress);
        }
        let request_permit = loop {
            let step = chain.next(head, &mut log.record.metadata);
            log.record.shadow = chain.shadow();
            match step.map_err(|why| denied(why, log))? {
                Step::Passed(request_permit) => break request_permit,
                Step::Run(_, HttpFilter::OnDemand(own)) => {
                    let cluster = chosen.as_ref().map(|chosen| &*chosen.cluster);
                    let lacks = match &matched {
                        Err(why) => lookups.route(why, authority.as_str()),
                        Ok(matched) => cluster
                            .filter(|name| snapshot.cluster(name).is_none())
                            .and_then(|name| lookups.cluster(own, matched.route, name)),
                    };
                    let Some((sought, patience)) = lacks else { continue };
                    let there = |snapshot: &Snapshot| match (&matched, cluster) {
                        (Ok(_), cluster) => {
                            cluster.is_some_and(|name| snapshot.cluster(name).is_some())
                        }
                        (Err(why), _) => {
                            why.is_over(snapshot.routes(&http.routes).as_ref(), head, |routes| {
                                match_route(routes, head, &snapshot.runtime, random).is_ok()
                            })
                        }
                    };
                    let on_demand = &connection.services.on_demand;
                    if let Err(why) = on_demand.obtain(pod, &sought, patience, there).await {
                        let reply = match (&matched, cluster) {
                            (Ok(Matched { route, .. }), Some(name)) => {
                                let error = NoDestination::UnknownCluster { cluster: name.clone() };
                                unknown_cluster(&error, &route.action, log)
                            }
                            (Err(error), _) => no_route(format!("{error}: {why}")),
                            (Ok(_), None) => no_route(why.to_string()),
                        };
                        return Err(not_obtained(why, reply));
                    }
                    // As Envoy: the filters begin anew, with the request as it is now.
                    begin = Begin::Anew;
                    continue 'request;
                }
                Step::Run(place, filter) => {
                    if filtering.run(place, filter, log, head, &mut body).await? == Next::Reroute {
                        begin = Begin::At(chain.into_progress());
                        continue 'request;
                    }
                }
            }
        };
        log.record.policy = request_permit.policy_name().or_else(|| permit.policy_name());
        let matched = matched.map_err(|error| no_route(error.to_string()))?;
        let action = match &matched.route.action {
            RouteAction::Forward(action) => action,
            RouteAction::DirectResponse(direct) => {
                let status = StatusCode::from_u16(direct.status)
                    .unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
                let reply = Reply::new(status, "", None, "direct_response");
                // As Envoy: what is created, or elsewhere, is where it was asked for.
                let located = status == StatusCode::CREATED || status.is_redirection();
                let location = if located { redirect::own_location(head) } else { None };
                let location = location.map(Box::new);
                return Err(Reply { body: Bytes::clone(&direct.body), location, ..reply });
            }
            RouteAction::Redirect(redirect) => {
                return Err(redirect::reply(redirect, &matched.route.matches.path, head));
            }
        };
        log.goes_by(matched.virtual_host, matched.route, head);
        let client = log.client(permit.flow());
        let subset = match entry {
            Some(entry) => entry.metadata_match.as_deref(),
            None => action.metadata_match.as_deref(),
        };
        let (hash, mut cookies) = cookies::hash(&action.hash_policy, head, client, permit.flow());
        let decided = decide_request(
            &request_permit,
            permit,
            chosen.as_ref().map(|chosen| &*chosen.cluster),
            Choice { hash, subset, wanted: log.wanted.map(|(host, _)| host), ..Choice::default() },
            &snapshot,
            &connection.services.balancers,
            &mut |below| rand::random_range(0..below),
            Instant::now(),
        );
        let destination = match decided {
            Ok(destination) => destination,
            Err(error) => {
                let reply = no_destination(&error, action, log);
                return Err(match log.wanted {
                    Some((wanted, status)) if is_gone(&error, wanted, &snapshot) => {
                        Reply { status, ..reply }
                    }
                    _ => reply,
                });
            }
        };
        let cluster = destination.cluster();
        // As Envoy: who is not asked for a hash makes none.
        if !cluster
            .and_then(|name| snapshot.cluster(name))
            .is_some_and(|c| c.lb_policy.is_by_hash())
        {
            cookies.clear();
        }
        log.record.cluster = cluster.cloned();
        log.record.goes_to(&destination);

        let timeout = grpc::timeout(action, &head.headers);
        let mut deadline = Deadline::new(Arc::clone(&log.exchange), idle);
        deadline.set_route(timeout);
        mutations::mutate_request(header_levels, log, permit.flow(), head);
        let rewrites = Rewrites { action, entry, matched: &matched.route.matches.path, timeout };
        let mirrors = mirror::policies(&matched, &action.mirrors);
        let mirroring = (!mirrors.is_empty()).then_some(Mirroring {
            policies: mirrors,
            services: &connection.services,
            judged: &judged,
            snapshot: &snapshot,
            random,
        });
        let asked = switch.is_some();
        let answer = forward(
            Forward {
                connection,
                permit,
                request_permit: &request_permit,
                snapshot: &snapshot,
                destination,
                hash,
                cookies,
                subset,
                rewrites,
                authority,
                deadline,
                upgrade: switch.zip(downstream.take()).map(|(switch, downstream)| Upgrade {
                    switch,
                    of_stream: head.version == Version::HTTP_2,
                    downstream,
                }),
                mirroring,
            },
            log,
            head,
            body,
        )
        .await;
        // As Envoy: who offers another protocol may have gone on in it.
        return answer.map_err(|reply| Reply { close: reply.close || asked, ..reply });
    }
}

/// Whether the only endpoint that would do is not there at all.
fn is_gone(error: &NoDestination, wanted: WantedHost, snapshot: &Snapshot) -> bool {
    let NoDestination::NoHealthyEndpoint { cluster } = error else { return false };
    let assignment = snapshot.cluster(cluster).and_then(|cluster| snapshot.assignment(cluster));
    let is_wanted = |address| wanted.address == Some(address);
    let there = assignment.is_some_and(|a| a.endpoints().any(|one| is_wanted(one.address)));
    wanted.strict && !there
}

pub(super) fn path_and_query(head: &Parts) -> &str {
    head.uri.path_and_query().map_or("", |path| path.as_str())
}
