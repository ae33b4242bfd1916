"""The simulator as a process: its options, its socket, and its end on a signal."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import errno
import gc
import os
import signal
import sys
from collections.abc import Callable, Sequence

from app.llm.simulator import dialects
from app.llm.simulator.connection import Connection
from app.llm.simulator.provider import Provider

_BACKLOG = 4096


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the simulator as the command line says and gives its exit code."""
    parser = argparse.ArgumentParser("python -m app.llm.simulator", description="An OpenAI-compatible simulator.")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0, help="0 takes a free one")
    parser.add_argument("--uds", default="", metavar="PATH", help="listen on this Unix socket instead")
    parser.add_argument("--seed", type=int, default=0, help="of the jitter")
    parser.add_argument("--require-key", default="", metavar="KEY", help="refuse requests without this API key")
    parser.add_argument("--dialect", default="openai", choices=sorted(dialects.DIALECTS), help="whose ways it has")
    options = parser.parse_args(arguments)
    return serve(
        options.host,
        options.port,
        uds=options.uds,
        seed=options.seed,
        required_key=options.require_key,
        dialect=options.dialect,
    )


def serve(
    host: str = "127.0.0.1",
    port: int = 0,
    *,
    uds: str = "",
    seed: int = 0,
    required_key: str = "",
    dialect: str = "openai",
    ready: Callable[[str], None] | None = None,
) -> int:
    """Serves until SIGTERM or SIGINT and gives the exit code: 0, or 1 when the address cannot be had.

    `ready` is called with the address once it listens; by default one line is printed.
    """
    provider = Provider(seed=seed, required_key=required_key, dialect=dialect)
    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        try:
            runner.run(_serve(provider, host, port, uds, ready or _announce))
        except OSError as error:
            print(f"simulator cannot listen on {uds or f'{host}:{port}'}: {_reason(error)}", file=sys.stderr)
            return 1
    return 0


async def _serve(provider: Provider, host: str, port: int, uds: str, ready: Callable[[str], None]) -> None:
    loop = asyncio.get_running_loop()
    stopped = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopped.set)
    connections: set[Connection] = set()
    server, address = await _listen(loop, lambda: Connection(provider, connections, loop), host, port, uds)
    gc.collect()
    gc.freeze()  # what was imported lives for ever: no collection need look at it
    ready(address)
    await stopped.wait()
    server.close()
    for connection in list(connections):
        connection.abort()
    if uds:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(uds)


async def _listen(
    loop: asyncio.AbstractEventLoop, protocol: Callable[[], Connection], host: str, port: int, uds: str
) -> tuple[asyncio.Server, str]:
    if uds:
        return await loop.create_unix_server(protocol, uds, backlog=_BACKLOG), f"unix:{uds}"
    server = await loop.create_server(protocol, host, port, backlog=_BACKLOG)
    shown = f"[{host}]" if ":" in host else host
    return server, f"http://{shown}:{server.sockets[0].getsockname()[1]}/v1"


def _announce(address: str) -> None:
    print(f"simulator listening on {address}", flush=True)


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    try:
        import uvloop
    except ImportError:  # not made for Windows: there asyncio's own loop serves, more slowly
        return None
    return uvloop.new_event_loop


def _reason(error: OSError) -> str:
    if error.errno == errno.EADDRINUSE:
        return "the address is in use by another process"
    return error.strerror or str(error)
