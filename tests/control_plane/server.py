"""A control plane in another implementation: grpcio and xds-protos, SotW and delta ADS.

usage: server.py SOCKET STATE REQUESTS [LISTEN]

Serves what the JSON file STATE says, over the Unix socket SOCKET, and looks at STATE
all the time: {"resources": [...], "epoch": N}; another epoch drops every stream. Names
in "on_demand" go only to who asks for them (delta), "aliases" are other names of virtual
hosts. As
go-control-plane does, it sends a refused state of the world again at once, unless STATE
says {"patient": true}. {"salt": TEXT} makes other versions of the same resources. A
resource may be {"raw": {"url", "name", "as", "base64"}}: those bytes under that type URL,
served where "as" is asked for; or {"ttl": SECONDS, "resource": ...}, which lives that
long, and is confirmed for as long as {"heartbeats": true}.

{"many": {"clusters": N, "endpoints": M, "listeners": BOOL}} adds N clusters by EDS with M
endpoints each, made once; with "listeners" each has an opaque outbound listener.

Besides ADS there is each type's own service. LISTEN is a JSON list of further ports:
{"address": "IP:PORT", "cert": FILE, "key": FILE, "ca": FILE}; with "cert" it speaks TLS,
with "ca" it wants a certificate of the client. STATE may say how to behave: "mute"
answers nothing, "delay" waits so many seconds before each answer, "huge" makes each
answer so many bytes larger; "pings", heeded at the start only, bears any number of
HTTP/2 PINGs, where otherwise more than one in five minutes ends the connection.

Every request is checked against the protocol's rules and written to REQUESTS, one JSON
object a line; what breaks a rule has a "violation". So are {"sent": NONCE} for each
response and {"state": N} when a stream has sent all that STATE's "number" N asks for.
"""

import base64
import functools
import hashlib
import importlib
import itertools
import json
import os
import pkgutil
import queue
import sys
import threading
import time
from concurrent import futures

import grpc
from google.protobuf import any_pb2, json_format

# Fills the pool that `Any` is parsed with.
from envoy.config.cluster.v3 import cluster_pb2
from envoy.config.core.v3 import config_source_pb2
from envoy.config.endpoint.v3 import endpoint_pb2
from envoy.config.listener.v3 import listener_pb2
from envoy.config.core.v3 import extension_pb2
from envoy.config.route.v3 import route_components_pb2, route_pb2, scoped_route_pb2
from envoy.extensions.filters.http.on_demand.v3 import on_demand_pb2
from envoy.extensions.filters.http.rbac.v3 import rbac_pb2 as http_rbac_pb2
from envoy.extensions.filters.http.router.v3 import router_pb2
from envoy.extensions.filters.network.http_connection_manager.v3 import (
    http_connection_manager_pb2,
)
from envoy.extensions.filters.network.rbac.v3 import rbac_pb2
from envoy.extensions.filters.network.tcp_proxy.v3 import tcp_proxy_pb2
from envoy.extensions.load_balancing_policies.round_robin.v3 import round_robin_pb2
from envoy.extensions.transport_sockets.tls.v3 import (
    secret_pb2,
    tls_pb2,
    tls_spiffe_validator_config_pb2,
)
from envoy.extensions.upstreams.http.v3 import http_protocol_options_pb2
from envoy.service.discovery.v3 import ads_pb2_grpc, discovery_pb2
from envoy.service.runtime.v3 import rtds_pb2

PREFIX = "type.googleapis.com/envoy."
LDS = PREFIX + "config.listener.v3.Listener"
RDS = PREFIX + "config.route.v3.RouteConfiguration"
CDS = PREFIX + "config.cluster.v3.Cluster"
EDS = PREFIX + "config.endpoint.v3.ClusterLoadAssignment"
SDS = PREFIX + "extensions.transport_sockets.tls.v3.Secret"
RTDS = PREFIX + "service.runtime.v3.Runtime"
ECDS = PREFIX + "config.core.v3.TypedExtensionConfig"
# Named `<route configuration>/<host>`; there is no state of the world of it.
VHDS = PREFIX + "config.route.v3.VirtualHost"
SRDS = PREFIX + "config.route.v3.ScopedRouteConfiguration"
# In the order in which changes are sent: make before break.
TYPES = (RTDS, SDS, CDS, EDS, LDS, ECDS, SRDS, RDS, VHDS)
WILDCARD = (LDS, CDS, SRDS)
# The types' own services: package, service, name in its methods.
SERVICES = {
    LDS: ("listener", "ListenerDiscoveryService", "Listeners"),
    RDS: ("route", "RouteDiscoveryService", "Routes"),
    VHDS: ("route", "VirtualHostDiscoveryService", "VirtualHosts"),
    SRDS: ("route", "ScopedRoutesDiscoveryService", "ScopedRoutes"),
    CDS: ("cluster", "ClusterDiscoveryService", "Clusters"),
    EDS: ("endpoint", "EndpointDiscoveryService", "Endpoints"),
    SDS: ("secret", "SecretDiscoveryService", "Secrets"),
    RTDS: ("runtime", "RuntimeDiscoveryService", "Runtime"),
    ECDS: ("extension", "ExtensionConfigDiscoveryService", "ExtensionConfigs"),
}


