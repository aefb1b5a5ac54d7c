"""A real gRPC server and a real gRPC client (gRPC's own C core), for tests/e2e/grpc.rs. Messages are plain bytes.

    peer.py serve              prints its port, and serves until its input ends
    peer.py call PORT NAME     makes one kind of call and prints what came of it as JSON
"""

import json
import sys
import time
from concurrent import futures

import grpc


def unary(request, context):
    context.set_trailing_metadata((("x-trailing", "kept"),))
    metadata = dict(context.invocation_metadata())
    if request == b"metadata":
        return json.dumps({k: v for k, v in metadata.items() if isinstance(v, str)}).encode()
    return request


def server_stream(request, context):
    for number in range(int(request)):
        yield b"%d" % number


def client_stream(requests, context):
    return b",".join(requests)


def bidi(requests, context):
    for request in requests:
        yield request.upper()


def slow(request, context):
    for _ in range(100):
        if not context.is_active():
            return b""
        time.sleep(0.05)
    return b"late"


def fail(request, context):
    context.abort(grpc.StatusCode.FAILED_PRECONDITION, "not \u00fc now %")


def serve():
    server = grpc.server(futures.ThreadPoolExecutor(32))
    handlers = {
        "Unary": grpc.unary_unary_rpc_method_handler(unary),
        "ServerStream": grpc.unary_stream_rpc_method_handler(server_stream),
        "ClientStream": grpc.stream_unary_rpc_method_handler(client_stream),
        "Bidi": grpc.stream_stream_rpc_method_handler(bidi),
        "Slow": grpc.unary_unary_rpc_method_handler(slow),
        "Fail": grpc.unary_unary_rpc_method_handler(fail),
    }
    for service in ("test.Echo", "test.Own", "test.Limited"):
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, handlers),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    print(port, flush=True)
    sys.stdin.read()
    server.stop(None)


def call(port, name):
    service = "test.Echo"
    if "/" in name:
        service, name = name.split("/")
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        path = f"/{service}/{name}"
        one = lambda kind: getattr(channel, kind)
        try:
            result = CALLS[name](one, path)
        except grpc.RpcError as error:
            result = {
                "code": error.code().name,
                "details": error.details(),
                "trailing": dict(error.trailing_metadata() or ()),
            }
    print(json.dumps(result), flush=True)


def call_unary(one, path):
    answer, call = one("unary_unary")(path).with_call(b"x" * 300_000, timeout=10)
    metadata = one("unary_unary")(path)(b"metadata", timeout=10, metadata=(("grpc-custom", "1"),))
    return {
        "code": call.code().name,
        "length": len(answer),
        "trailing": dict(call.trailing_metadata()),
        "seen": json.loads(metadata),
    }


def call_server_stream(one, path):
    return {"messages": [m.decode() for m in one("unary_stream")(path)(b"500", timeout=10)]}


def call_client_stream(one, path):
    messages = (b"%d" % n for n in range(500))
    return {"message": one("stream_unary")(path)(messages, timeout=10).decode()}


def call_bidi(one, path):
    """Each message is sent only when the answer to the one before has come: nothing may be held back."""
    answers = []
    ready = __import__("queue").Queue()

    def messages():
        for number in range(200):
            yield b"message %d" % number
            ready.get(timeout=5)

    for answer in one("stream_stream")(path)(messages(), timeout=20):
        answers.append(answer.decode())
        ready.put(None)
    return {"messages": len(answers), "last": answers[-1]}


def call_slow(one, path):
    begin = time.monotonic()
    try:
        one("unary_unary")(path)(b"", timeout=30)
    except grpc.RpcError as error:
        return {"code": error.code().name, "took": time.monotonic() - begin}
    return {"code": "OK"}


def call_deadline(one, path):
    begin = time.monotonic()
    try:
        one("unary_unary")(path.replace("Deadline", "Slow"))(b"", timeout=0.5)
    except grpc.RpcError as error:
        return {"code": error.code().name, "took": time.monotonic() - begin}
    return {"code": "OK"}


def call_cancel(one, path):
    call = one("unary_unary")(path.replace("Cancel", "Slow")).future(b"", timeout=30)
    time.sleep(0.3)
    call.cancel()
    time.sleep(0.3)
    return {"cancelled": call.cancelled()}


def call_many(one, path):
    """Many calls at once on one connection, some of them in vain."""
    unary, fail = one("unary_unary")(path.replace("Many", "Unary")), one("unary_unary")(path.replace("Many", "Fail"))
    calls = [unary.future(b"%d" % n, timeout=20) if n % 3 else fail.future(b"", timeout=20) for n in range(300)]
    codes = {}
    for each in calls:
        name = each.code().name
        codes[name] = codes.get(name, 0) + 1
    return codes


def call_plain(one, path):
    return {"message": one("unary_unary")(path)(b"x", timeout=10).decode()}


CALLS = {
    "Unary": call_unary,
    "ServerStream": call_server_stream,
    "ClientStream": call_client_stream,
    "Bidi": call_bidi,
    "Slow": call_slow,
    "Deadline": call_deadline,
    "Cancel": call_cancel,
    "Many": call_many,
    "Fail": call_plain,
    "Nowhere": call_plain,
}

if __name__ == "__main__":
    if sys.argv[1] == "serve":
        serve()
    else:
        call(int(sys.argv[2]), sys.argv[3])
