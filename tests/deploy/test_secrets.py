"""Settings from files: `SECRETS_DIR` hands over what the environment and `.env` do not say."""

from __future__ import annotations

from pathlib import Path

import pytest

from app.core import errors, settings


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    found = tmp_path / "secrets"
    found.mkdir()
    monkeypatch.chdir(tmp_path)  # no .env but the test's
    monkeypatch.setenv("SECRETS_DIR", str(found))
    for name in ("SECRET_KEY", "DATABASE_URL", "OPENAI_API_KEY", "API_KEYS", "ENVIRONMENT"):
        monkeypatch.delenv(name, raising=False)
    return found


def test_a_secret_is_read_from_its_file(folder: Path) -> None:
    (folder / "secret_key").write_text("a-secret-that-is-visibly-fake\n")
    (folder / "database_url").write_text("postgresql://repliq:fake@db/repliq\n")
    (folder / "api_keys").write_text("rq_visibly-fake-key-0001,rq_visibly-fake-key-0002\n")
    found = settings.load()
    assert found.secret_key == "a-secret-that-is-visibly-fake"
    assert found.database_url == "postgresql+psycopg2://repliq:fake@db/repliq"
    assert len(found.api_keys) == 2


def test_the_environment_goes_before_dot_env_and_that_before_the_files(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "openai_api_key").write_text("sk-of-the-file")
    assert settings.load().openai_api_key == "sk-of-the-file"
    Path(".env").write_text("OPENAI_API_KEY=sk-of-dot-env\n")
    assert settings.load().openai_api_key == "sk-of-dot-env"
    monkeypatch.setenv("OPENAI_API_KEY", "sk-of-the-environment")
    assert settings.load().openai_api_key == "sk-of-the-environment"


def test_an_empty_variable_hides_no_file(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Compose hands over each variable, those that nobody set as empty ones."""
    (folder / "database_url").write_text("postgresql://repliq:fake@db/repliq")
    monkeypatch.setenv("DATABASE_URL", "")
    assert settings.load().database_url


def test_an_empty_file_is_as_good_as_none(folder: Path) -> None:
    (folder / "openai_api_key").write_text("\n")
    assert settings.load().openai_api_key == ""


def test_dot_env_may_name_the_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "openai_api_key").write_text("sk-of-the-file")
    monkeypatch.delenv("SECRETS_DIR")
    Path(".env").write_text(f"SECRETS_DIR={folder}\n")
    assert settings.load().openai_api_key == "sk-of-the-file"
    assert settings.variable("OPENAI_API_KEY") == "sk-of-the-file"


def test_a_key_that_the_providers_file_names_may_be_a_file(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "azure_key").write_text("of-the-file\n")
    assert settings.variable("AZURE_KEY") == "of-the-file"
    assert settings.variable("NOBODYS_KEY") == ""
    monkeypatch.setenv("AZURE_KEY", "of-the-environment")
    assert settings.variable("AZURE_KEY") == "of-the-environment"


def test_a_folder_that_is_not_there_is_told(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a typing error would start production with secrets that are empty."""
    monkeypatch.setenv("SECRETS_DIR", "/nowhere/at/all")
    with pytest.raises(errors.ConfigurationError, match="SECRETS_DIR"):
        settings.load()


def test_a_bad_secret_is_not_shown(folder: Path) -> None:
    (folder / "secret_key").write_text("too-short")
    with pytest.raises(errors.ConfigurationError) as caught:
        settings.load()
    assert "too-short" not in str(caught.value)