@functools.lru_cache(maxsize=None)
def learn(package):
    """Fills the pool with all messages of that package."""
    try:
        directory = importlib.import_module(package)
    except ModuleNotFoundError:
        return
    for module in pkgutil.iter_modules(directory.__path__):
        if module.name.endswith("_pb2"):
            importlib.import_module(f"{package}.{module.name}")


def learn_types(value):
    """Fills the pool with what `Any`s in `value` are of."""
    if isinstance(value, dict):
        type_url = value.get("@type")
        if isinstance(type_url, str):
            learn(type_url.rpartition("/")[2].rpartition(".")[0])
        value = list(value.values())
    if isinstance(value, list):
        for item in value:
            learn_types(item)


def digest(data):
    return hashlib.sha256(data).hexdigest()[:12]


@functools.lru_cache(maxsize=1)
def many(clusters, endpoints, listeners=False):
    """That many clusters, assignments and listeners, as they are served."""
    served = ({}, {}, {})

    def serve(table, name, message):
        packed = any_pb2.Any()
        packed.Pack(message)
        table[name] = (digest(packed.value), packed)

    for i in range(clusters):
        name = f"cluster-{i}"
        cluster = cluster_pb2.Cluster(name=name, type=cluster_pb2.Cluster.EDS)
        source = cluster.eds_cluster_config.eds_config
        source.ads.SetInParent()
        source.resource_api_version = config_source_pb2.V3
        assignment = endpoint_pb2.ClusterLoadAssignment(cluster_name=name)
        locality = assignment.endpoints.add()
        for j in range(endpoints):
            address = locality.lb_endpoints.add().endpoint.address.socket_address
            address.address = f"10.{i >> 8 & 255}.{i & 255}.{j + 1}"
            address.port_value = 8080
        serve(served[0], name, cluster)
        serve(served[1], name, assignment)
        if not listeners:
            continue
        listener = listener_pb2.Listener(name=name, traffic_direction="OUTBOUND")
        address = listener.address.socket_address
        address.address = f"10.97.{i >> 8 & 255}.{i & 255}"
        address.port_value = 80
        proxy = listener.filter_chains.add().filters.add(name="envoy.filters.network.tcp_proxy")
        proxy.typed_config.Pack(tcp_proxy_pb2.TcpProxy(stat_prefix=name, cluster=name))
        serve(served[2], name, listener)
    return served


class State:
    """What is to be served, by type: {name: (version, Any)}."""

    def __init__(self, text):
        document = json.loads(text)
        self.epoch = document.get("epoch", 0)
        self.number = document.get("number", 0)
        self.patient = document.get("patient", False)
        self.heartbeats = document.get("heartbeats", False)
        self.salt = document.get("salt", "").encode()
        self.mute = document.get("mute", False)
        self.delay = document.get("delay", 0)
        self.huge = document.get("huge", 0)
        self.pings = document.get("pings", False)
        self.types = {type_url: {} for type_url in TYPES}
        self.ttls = {type_url: {} for type_url in TYPES}
        if "many" in document:
            clusters, assignments, listeners = many(**document["many"])
            self.types[LDS].update(listeners)
            self.types[CDS].update(clusters)
            self.types[EDS].update(assignments)
        self.on_demand = set(document.get("on_demand", []))
        self.aliases = document.get("aliases", {})
        for resource in document["resources"]:
            self.add(resource)

    def add(self, resource, ttl=None):
        if "ttl" in resource:
            return self.add(resource["resource"], resource["ttl"])
        raw = resource.get("raw")
        if raw is None:
            learn_types(resource)
            packed = json_format.ParseDict(resource, any_pb2.Any())
            name = resource.get("name") or resource.get("cluster_name") or ""
            kind = packed.type_url
        else:
            value = base64.b64decode(raw["base64"])
            packed = any_pb2.Any(type_url=raw["url"], value=value)
            name, kind = raw["name"], raw["as"]
        self.types[kind][name] = (digest(self.salt + packed.value), packed)
        if ttl is not None:
            self.ttls[kind][name] = ttl

    def version(self, type_url):
        versions = sorted((name, v) for name, (v, _) in self.types[type_url].items())
        return digest(self.salt + json.dumps(versions).encode())

    def wrapped(self, type_url, name, with_body=True):
        """The resource with its time to live; without its body it is a heartbeat."""
        version, packed = self.types[type_url][name]
        wrapped = discovery_pb2.Resource(name=name, version=version)
        if with_body:
            wrapped.resource.CopyFrom(packed)
        ttl = self.ttls[type_url].get(name)
        if ttl is not None:
            wrapped.ttl.FromNanoseconds(int(ttl * 1e9))
        return wrapped


