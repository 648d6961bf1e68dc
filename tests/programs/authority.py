"""Servers that filters ask: authorisation and rate limits by gRPC, authorisation and keys by HTTP.

usage: authority.py GRPC_PORT HTTP_PORT JWKS

What a request says in `x-authority` decides what is answered: `deny`, `slow` (after 3 s),
`error`, and so on. What was asked comes back in a header for the upstream, `x-asked`, so that
whoever compares two proxies sees it. Of rate limits the value of a descriptor's `how` decides.
"""

import json
import sys
import threading
import time
from concurrent import futures
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import grpc
from google.rpc import code_pb2
from envoy.config.core.v3 import base_pb2
from envoy.service.auth.v3 import external_auth_pb2 as auth
from envoy.service.auth.v3 import external_auth_pb2_grpc as auth_grpc
from envoy.service.ratelimit.v3 import rls_pb2 as rls
from envoy.service.ratelimit.v3 import rls_pb2_grpc as rls_grpc

# Not the same for two proxies, or a matter of the wire.
VOLATILE = {"x-request-id", "x-forwarded-for", "content-length", "x-case", "x-answer", "host"}


def option(key, value, action=None):
    made = base_pb2.HeaderValueOption(header=base_pb2.HeaderValue(key=key, value=value))
    if action is not None:
        made.append_action = action
    return made


def asked(request):
    http = request.attributes.request.http
    source, destination = request.attributes.source, request.attributes.destination
    return json.dumps({
        "method": http.method,
        "path": http.path,
        "host": http.host,
        "scheme": http.scheme,
        "protocol": http.protocol,
        "size": http.size,
        "body": http.body,
        "raw_body": http.raw_body.decode("latin-1"),
        "id": bool(http.id),
        "headers": {k: v for k, v in sorted(http.headers.items()) if k not in VOLATILE},
        "source": bool(source.address.socket_address.address),
        "destination": bool(destination.address.socket_address.port_value),
        "extensions": dict(sorted(request.attributes.context_extensions.items())),
        "metadata": sorted(request.attributes.metadata_context.filter_metadata),
    }, sort_keys=True)


class Authorization(auth_grpc.AuthorizationServicer):
    def Check(self, request, context):
        how = request.attributes.request.http.headers.get("x-authority", "")
        answer = auth.CheckResponse()
        if how == "slow":
            time.sleep(3)
        if how == "error":
            context.abort(grpc.StatusCode.INTERNAL, "told to")
        if how == "huge":
            answer.ok_response.headers.append(option("x-huge", "x" * (8 << 20)))
            return answer
        if how.startswith("deny"):
            answer.status.code = code_pb2.PERMISSION_DENIED
            if how == "deny-plain":
                return answer
            answer.denied_response.status.code = 401
            answer.denied_response.body = "no entry"
            answer.denied_response.headers.append(option("x-why", "told to"))
            return answer
        answer.ok_response.headers.append(option("x-asked", asked(request)))
        if how == "change":
            ok = answer.ok_response
            ok.headers.append(option("x-set", "new"))
            ok.headers.append(option("x-add", "more", base_pb2.HeaderValueOption.APPEND_IF_EXISTS_OR_ADD))
            ok.headers.append(option("x-if-absent", "here", base_pb2.HeaderValueOption.ADD_IF_ABSENT))
            ok.headers.append(option("x-if-there", "here", base_pb2.HeaderValueOption.OVERWRITE_IF_EXISTS))
            ok.headers_to_remove.extend(["x-gone", ":path", "host"])
            ok.response_headers_to_add.append(option("x-for-client", "yes"))
            ok.query_parameters_to_set.add(key="set", value="a")
            ok.query_parameters_to_remove.append("gone")
            answer.dynamic_metadata.update({"user": "me", "level": 3})
        if how == "invalid":
            answer.ok_response.headers.append(option("bad header", "x\r\ny"))
        if how == "route":
            answer.ok_response.headers.append(option("x-to", "two"))
        return answer


