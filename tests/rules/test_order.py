"""The order of the tests names what there is, and no test is left out that was asked for."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests import order
from tests.stack import ROOT


@pytest.mark.parametrize("place", sorted({*order.TOGETHER, *order.TOGETHER.values(), *order.LONGEST_FIRST}))
def test_what_the_order_names_is_there(place: str) -> None:
    assert (ROOT / place).is_dir() if place.endswith("/") else (ROOT / place).is_file()


def test_what_shares_a_stack_is_dealt_out_together() -> None:
    assert {order.unit(f"tests/cli/test_{name}.py::test_x[a::b]") for name in ("chat", "up")} == {"tests/cli/"}
    assert order.unit("tests/faults/test_outages.py::test_x") == order.unit("tests/faults/test_fairness.py::test_x")
    assert order.unit("tests/llm/test_gate.py::test_x") == "tests/llm/test_gate.py"


@pytest.mark.parametrize(
    ("text", "read_by"),
    [
        ("pytestmark = pytest.mark.faults\n", {"faults"}),
        ("pytestmark = [pytest.mark.slow, pytest.mark.faults]\n", {"faults"}),
        ("@pytest.mark.faults\ndef test_one() -> None: ...\n", {"faults", "not faults"}),
        ("def test_one() -> None: ...\n", {"not faults"}),
    ],
)
def test_a_file_is_left_out_unread_only_where_none_of_its_tests_is_asked_for(
    tmp_path: Path, text: str, read_by: set[str]
) -> None:
    path = tmp_path / "test_some.py"
    path.write_text(text)
    assert {wanted for wanted in ("faults", "not faults") if not order.leaves_out(path, wanted)} == read_by
    assert not order.leaves_out(path, "soak")
    assert not order.leaves_out(path, "")