class Server(ads_pb2_grpc.AggregatedDiscoveryServiceServicer):
    def __init__(self, state_path, requests_path):
        self.state_path = state_path
        self.log = open(requests_path, "a", buffering=1)
        self.lock = threading.Lock()
        self.streams = set()
        self.numbers = itertools.count(1)
        self.seen = None
        self.state = None
        self.look()
        self.beat_at = 0.0

    def write(self, line):
        self.log.write(json.dumps(line) + "\n")

    def beat(self):
        """Has every stream confirm what has a time to live, every half second."""
        if not self.state.heartbeats or time.monotonic() < self.beat_at:
            return
        self.beat_at = time.monotonic() + 0.5
        with self.lock:
            for events in self.streams:
                events.put(("beat", None))

    def look(self):
        stat = os.stat(self.state_path)
        seen = (stat.st_mtime_ns, stat.st_ino)
        if seen == self.seen:
            return
        with open(self.state_path) as file:
            state = State(file.read())
        self.seen = seen
        dropped = self.state is not None and state.epoch != self.state.epoch
        self.state = state
        with self.lock:
            for events in self.streams:
                events.put(("drop" if dropped else "changed", None))

    def serve(self, stream_type, requests, context, only=None):
        events = queue.Queue()
        with self.lock:
            self.streams.add(events)

        def read():
            try:
                for request in requests:
                    events.put(("request", request))
            except Exception:
                pass
            events.put(("end", None))

        threading.Thread(target=read, daemon=True).start()
        stream = stream_type(self, next(self.numbers), only, context)
        told = False
        try:
            while True:
                event, request = events.get()
                if event == "end":
                    return
                if event == "drop":
                    context.abort(grpc.StatusCode.UNAVAILABLE, "dropped for the test")
                if event == "request":
                    responses = stream.on_request(request)
                elif event == "beat":
                    responses = stream.on_beat()
                else:
                    responses = stream.on_change()
                for response in responses:
                    time.sleep(self.state.delay)
                    if self.state.huge:
                        response.nonce = "x" * self.state.huge
                    if not self.state.mute:
                        yield response
                # A new stream has heard of the state once its first request is answered.
                if event == "changed" or (event == "request" and not told):
                    told = True
                    line = {"stream": stream.number, "node": stream.node}
                    self.write(line | {"state": self.state.number})
        finally:
            with self.lock:
                self.streams.discard(events)

    def StreamAggregatedResources(self, requests, context):
        return self.serve(SotwStream, requests, context)

    def DeltaAggregatedResources(self, requests, context):
        return self.serve(DeltaStream, requests, context)


