"""bench/locustfile.py, read without Locust, which is no dependency: it parses, makes the mix that it says, and names routes there are."""

from __future__ import annotations

import ast
from pathlib import Path

from app.http import factory, openapi

FILE = Path(__file__).resolve().parents[2] / "bench" / "locustfile.py"
TREE = ast.parse(FILE.read_text())
(PERSON,) = (node for node in TREE.body if isinstance(node, ast.ClassDef))


def weights() -> dict[str, int]:
    found = {}
    for function in PERSON.body:
        for decorator in getattr(function, "decorator_list", []):
            if ast.unparse(decorator).startswith("locust.task("):
                found[function.name] = ast.literal_eval(decorator.args[0])
    return found


def calls() -> set[tuple[str, str]]:
    """Return the methods and patterns that `_call` is given."""
    return {
        (node.args[0].value, node.args[1].value)
        for node in ast.walk(PERSON)
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "self._call"
    }


def test_the_mix_is_that_of_bots() -> None:
    mix = weights()
    reads = sum(weight for name, weight in mix.items() if name.startswith("look_"))
    assert (mix["send"], mix["submit_and_wait"], reads) == (90, 5, 5)
    assert sum(mix.values()) == 100


def test_the_routes_that_it_calls_are_there() -> None:
    paths = openapi.document(factory.all_routes())["paths"]
    known = {(method.upper(), path) for path, methods in paths.items() for method in methods}
    assert len(calls()) == 6
    assert calls() <= known


def test_nothing_is_written_into_it_that_should_be_given() -> None:
    text = FILE.read_text()
    assert "rq_" not in text
    assert "127.0.0.1" not in text
