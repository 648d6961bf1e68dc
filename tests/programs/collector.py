"""A collector of spans: OTLP by gRPC and by HTTP, and Zipkin's JSON.

Usage: collector.py ADDRESS GRPC_PORT HTTP_PORT FILE

Appends a JSON object for each span to FILE.
"""

import json
import sys
from concurrent import futures
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Lock

import grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as service

METHOD = "/opentelemetry.proto.collector.trace.v1.TraceService/Export"

address, grpc_port, http_port, path = sys.argv[1:]
lines, lock = open(path, "a", buffering=1), Lock()


def take(by, spans):
    with lock:
        for span in spans:
            lines.write(json.dumps({"by": by, **span}) + "\n")


def attributes(of):
    return {one.key: one.value.string_value for one in of}


def of_otlp(peer, request, headers):
    for resource in request.resource_spans:
        # The wire's `scope_spans` by its name of old.
        for scope in resource.instrumentation_library_spans:
            yield from (
                {
                    "peer": peer,
                    "trace": span.trace_id.hex(),
                    "id": span.span_id.hex(),
                    "parent": span.parent_span_id.hex(),
                    "state": span.trace_state,
                    "name": span.name,
                    "kind": span.kind,
                    "status": span.status.code,
                    "status_message": span.status.message,
                    "start": span.start_time_unix_nano,
                    "end": span.end_time_unix_nano,
                    "tags": attributes(span.attributes),
                    "events": len(span.events),
                    "resource": attributes(resource.resource.attributes),
                    "scope": scope.instrumentation_library.name,
                    "headers": headers,
                }
                for span in scope.spans
            )


def export(request, context):
    headers = {key: value for key, value in context.invocation_metadata() if isinstance(value, str)}
    take("grpc", of_otlp(context.peer().split(":")[1], request, headers))
    return service.ExportTraceServiceResponse()


class Http(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def body(self):
        if "chunked" not in self.headers.get("transfer-encoding", ""):
            return self.rfile.read(int(self.headers.get("content-length", "0")))
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def do_POST(self):
        body = self.body()
        headers = {key.lower(): value for key, value in self.headers.items()}
        peer = self.client_address[0]
        if self.path.startswith("/api/v2/spans"):
            take("zipkin", ({"peer": peer, "headers": headers, **span} for span in json.loads(body)))
            status = 202
        else:
            take("http", of_otlp(peer, service.ExportTraceServiceRequest.FromString(body), headers))
            status = 200
        self.send_response(status)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, *_):
        pass


handlers = {"Export": grpc.unary_unary_rpc_method_handler(
    export,
    request_deserializer=service.ExportTraceServiceRequest.FromString,
    response_serializer=service.ExportTraceServiceResponse.SerializeToString,
)}
server = grpc.server(futures.ThreadPoolExecutor(max_workers=4))
server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(METHOD.split("/")[1], handlers),))
server.add_insecure_port(f"{address}:{grpc_port}")
server.start()
ThreadingHTTPServer((address, int(http_port)), Http).serve_forever()