class Stream:
    def __init__(self, server, number, only, context):
        self.server = server
        self.number = number
        # The one type of this service; None: all.
        self.only = only
        self.peer = {
            "port": context.peer(),
            "identity": [name.decode() for name in context.peer_identities() or []],
        }
        self.node = None
        self.is_envoy = False
        self.types = {}
        self.nonces = itertools.count(1)

    def note(self, request, violations, **more):
        error = request.error_detail.message if request.HasField("error_detail") else None
        line = {
            "at": time.time(),
            "stream": self.number,
            "node": self.node,
            "service": SERVICES[self.only][1] if self.only else "ADS",
            **self.peer,
            "type": request.type_url,
            "nonce": request.response_nonce,
            "error": error,
            **more,
        }
        if violations:
            line["violation"] = "; ".join(violations)
        self.server.write(line)

    def sent(self, type_url, nonce, version, names, removed):
        """Writes down a response before it goes out, so that its answer comes behind it."""
        line = {"stream": self.number, "node": self.node, "type": type_url, "sent": nonce}
        names, removed = sorted(names), sorted(removed)
        # What is many is not listed.
        line |= {"version": version, "resources": names[:100], "removed": removed[:100]}
        line |= {"number": self.server.state.number, "at": time.time()}
        self.server.write(line)

    def introduce(self, request, violations):
        if self.node is None:
            self.node = request.node.id
            self.peer["region"] = request.node.locality.region
            self.is_envoy = request.node.user_agent_name == "envoy"
            if not self.node:
                violations.append("the first request has no node.id")
        elif request.node.id not in ("", self.node):
            violations.append("another node on the same stream")
        if self.only and request.type_url != self.only:
            violations.append("a type that this service does not have")
        if request.type_url not in TYPES:
            violations.append(f"unknown type {request.type_url}")
        if request.HasField("error_detail"):
            if not request.response_nonce:
                violations.append("a NACK of nothing")
            if not request.error_detail.message:
                violations.append("a NACK without a reason")
            if not request.error_detail.code:
                violations.append("a NACK whose code is OK")


class SotwStream(Stream):
    def on_request(self, request):
        violations = []
        self.introduce(request, violations)
        url = request.type_url
        names = list(request.resource_names)
        known = self.types.get(url)
        if known is None:
            known = self.types[url] = {"sent": {}, "last": None, "acked": None, "names": None}
            # Whether the client is known to have heard a response: one may be under way
            # while it asks for other names.
            known["answered"] = False
            # The newest response that it is known to have heard.
            known["heard"] = 0
            if request.response_nonce:
                violations.append("a nonce in a type's first request")
            known["acked"] = request.version_info
        elif request.response_nonce:
            if request.response_nonce not in known["sent"]:
                violations.append("a nonce that was not sent")
            else:
                sent = known["sent"][request.response_nonce]
                if sent["order"] < known["heard"]:
                    violations.append("a nonce from before the one of its last request")
                known["heard"] = max(known["heard"], sent["order"])
                if request.HasField("error_detail"):
                    if request.version_info != known["acked"]:
                        violations.append("a NACK that moves the version")
                elif sent["nacked"]:
                    if request.version_info != known["acked"]:
                        violations.append("a refused version is said to be accepted")
                elif request.version_info == sent["version"]:
                    known["acked"] = sent["version"]
                else:
                    violations.append("an ACK with another version")
                known["answered"] = True
                sent["nacked"] |= request.HasField("error_detail")
        elif known["answered"]:
            violations.append("no nonce although there was a response")
        if url == VHDS:
            violations.append("VHDS in the state-of-the-world variant")
        if url in WILDCARD and names not in ([], ["*"]):
            violations.append("names for a type that is asked for as a whole")
        if len(names) != len(set(names)):
            violations.append("a name twice")
        if request.resource_locators:
            violations.append("resource locators, which nobody has offered")
        # A response is answered once; what comes after it is another wish. Envoy repeats
        # its wishes.
        told = (request.response_nonce, sorted(names), request.HasField("error_detail"))
        if known.get("told") == told and not self.is_envoy:
            violations.append("says what it has said before")
        known["told"] = told
        # Envoy asks for nothing on a new stream where it has asked for something before.
        fresh = known["names"] is None and not request.version_info
        if url not in WILDCARD and not names and fresh:
            violations.append("no names for a type that is asked for by names")
        self.note(request, violations, version=request.version_info, names=names)
        if known["last"] is not None and request.response_nonce != known["last"]:
            return
        new = known["names"] is None or set(names) - set(known["names"])
        known["names"] = names
        version = self.server.state.version(url)
        last = known["sent"].get(known["last"])
        waits = self.server.state.patient and last is not None and last["version"] == version
        if new or (request.version_info != version and not waits):
            yield self.response(url)

    def on_beat(self):
        """This variant has no heartbeat of its own: the whole is said again."""
        for url, ttls in self.server.state.ttls.items():
            if ttls and self.types.get(url, {}).get("last") is not None:
                yield self.response(url)

    def on_change(self):
        for url in TYPES:
            known = self.types.get(url)
            if known is None or known["last"] is None:
                continue
            last = known["sent"][known["last"]]
            if last["version"] != self.server.state.version(url):
                yield self.response(url)

    def response(self, url):
        known = self.types[url]
        nonce = f"{self.number}-{next(self.nonces)}"
        version = self.server.state.version(url)
        order = len(known["sent"]) + 1
        known["sent"][nonce] = {"version": version, "nacked": False, "order": order}
        known["last"] = nonce
        state = self.server.state
        table, ttls = state.types[url], state.ttls[url]
        wanted = table if url in WILDCARD else [n for n in known["names"] if n in table]
        resources = [table[name][1] for name in wanted if name not in ttls]
        for name in wanted:
            if name in ttls:
                resources.append(any_pb2.Any())
                resources[-1].Pack(state.wrapped(url, name))
        response = discovery_pb2.DiscoveryResponse(
            version_info=version, resources=resources, type_url=url, nonce=nonce
        )
        self.sent(url, nonce, version, wanted, [])
        return response


