//! One request's way: checked, judged, routed, forwarded, answered.

use std::{sync::Arc, time::Instant};

use bytes::{Bytes, BytesMut};
use http::{
    HeaderValue, Method, Request, Response, StatusCode, Version,
    header::{CONNECTION, CONTENT_LENGTH, USER_AGENT},
    request::Parts,
};
use http_body::Body as _;
use http_body_util::BodyExt as _;
use hyper::{body::Incoming, ext, upgrade::OnUpgrade};

use super::{
    HttpConnection, Judged, RequestBody,
    access_log::Logging,
    body::ResponseBody,
    breakers::Admitted,
    cookies,
    filter::{self, Next, grpc_web, run::Filtering},
    forward::{Forward, Upgrade, expired_reply, forward},
    forwarding, grpc,
    headers::{self, Checked, REQUEST_ID, Rewrites},
    lookups::{Lookups, Unrouted, not_obtained},
    mirror::{self, Mirroring},
    mutations::{self, ResponseMutations},
    normalize::normalize,
    record::RequestLog,
    redirect,
    reply::{Reply, VIA_UPSTREAM},
    spans::Trace,
    switch::{self, Switch},
    timing::{Deadline, Exchange},
    tunnel::{Tunnel, Upstream},
};
use crate::{
    codec::{guard::GuardShared, http::Refusal},
    model::{
        filter::HttpFilter,
        listener::{HttpConnectionManager, TerminalFilter},
        route::{ForwardAction, Route, RouteAction},
    },
    observe::{Protocol, flags::ResponseFlag},
    policy::{Chain, Denied, Permit, Progress, Step},
    proxy::rejudge::{self, Standing},
    route::{
        Choice, Destination, Matched, NoDestination, WantedHost, choose, configuration_for,
        decide_request, match_route,
    },
    snapshot::Snapshot,
};

/// Of a body that becomes a message, as Envoy.
const PLAIN_MESSAGE_MAX_BYTES: usize = 16 << 10;

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

/// What the guard refused.
fn refuse(refusal: Refusal) -> Reply {
    let body = match refusal {
        Refusal::TooLarge => "Request Header Fields Too Large",
        Refusal::Timeout => "Request Timeout",
        Refusal::TransferEncoding => "Not Implemented",
        Refusal::Fragment => "",
        _ => "Bad Request",
    };
    let flag = (refusal != Refusal::Timeout).then_some(ResponseFlag::DownstreamProtocolError);
    let reply = Reply::new(refusal.status(), body, flag, refusal.to_string());
    Reply { close: true, ..reply }
}

/// An upstream's answer, and what it holds.
pub(super) struct Answer {
    pub(super) response: Response<crate::transport::http_pool::LeasedBody<RequestBody>>,
    pub(super) deadline: Deadline,
    pub(super) destination: Destination,
    pub(super) admitted: Admitted,
    pub(super) head_request: bool,
    /// Both sides, where the protocol changes.
    pub(super) switched: Option<(OnUpgrade, OnUpgrade)>,
}

impl Answer {
    fn into_response(
        self,
        mut log: RequestLog,
        head: &Parts,
        version: Version,
    ) -> Response<ResponseBody> {
        let by_stream = version == Version::HTTP_2;
        let Self { mut response, deadline, destination, admitted, head_request, switched } = self;
        let status = response.status();
        let has_body = !head_request && !response.body().is_end_stream();
        let stages = log.mutate(head, (status, has_body), response.headers_mut());
        log.answered(head, status, response.headers());
        let held = (destination.into_load(), admitted);
        if let Some((downstream, upstream)) = switched {
            let (mut parts, body) = response.into_parts();
            let upstream = Upstream::of(upstream, body);
            log.carry(|log| Tunnel { downstream, upstream, deadline, held, log });
            if by_stream {
                parts.status = StatusCode::OK;
                switch::unswitch(&mut parts.headers);
            }
            return Response::from_parts(parts, ResponseBody::switched());
        }
        // As Envoy: a CONNECT has no end after which another request might come.
        if log.record.method == Some(Method::CONNECT) && !by_stream {
            response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
        }
        let announces = status == StatusCode::NOT_MODIFIED && version < Version::HTTP_2;
        if announces && response.headers().contains_key(CONTENT_LENGTH) {
            return response.map(|_| ResponseBody::announced(log));
        }
        response.map(|body| {
            let body = ResponseBody::upstream(body, deadline, held, log).through(stages);
            if head_request { body.bodiless() } else { body }
        })
    }
}

