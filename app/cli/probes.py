"""Asks ports: is one free, does something listen, is the API ready. With bare sockets, to stay small."""

from __future__ import annotations

import errno
import socket
import time

from app.core import errors

EVERYWHERE = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}
POLL_S = 0.1


def reachable_host(host: str) -> str:
    """Return the address at which we reach ourselves when listening on `host`."""
    return EVERYWHERE.get(host, host)


def origin(host: str, port: int) -> str:
    """Return `http://host:port` for people and clients on this machine."""
    name = reachable_host(host)
    return f"http://[{name}]:{port}" if ":" in name else f"http://{name}:{port}"


def check_free(host: str, port: int, patience_s: float = 0) -> None:
    """Raise `ConfigurationError` if the port cannot be listened on; be patient when those who hold it are ending."""
    deadline = time.monotonic() + patience_s
    while problem := _problem(host, port):
        if time.monotonic() >= deadline:
            raise errors.ConfigurationError(problem)
        time.sleep(POLL_S)


def _problem(host: str, port: int) -> str:
    try:
        family, *_, address = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[
            0
        ]
        socket.create_server(address[:2], family=family).close()
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            return f"Port {port} is taken by another program. Choose another: PORT={port + 1} make run"
        if error.errno == errno.EACCES:
            return f"Port {port} may not be used by this user. Choose one of 1024 or more: PORT=8000 make run"
        return f"HOST {host!r} is no address of this machine ({error.strerror}). Try HOST=127.0.0.1 or HOST=0.0.0.0"
    return ""


def is_free(host: str, port: int) -> bool:
    """Tell whether the port can be listened on."""
    return not _problem(host, port)


def free_port() -> int:
    """Return a port of this machine's own address that nobody listens on now."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def listens(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=0.5).close()
    except OSError:
        return False
    return True


def answers_ok(host: str, port: int, path: str) -> bool:
    """Tell whether GET `path` is answered with 200."""
    request = f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode()
    try:
        with socket.create_connection((reachable_host(host), port), timeout=0.5) as client:
            client.settimeout(2)
            client.sendall(request)
            return client.recv(64).split(b" ")[1:2] == [b"200"]
    except OSError:
        return False
