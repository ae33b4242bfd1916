"""A Flask application whose one route does nothing, on granian with the server settings of `repliq api`."""

from __future__ import annotations

import sys

import flask

app = flask.Flask("bench", static_folder=None)


@app.post("/")
def nothing() -> flask.Response:
    """Take the body and answer with a small one."""
    flask.request.get_data(cache=False)
    return flask.Response(b'{"ok":true}', content_type="application/json")


def main(port: int) -> None:
    import granian
    from granian.constants import HTTPModes, Interfaces
    from granian.log import LogLevels

    server = granian.Granian(
        "bench.empty_route:app", address="127.0.0.1", port=port, interface=Interfaces.WSGI, http=HTTPModes.http1, websockets=False,
        workers=2, blocking_threads=640, backlog=1024, backpressure=640, log_access=False, log_level=LogLevels.warning,
    )  # fmt: skip
    server.serve()


if __name__ == "__main__":
    main(int(sys.argv[1]))
