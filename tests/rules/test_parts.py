"""The list of parts (SBOM) and the licences of what is locked; and what `make audit` makes of known weaknesses and of knowing nothing."""

from __future__ import annotations

import contextlib
import http.server
import importlib.metadata
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from deploy import sbom, weaknesses

ROOT = Path(__file__).resolve().parents[2]
LINE = re.compile(r"^([a-z0-9-]+)==([^ ;\\]+)", re.MULTILINE)


@pytest.fixture(scope="module")
def parts() -> dict[str, Any]:
    """Make the list as `make check` does, and read the file."""
    done = subprocess.run([sys.executable, "deploy/sbom.py"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return dict(json.loads(sbom.OUTPUT.read_text()))


def test_every_locked_package_is_in_it_with_version_hashes_and_licence(parts: dict[str, Any]) -> None:
    """The lock is read here in another way than there."""
    for name, scope in (("requirements.txt", "required"), ("requirements-dev.txt", "")):
        text = (ROOT / name).read_text()
        lines = LINE.findall(text)
        assert len(lines) == len(re.findall(r"^[a-z]", text, re.MULTILINE)) > 50
        found = {
            (part["name"], part["version"]): part for part in parts["components"] if part["scope"] == scope or not scope
        }
        assert found.keys() == set(lines)
        for package, version in lines:
            part = found[package, version]
            block = text[text.index(f"{package}=={version}") :].partition("\n" if "\\" not in text else "\n\n")[0]
            wanted = re.findall(r"sha256:([0-9a-f]{64})", re.split(r"\n(?=[a-z])", block)[0])
            assert wanted
            assert [each["content"] for each in part["hashes"]] == sorted(wanted), package
            assert part["purl"] == f"pkg:pypi/{package}@{version}"
            assert part["licenses"], package


def test_licences_are_what_the_installed_packages_say(parts: dict[str, Any]) -> None:
    told = {part["name"]: part["licenses"][0] for part in parts["components"]}
    for package in ("flask", "celery", "openai", "redis"):
        said = importlib.metadata.metadata(package)
        assert (said.get("License-Expression") or said.get("License")) == told[package]["expression"]


def test_it_is_the_same_each_time_and_says_nothing_of_this_machine(parts: dict[str, Any]) -> None:
    again = sbom.make(sbom.locked())
    assert again == parts
    text = sbom.OUTPUT.read_text()
    assert str(ROOT) not in text
    assert "http" not in re.sub(r"\"(name|purl|bom-ref)\": .*", "", text)


@pytest.mark.parametrize(
    ("licence", "taken"),
    [
        ("MIT", True), ("BSD", True), ("Apache-2.0 OR GPL-3.0-only", True), ("Apache-2.0 AND MIT", True), ("Apache-2.0 OR BSD", True),
        ("Apache-2.0 AND GPL-3.0-only", False), ("AGPL-3.0-only", False), ("MPL-2.0", False), ("LGPL with exceptions", False),
        ("GPL-2.0-only WITH Classpath-exception-2.0", False), ("unknown", False), ("", False), ("proprietary, ask us", False), ("(", False),
    ],
)  # fmt: skip
def test_which_licences_are_taken(licence: str, taken: bool) -> None:
    assert sbom.is_taken(licence) is taken


def test_a_package_with_another_licence_fails_the_check(monkeypatch: pytest.MonkeyPatch) -> None:
    packages = sbom.locked()
    monkeypatch.setattr(sbom, "EXCEPTIONS", {**sbom.EXCEPTIONS, "flask": ("BSD-3-Clause", "not needed")})
    monkeypatch.delitem(sbom.EXCEPTIONS, "certifi")
    with pytest.raises(sbom.Wrong) as wrong:
        sbom.make(packages)
    first, second = str(wrong.value).splitlines()
    assert first.startswith("certifi ")
    assert "'MPL-2.0'" in first
    assert "exception for flask is not needed" in second


def test_another_version_than_the_locked_one_and_an_unknown_package_are_refused() -> None:
    flask = next(package for package in sbom.locked() if package.name == "flask")
    with pytest.raises(sbom.Wrong, match=r"0\.1 locked"):
        sbom.licence(flask._replace(version="0.1"))
    with pytest.raises(sbom.Wrong, match="not installed here"):
        sbom.licence(flask._replace(name="no-such-package"))


# What is known of weaknesses


@contextlib.contextmanager
def service(weak: dict[str, str]) -> Iterator[str]:
    """A service of our own that speaks OSV's protocol: by package the version that mended its weakness."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["package"]["name"]
            events = [{"introduced": "0"}, {"fixed": weak.get(asked, "0")}]
            affected = {
                "package": {"name": asked, "ecosystem": "PyPI"},
                "ranges": [{"type": "ECOSYSTEM", "events": events}],
            }
            found = {
                "id": "PYSEC-2026-1",
                "summary": "s",
                "details": "d",
                "affected": [affected],
                "published": "2026-01-01T00:00:00Z",
            }
            body = json.dumps({"vulns": [found]} if asked in weak else {}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Be quiet."""

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1/query"
    finally:
        server.shutdown()
        server.server_close()


def test_a_known_weakness_of_a_locked_package_is_named_with_what_mends_it(tmp_path: Path) -> None:
    lock = tmp_path / "lock.txt"
    lock.write_text(
        "".join(re.findall(r"^(?:jinja2|flask)==.*?\n(?=[a-z])", weaknesses.LOCK.read_text(), re.MULTILINE | re.DOTALL))
    )
    for weak, expected in (
        ({"jinja2": "99.1"}, (weaknesses.WEAK, r"jinja2 [0-9.]+: PYSEC-2026-1, mended in 99\.1")),
        ({}, (weaknesses.CLEAN, r"No weakness is known of the 2 packages that are locked\.")),
    ):
        with service(weak) as url:
            how = ["-s", "osv", "--osv-url", url, "--cache-dir", str(tmp_path / "cache")]
            code, (line,) = weaknesses.judge(*weaknesses.ask(lock, how))
        assert (code, bool(re.fullmatch(expected[1], line))) == (expected[0], True), line


def test_where_nobody_can_be_asked_one_line_says_so(tmp_path: Path) -> None:
    """Else no news would pass for good news."""
    env = {**os.environ, "HTTPS_PROXY": "http://127.0.0.1:1", "NO_PROXY": "", "no_proxy": ""}
    command = [sys.executable, "deploy/weaknesses.py", "--cache-dir", str(tmp_path)]  # what is cached needs nobody
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False, timeout=150)
    assert done.returncode == weaknesses.UNKNOWN
    assert done.stderr.startswith("Nothing is known of weaknesses from here")
    assert len(done.stderr.splitlines()) == 1
    assert done.stdout == ""


def test_packages_that_were_not_looked_up_are_not_taken_for_clean() -> None:
    clean = {"name": "a", "version": "1", "vulns": []}
    skipped = {"name": "b", "skip_reason": "not found"}
    weak = {"name": "c", "version": "3", "vulns": [{"id": "X-1", "fix_versions": []}]}
    for packages, code, line in (
        ([clean, skipped], weaknesses.UNKNOWN, "1 of 2 packages were not looked up: b (not found)"),
        ([skipped], weaknesses.UNKNOWN, "Nothing is known of weaknesses from here"),
        ([], weaknesses.UNKNOWN, "Nothing is known of weaknesses from here"),
        ([clean, skipped, weak], weaknesses.WEAK, "c 3: X-1, mended in no version"),
        ([clean], weaknesses.CLEAN, "No weakness is known of the 1 packages"),
    ):
        found = weaknesses.judge({"dependencies": packages}, "")
        assert found[0] == code
        assert found[1][0].startswith(line)
