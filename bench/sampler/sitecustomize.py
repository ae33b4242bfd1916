"""A sampler for where py-spy is not installed: Python loads it by its name at start, and it samples on demand.

While `$BENCH_SAMPLES/<pid>.start` is there it looks at all threads every 10 ms; when the file goes, it writes `<pid>.raw` in py-spy's raw
form. Threads that stand in a call known to wait are left out: it cannot see who holds the interpreter's lock.
"""

import collections
import os
import sys
import threading
import time

_FOLDER = os.environ.get("BENCH_SAMPLES", "")
_ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
_WAITING = {
    "wait",
    "_wait_for_tstate_lock",
    "select",
    "poll",
    "_poll",
    "read_from_socket",
    "_worker",
    "read",
    "recv",
    "accept",
    "get",
    "sleep",
}


def _run() -> None:
    mark, out = os.path.join(_FOLDER, f"{os.getpid()}.start"), os.path.join(_FOLDER, f"{os.getpid()}.raw")
    seen: collections.Counter[str] = collections.Counter()
    while True:
        if os.path.exists(mark):
            for _ in range(20):
                _look(seen)
                time.sleep(0.01)
        else:
            if seen:
                with open(out, "w") as file:
                    file.writelines(f"{stack} {count}\n" for stack, count in seen.items())
                seen.clear()
            time.sleep(0.25)


def _look(seen: "collections.Counter[str]") -> None:
    me = threading.get_ident()
    for ident, frame in sys._current_frames().items():
        if ident == me or frame.f_code.co_name in _WAITING:
            continue
        frames = []
        while frame is not None:
            code = frame.f_code
            frames.append(f"{code.co_qualname} ({_short(code.co_filename)}:{frame.f_lineno})")
            frame = frame.f_back
        seen[";".join(reversed(frames))] += 1


def _short(path: str) -> str:
    for marker in ("site-packages/", _ROOT + "/"):
        if marker in path:
            return path.rpartition(marker)[2]
    return os.path.basename(path)


def _start() -> None:
    threading.Thread(target=_run, name="sampler", daemon=True).start()


if _FOLDER:
    _start()
    os.register_at_fork(after_in_child=_start)  # granian forks its workers
