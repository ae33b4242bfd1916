"""Runs `up` or a bare supervisor as a process of its own, with stand-ins for API, workers and the like."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from app.cli import stack, tether, up
from app.cli.child import Child
from app.cli.supervisor import Stopped, Supervisor
from app.core import errors

API = """
import http.server, os
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200 if self.path == "/health/ready" else 404)
        self.end_headers()
        self.wfile.write(repr({name: os.environ[name] for name in ("DATABASE_URL", "REDIS_URL", "API_KEYS")}).encode())
http.server.ThreadingHTTPServer(("127.0.0.1", int(os.environ["STAND_IN_PORT"])), Handler).serve_forever()
"""
STAY = "import time\nwhile True: time.sleep(60)"
CODE = {"migrate": "print('migrated')", "api": API}


def python(name: str, code: str, env: Any = None, **how: Any) -> Child:
    return Child(name, tether.command([sys.executable, "-I", "-S", "-c", code]), env, **how)


def _stand_in(name: str, env: Any, *arguments: str, **how: Any) -> Child:
    how.pop("death_signal", None)
    return python(name, CODE.get(name, STAY), env, **how)


def run_up(facts: dict[str, Any]) -> int:
    """Run `up` on a plan, with PostgreSQL's home for root beside the data."""
    CODE.update(facts.pop("code", {}))
    stack._repliq = _stand_in
    plan = stack.Plan(**facts)
    defaults = up.embedded_postgres.Postgres.__init__.__kwdefaults__
    defaults |= {"run_as_root_home": plan.data.parent / "root", "durable": False}
    try:
        return up.up(plan)
    except errors.ConfigurationError as error:
        print(error, file=sys.stderr)
        return 1


def run_supervisor(facts: dict[str, Any]) -> int:
    """Supervise stages given as lists of (name, code), saying `ready` once all run."""
    supervisor = Supervisor(Path(facts["logs"]))
    with supervisor.signals():
        try:
            supervisor.start(
                *[
                    [python(name, code, stop_timeout=facts.get("stop_timeout", 5)) for name, code in stage]
                    for stage in facts["stages"]
                ]
            )
            print("ready", flush=True)
            supervisor.watch()
        except Stopped:
            print("stopped while starting", flush=True)
        finally:
            supervisor.stop(lambda children: print("stopping", *sorted(child.name for child in children), flush=True))
    return 0


if __name__ == "__main__":
    sys.exit({"up": run_up, "supervisor": run_supervisor}[sys.argv[1]](json.loads(sys.argv[2])))