class RateLimits(rls_grpc.RateLimitServiceServicer):
    def ShouldRateLimit(self, request, context):
        entries = [(e.key, e.value) for d in request.descriptors for e in d.entries]
        how = dict(entries).get("how", "")
        answer = rls.RateLimitResponse(overall_code=rls.RateLimitResponse.OK)
        if how == "slow":
            time.sleep(3)
        if how == "error":
            context.abort(grpc.StatusCode.INTERNAL, "told to")
        if how == "unknown":
            answer.overall_code = rls.RateLimitResponse.UNKNOWN
        asked = json.dumps({
            "domain": request.domain,
            "hits": request.hits_addend,
            "descriptors": [{
                "entries": [[e.key, e.value] for e in d.entries],
                "hits": d.hits_addend.value if d.HasField("hits_addend") else None,
                "limit": [d.limit.requests_per_unit, d.limit.unit] if d.HasField("limit") else None,
            } for d in request.descriptors],
        }, sort_keys=True)
        answer.request_headers_to_add.add(key="x-asked", value=asked)
        answer.response_headers_to_add.add(key="x-for-client", value="yes")
        answer.dynamic_metadata.update({"user": "me", "level": 3})
        limit = rls.RateLimitResponse.RateLimit
        for n, d in enumerate(request.descriptors):
            status = answer.statuses.add(code=rls.RateLimitResponse.OK)
            if how.startswith("over"):
                status.code = rls.RateLimitResponse.OVER_LIMIT
            if how.endswith("unlimited"):
                continue
            units = [limit.MINUTE, limit.SECOND, limit.WEEK, limit.MONTH, limit.YEAR, limit.UNKNOWN]
            status.current_limit.requests_per_unit = 10 + n
            status.current_limit.unit = units[n % len(units)]
            status.current_limit.name = "" if n == 1 else f"limit-{n}"
            status.limit_remaining = 5 - n
            status.duration_until_reset.seconds = 30 + n
        if how.startswith("over"):
            answer.overall_code = rls.RateLimitResponse.OVER_LIMIT
            answer.raw_body = b"" if how == "over-bare" else b"slow down"
        if how == "over-typed":
            answer.response_headers_to_add.add(key="content-type", value="text/html")
        if how == "over-retry":
            answer.response_headers_to_add.add(key="retry-after", value="99")
        return answer


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    jwks = b""

    def log_message(self, *_):
        pass

    def reply(self, status, headers, body):
        self.send_response_only(status)
        for name, value in headers:
            self.send_header(name, value)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def any(self):
        length = int(self.headers.get("content-length") or 0)
        body = self.rfile.read(length)
        if self.path.startswith("/jwks"):
            return self.keys()
        how = self.headers.get("x-authority", "")
        if how == "slow":
            time.sleep(3)
        if how == "deny":
            headers = [("x-why", "told to"), ("x-hidden", "1"), ("location", "/login")]
            return self.reply(403, headers, b"no entry")
        if how == "error":
            return self.reply(500, [], b"broken")
        if how == "huge":
            return self.reply(403, [], b"x" * (8 << 20))
        told = json.dumps({
            "method": self.command,
            "path": self.path,
            "body": body.decode("latin-1"),
            "headers": {
                k.lower(): v for k, v in sorted(self.headers.items())
                if k.lower() not in VOLATILE and not k.lower().startswith("x-envoy-")
            },
        }, sort_keys=True)
        headers = [("x-asked", told), ("x-set", "new"), ("x-hidden", "1"), ("x-add", "more"),
                   ("x-for-client", "yes"), ("x-ext-metadata-user", "me")]
        self.reply(200, headers, b"")

    do_GET = do_POST = do_PUT = do_HEAD = do_DELETE = do_OPTIONS = any

    def keys(self):
        if self.path == "/jwks":
            return self.reply(200, [], self.jwks)
        if self.path == "/jwks-huge":
            return self.reply(200, [], self.jwks[:-1] + b', "padding": "' + b"x" * (4 << 20) + b'"}')
        self.reply(500, [], b"")


def main():
    grpc_port, http_port, jwks = sys.argv[1:]
    Handler.jwks = jwks.encode()
    server = grpc.server(futures.ThreadPoolExecutor(32), options=[("grpc.max_send_message_length", -1)])
    auth_grpc.add_AuthorizationServicer_to_server(Authorization(), server)
    rls_grpc.add_RateLimitServiceServicer_to_server(RateLimits(), server)
    server.add_insecure_port(f"0.0.0.0:{grpc_port}")
    server.start()
    http = ThreadingHTTPServer(("0.0.0.0", int(http_port)), Handler)
    threading.Thread(target=http.serve_forever, daemon=True).start()
    server.wait_for_termination()


main()
