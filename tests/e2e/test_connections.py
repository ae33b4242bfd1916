"""Connections: a bot that keeps many of them open, idle, takes nobody's place."""

from __future__ import annotations

import http.client

from tests.stack import Stack


def test_idle_connections_do_not_shut_others_out(stack: Stack) -> None:
    idle = []
    try:
        for _ in range(int(stack.env["API_THREADS"]) + 60):
            connection = http.client.HTTPConnection("127.0.0.1", stack.port, timeout=30)
            connection.request("GET", "/health")
            assert connection.getresponse().read() == b'{"status":"ok"}'
            idle.append(connection)
        assert stack.complete("still served")[0] == 200
    finally:
        for connection in idle:
            connection.close()