impl Answer {
    /// What a client of gRPC-Web is told of an answer that is not gRPC's: its status, and the
    /// beginning of its body for a message.
    async fn told_by_grpc(self, log: &RequestLog) -> Reply {
        let Self { response, mut deadline, destination, admitted, .. } = self;
        let _held = (destination.into_load(), admitted);
        let (parts, mut body) = response.into_parts();
        let mut message = BytesMut::new();
        while message.len() < PLAIN_MESSAGE_MAX_BYTES {
            match deadline.run(body.frame()).await {
                Ok(Some(Ok(frame))) => message.extend(frame.into_data().unwrap_or_default()),
                Ok(Some(Err(_)) | None) => break,
                Err(expired) => return expired_reply(expired, log),
            }
        }
        message.truncate(PLAIN_MESSAGE_MAX_BYTES);
        let reply = Reply::new(parts.status, "", None, VIA_UPSTREAM);
        Reply { body: message.freeze(), headers: Some(Box::new(parts.headers)), ..reply }
    }
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
    headers::sanitize(&mut head.headers);
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
    let (remote, local) = (flow.source(), flow.original_destination());
    normalize(head, &mut authority, &log.options, local.port())?;
    let secure = flow.is_secure();
    let peers = forwarding::Peers { remote, local, secure };
    log.record.client =
        forwarding::of_request(&mut head.headers, &log.options, peers).map_err(|status| {
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
        log.record.upstream = Some(destination.address());

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

fn no_route(details: impl Into<std::borrow::Cow<'static, str>>) -> Reply {
    let flag = Some(ResponseFlag::NoRouteFound);
    let code = Some("route_not_found".into());
    Reply { code, ..Reply::new(StatusCode::NOT_FOUND, "", flag, details) }
}

pub(super) fn path_and_query(head: &Parts) -> &str {
    head.uri.path_and_query().map_or("", |path| path.as_str())
}

/// Where a cluster was asked for and did not come.
fn unknown_cluster(error: &NoDestination, action: &RouteAction, log: &mut RequestLog) -> Reply {
    match action {
        RouteAction::Forward(action) => no_destination(error, action, log),
        RouteAction::Redirect(_) | RouteAction::DirectResponse(_) => no_route(error.to_string()),
    }
}

fn denied_reply(denied: &Denied) -> Reply {
    let (body, flag, why) = match denied.status() {
        StatusCode::BAD_REQUEST => ("Bad Request", ResponseFlag::Denied, "rbac_access_denied"),
        StatusCode::INTERNAL_SERVER_ERROR => {
            ("", ResponseFlag::NoFilterConfigFound, "missing_filter_config")
        }
        _ => ("RBAC: access denied", ResponseFlag::Denied, "rbac_access_denied"),
    };
    let by = denied.policy().unwrap_or("none");
    let code = match flag {
        ResponseFlag::Denied => Some(format!("rbac_access_denied_matched_policy[{by}]").into()),
        _ => None,
    };
    Reply { code, ..Reply::new(denied.status(), body, Some(flag), format!("{why}: {denied}")) }
}

pub(super) fn no_destination(
    error: &NoDestination,
    action: &ForwardAction,
    log: &mut RequestLog,
) -> Reply {
    log.record.cluster = error.cluster().cloned();
    let (flag, body) = match error {
        NoDestination::NoHealthyEndpoint { .. } => {
            (ResponseFlag::NoHealthyUpstream, "no healthy upstream")
        }
        NoDestination::UnknownCluster { .. } => (ResponseFlag::NoClusterFound, ""),
        NoDestination::DropOverload { category, unconditional, .. } => {
            log.record.dropped = Some(Arc::clone(category));
            match unconditional {
                true => (ResponseFlag::UnconditionalDropOverload, "unconditional drop overload"),
                false => (ResponseFlag::DropOverload, "drop overload"),
            }
        }
        NoDestination::NoCluster | NoDestination::NotPermitted { .. } => {
            (ResponseFlag::NoRouteFound, "no healthy upstream")
        }
    };
    let code = match error {
        NoDestination::UnknownCluster { .. } => "cluster_not_found",
        NoDestination::DropOverload { unconditional: true, .. } => "unconditional_drop_overload",
        NoDestination::DropOverload { .. } => "drop_overload",
        _ => "no_healthy_upstream",
    };
    let mut reply = Reply::upstream_reset(flag, body, error.to_string());
    reply.code = Some(code.into());
    let no_endpoint = matches!(error, NoDestination::NoHealthyEndpoint { .. });
    // Envoy began one, and found nobody.
    if no_endpoint && let Some(logging) = &mut log.logging {
        logging.attempts(1);
    }
    if no_endpoint && action.attempts.count_in_response {
        let headers = reply.headers.get_or_insert_default();
        headers.insert(headers::ATTEMPT_COUNT, HeaderValue::from(1));
    }
    match (error, StatusCode::from_u16(action.cluster_not_found_status)) {
        (NoDestination::UnknownCluster { .. }, Ok(status)) => Reply { status, ..reply },
        _ => reply,
    }
}

impl HttpConnection {
    /// The connection's permit by the snapshot in force: made anew where that is
    /// another than last time.
    fn judge(&self, snapshot: &Snapshot) -> Result<Arc<Judged>, Reply> {
        let judged = self.judged.load_full();
        if judged.version == snapshot.version {
            return Ok(judged);
        }
        let began = TerminalFilter::Http(Arc::clone(&self.http));
        let policy = self.services.outbound_policy;
        let standing = rejudge::standing(&judged.permit, Some(&began), snapshot, policy);
        if let Standing::Denied(revoked) = &standing {
            tracing::debug!(%revoked, "connection denied by a later configuration");
            let flag = Some(ResponseFlag::Denied);
            let details = format!("rbac_access_denied: {revoked}");
            let reply = Reply::new(StatusCode::FORBIDDEN, "RBAC: access denied", flag, details);
            return Err(Reply { close: true, ..reply });
        }
        self.stands(&standing, snapshot);
        Ok(self.judged.load_full())
    }

    /// Takes note of how the connection stands under `snapshot`. Requests that come where
    /// it is not served as HTTP any more are still served as they were last.
    pub(in crate::proxy) fn stands(&self, standing: &Standing, snapshot: &Snapshot) {
        let renewed = match standing {
            Standing::Holds(renewed) => Some(renewed),
            Standing::Drains(renewed) => {
                self.retiring.cancel();
                renewed.as_ref()
            }
            Standing::Denied(_) => None,
        };
        if let Some(renewed) = renewed
            && let Some(TerminalFilter::Http(http)) = renewed.flow().terminal()
        {
            let (version, permit) = (snapshot.version, renewed.clone());
            let routes = snapshot.routes(&http.routes);
            self.judged.store(Arc::new(Judged { version, permit, routes }));
        }
    }

    /// The connection manager of the permit's chain.
    fn manager<'a>(&self, permit: &'a Permit) -> Result<&'a HttpConnectionManager, Reply> {
        match permit.flow().terminal() {
            Some(TerminalFilter::Http(http)) => Ok(http),
            Some(TerminalFilter::TcpProxy(_)) | None => {
                let details = "the listener is not HTTP";
                let flag = Some(ResponseFlag::NoRouteFound);
                let status = StatusCode::SERVICE_UNAVAILABLE;
                Err(Reply { close: true, ..Reply::new(status, "", flag, details) })
            }
        }
    }
}
