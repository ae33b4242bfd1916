"""The folder of backups: how many are kept there, and what is deleted and what is not."""

from __future__ import annotations

import datetime
from pathlib import Path

import pytest

from app.cli.backups import places
from app.core import errors
from tests.cli.backups import taken

NOW = datetime.datetime(2026, 1, 2, 3, 4, 5, tzinfo=datetime.UTC)


@pytest.mark.usefixtures("filled")
def test_only_so_many_are_kept(settings: pytest.MonkeyPatch) -> None:
    mine = Path("backups")
    for name in ("repliq-20200101T000000Z", "repliq-20200102T000000Z", "repliq-20200103T000000Z", "notes"):
        (mine / name).mkdir(parents=True)
        (mine / name / "manifest.json").write_text("{}")
    (mine / "repliq-20200104T000000Z").mkdir()  # not ours: it has no manifest
    folder = taken("--keep", "2")
    assert {path.name for path in mine.iterdir() if path.is_dir()} == {
        "notes", "repliq-20200103T000000Z", "repliq-20200104T000000Z", folder.name,
    }  # fmt: skip


@pytest.mark.usefixtures("filled")
def test_what_a_link_leads_to_is_not_deleted(settings: pytest.MonkeyPatch, tmp_path: Path) -> None:
    moved = tmp_path / "elsewhere" / "repliq-20200101T000000Z"
    moved.mkdir(parents=True)
    (moved / "manifest.json").write_text("{}")
    Path("backups").mkdir()
    (Path("backups") / moved.name).symlink_to(moved)
    taken("--keep", "1")
    assert (moved / "manifest.json").exists()


def _fail_amid(folder: Path, left: Path) -> None:
    with places.begun(folder, NOW) as begun:
        assert not left.exists(), "of a backup that was killed"
        (begun / "main.dump").write_text("half")
        with pytest.raises(errors.ConfigurationError, match="Another backup"), places.begun(folder, NOW):
            pass
        raise RuntimeError


def test_half_a_backup_has_no_name_and_is_cleared_away(tmp_path: Path) -> None:
    part = tmp_path / ".repliq-20200101T000000Z.part"
    part.mkdir()
    with pytest.raises(RuntimeError):
        _fail_amid(tmp_path, part)
    assert not [path for path in tmp_path.iterdir() if path.is_dir()]
