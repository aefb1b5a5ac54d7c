"""Loads that wrk cannot give: an exact number of requests, and idle connections.

    connections.py count PORT PATH N [HEADER ...]   N requests, one after another, on one connection
    connections.py idle  PORT PATH N [HEADER ...]   N connections, one request each, held until a signal comes

Every answer must be a 200, or it exits with 1. `idle` says "ready" once all connections stand.
"""

import signal
import socket
import sys

PORTS_PER_ADDRESS = 20_000  # below the 28,232 of Linux's default ip_local_port_range


def connect(port, number=0):
    """Many connections need more than one source address: 127.0.0.1, 127.0.0.2, and so on."""
    source = f"127.0.0.{1 + number // PORTS_PER_ADDRESS}"
    sock = socket.create_connection(("127.0.0.1", port), timeout=60, source_address=(source, 0))
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return sock


def ask(sock, request):
    sock.sendall(request)
    answer = b""
    while b"\r\n\r\n" not in answer:
        answer += receive(sock)
    head, body = answer.split(b"\r\n\r\n", 1)
    lines = head.lower().split(b"\r\n")
    if b" 200 " not in lines[0]:
        sys.exit(f"not a 200: {head.decode('latin-1')}")
    length = next(int(line.split(b":")[1]) for line in lines if line.startswith(b"content-length:"))
    got = len(body)
    while got < length:
        got += len(receive(sock))


def receive(sock):
    data = sock.recv(65536)
    if not data:
        sys.exit("the connection was closed before the answer was whole")
    return data


def main():
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # a shell's background jobs are born with it ignored
    mode, port, path, number, *headers = sys.argv[1:]
    port, number = int(port), int(number)
    lines = [f"GET {path} HTTP/1.1", f"Host: 127.0.0.1:{port}", *headers, "", ""]
    request = "\r\n".join(lines).encode()
    if mode == "count":
        sock = connect(port)
        for _ in range(number):
            ask(sock, request)
    elif mode == "idle":
        held = []
        for n in range(number):
            held.append(connect(port, n))
            ask(held[-1], request)
        print("ready", flush=True)
        signal.pause()
    else:
        sys.exit(__doc__)


main()