class DeltaStream(Stream):
    def on_request(self, request):
        violations = []
        self.introduce(request, violations)
        url = request.type_url
        known = self.types.get(url)
        more, less = request.resource_names_subscribe, request.resource_names_unsubscribe
        if known is None:
            # A first request without names asks for all.
            names = {"*"} if url == SRDS and not more else set()
            known = self.types[url] = {"names": names, "open": [], "has": {}}
            known["has"] = dict(request.initial_resource_versions)
            if url == VHDS and more:
                violations.append("names in the first request for virtual hosts, as Envoy never")
            if request.response_nonce:
                violations.append("a nonce in a type's first request")
            if less:
                violations.append("unsubscribes in a type's first request")
            # Who has something asks for it, or for all.
            if url not in WILDCARD and url != VHDS and set(known["has"]) - set(more):
                violations.append("has what it does not ask for")
            if not all(known["has"].values()):
                violations.append("has a resource without a version")
        else:
            if request.initial_resource_versions:
                violations.append("initial_resource_versions in a later request")
            if not (request.response_nonce or more or less):
                violations.append("neither answers nor asks")
        if request.response_nonce:
            if request.response_nonce not in known["open"]:
                violations.append("a nonce that was not sent, or was answered before")
            else:
                if request.response_nonce != known["open"][0]:
                    violations.append("answers a response before the one that came first")
                known["open"].remove(request.response_nonce)
        if len([*more, *less]) != len({*more, *less}):
            violations.append("a name twice")
        if request.resource_locators_subscribe or request.resource_locators_unsubscribe:
            violations.append("resource locators, which nobody has offered")
        if url in (LDS, CDS) and "*" in less:
            violations.append("gives up a type that is asked for as a whole")
        if url == VHDS and any("/" not in name for name in [*more, *less]):
            violations.append("a name that is no virtual host's")
        if "*" in more and url not in WILDCARD:
            violations.append("asks for all of a type that is asked for by names")
        if url == LDS and {*more, *less} - {"*"}:
            violations.append("names for a type that is asked for as a whole")
        if url == CDS and more and not known["names"] and "first" not in known:
            if "*" not in more:
                violations.append("names in the first request of all, without a `*`")
        if set(more) & known["names"]:
            violations.append("subscribes to what it has subscribed to")
        if set(less) - known["names"]:
            violations.append("unsubscribes from what it has not subscribed to")
        known["names"] |= set(more)
        known["names"] -= set(less)
        if url not in WILDCARD:
            for name in less:
                known["has"].pop(name, None)
        if url == SRDS and "*" in less:
            known["has"].clear()
        self.note(
            request,
            violations,
            names=sorted(more),
            less=sorted(less),
            initial=dict(request.initial_resource_versions),
        )
        yield from self.changes(url, set(more))

    def on_change(self):
        for url in TYPES:
            if url in self.types:
                yield from self.changes(url, set())

    def changes(self, url, new):
        known = self.types[url]
        table = self.server.state.types[url]
        wanted = {name for name in table if self.wants(url, name)}
        aliases = self.server.state.aliases
        again = {n for n in wanted if new & set(aliases.get(n, []))}
        changed = [
            n for n in sorted(wanted) if known["has"].get(n) != table[n][0] or n in again
        ]
        removed = [n for n in sorted(known["has"]) if n not in wanted]
        # What is subscribed to and not there is said not to be there.
        known_as = {n for name in wanted for n in [name, *aliases.get(name, [])]}
        absent = [n for n in sorted(new) if n not in known_as and n not in removed and n != "*"]
        first = "first" not in known
        known["first"] = False
        if url != VHDS:
            removed, absent = removed + absent, []
        if not changed and not removed and not absent:
            # Who asks for all is answered, even if there is nothing.
            if not ((first or "*" in new) and (url in WILDCARD or url == VHDS)):
                return
        nonce = f"{self.number}-{next(self.nonces)}"
        known["open"].append(nonce)
        for name in changed:
            known["has"][name] = table[name][0]
        for name in removed:
            known["has"].pop(name, None)
        yield self.response(url, nonce, changed, removed, absent=absent)

    def on_beat(self):
        for url, ttls in self.server.state.ttls.items():
            known = self.types.get(url)
            alive = [name for name in ttls if known is not None and name in known["has"]]
            if alive:
                nonce = f"{self.number}-{next(self.nonces)}"
                known["open"].append(nonce)
                yield self.response(url, nonce, alive, [], with_body=False)

    def response(self, url, nonce, names, removed, with_body=True, absent=()):
        state = self.server.state
        version = state.version(url)
        response = discovery_pb2.DeltaDiscoveryResponse(
            system_version_info=version,
            resources=[self.resource(url, name, with_body) for name in names]
            # A virtual host that is not there has a name, an alias and nothing else.
            + [discovery_pb2.Resource(name=n, aliases=[n]) for n in absent],
            removed_resources=removed,
            type_url=url,
            nonce=nonce,
        )
        self.sent(url, nonce, version, names, removed)
        return response

    def wants(self, url, name):
        """Whether the client has subscribed to it, in whatever way."""
        names = self.types[url]["names"]
        aliases = self.server.state.aliases.get(name, [])
        if name in names or any(alias in names for alias in aliases):
            return True
        if name in self.server.state.on_demand:
            return False
        if url == SRDS:
            return "*" in names
        if url == VHDS:
            return True
        return url in WILDCARD

    def resource(self, url, name, with_body):
        wrapped = self.server.state.wrapped(url, name, with_body)
        names = self.types[url]["names"]
        aliases = self.server.state.aliases.get(name, [])
        wrapped.aliases.extend(a for a in aliases if a in names)
        return wrapped


def handlers(server):
    """The types' own services."""

    def method(stream_type, url, request, response):
        return grpc.stream_stream_rpc_method_handler(
            lambda requests, context: server.serve(stream_type, requests, context, url),
            request_deserializer=request.FromString,
            response_serializer=response.SerializeToString,
        )

    pb = discovery_pb2
    for url, (package, service, name) in SERVICES.items():
        methods = {
            "Delta" + name: method(
                DeltaStream, url, pb.DeltaDiscoveryRequest, pb.DeltaDiscoveryResponse
            )
        }
        if url != VHDS:
            methods["Stream" + name] = method(
                SotwStream, url, pb.DiscoveryRequest, pb.DiscoveryResponse
            )
        full_name = f"envoy.service.{package}.v3.{service}"
        yield grpc.method_handlers_generic_handler(full_name, methods)


def listen(transport, port):
    def content(key):
        with open(port[key], "rb") as file:
            return file.read()

    if "cert" not in port:
        return transport.add_insecure_port(port["address"])
    ca = content("ca") if "ca" in port else None
    credentials = grpc.ssl_server_credentials(
        [(content("key"), content("cert"))],
        root_certificates=ca,
        require_client_auth=ca is not None,
    )
    return transport.add_secure_port(port["address"], credentials)


def main():
    socket, state, requests, *ports = sys.argv[1:]
    server = Server(state, requests)
    pool = futures.ThreadPoolExecutor(max_workers=64)
    options = [("grpc.max_send_message_length", -1), ("grpc.so_reuseport", 0)]
    if server.state.pings:
        options.append(("grpc.http2.max_ping_strikes", 0))
    transport = grpc.server(pool, options=options)
    ads_pb2_grpc.add_AggregatedDiscoveryServiceServicer_to_server(server, transport)
    transport.add_generic_rpc_handlers(tuple(handlers(server)))
    transport.add_insecure_port(f"unix:{socket}")
    for port in json.loads(ports[0]) if ports else []:
        listen(transport, port)
    transport.start()
    print("serving", flush=True)
    while True:
        time.sleep(0.005)
        server.look()
        server.beat()


main()
