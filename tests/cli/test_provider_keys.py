"""`repliq providers check` and `repliq providers key`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from app import cli
from app.bots import bootstrap, provider_keys
from app.cli.checks import product
from app.core import settings
from app.core.database import Sessions
from app.llm.simulator.process import SimulatorProcess

SECRET, NEXT = "a secret of the tests", "another secret of the tests"
STORED = "sk-stored-visibly-fake-wxyz"
GOOD = """
[providers.openai]
api_key = "sk-of-the-file-visibly-fake"
[models.fast]
chain = ["openai/gpt-4o-mini", "openai/gpt-4o"]
aliases = ["quick"]
fallbacks.context_too_long = ["openai/gpt-4.1"]
"""

Repliq = Callable[..., Result]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Take the test to a folder without `.env`, and settings out of its environment."""
    monkeypatch.chdir(tmp_path)
    for name in settings.Settings.model_fields:
        monkeypatch.delenv(name.upper(), raising=False)
    return tmp_path


def run(*arguments: str, **how: str) -> Result:
    return CliRunner().invoke(cli.command, arguments, **how)


@pytest.fixture
def site(home: Path, sessions: Sessions, redis_url: str, monkeypatch: pytest.MonkeyPatch) -> Sessions:
    url = sessions.engine.url.render_as_string(hide_password=False)
    for name, value in {"DATABASE_URL": url, "REDIS_URL": redis_url, "SECRET_KEY": SECRET}.items():
        monkeypatch.setenv(name, value)
    with sessions.begin() as session:
        bootstrap.ensure(session, settings.load({"secret_key": SECRET, "api_keys": "rq_the-first-key-of-all"}))
    return sessions


def test_a_good_file_is_shown_as_it_is_understood(home: Path) -> None:
    (home / "good.toml").write_text(GOOD)
    found = run("providers", "check", "good.toml")
    assert found.exit_code == 0
    assert found.output.splitlines() == [
        "fast (quick): openai/gpt-4o-mini → openai/gpt-4o",
        "  context_too_long: openai/gpt-4.1",
        "Good: 1 provider, 1 model; who names none gets fast.",
    ]


def test_a_bad_file_is_told_line_by_line_without_servers(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (home / "bad.toml").write_text(GOOD.replace("openai/gpt-4o-mini", "opnai/gpt-4o-mini") + "wieghts = [1]\n")
    monkeypatch.setenv("LLM_CONFIG", "bad.toml")
    found = run("providers", "check")
    assert found.exit_code == 1
    assert found.output.startswith("bad.toml:8: there is no 'wieghts' here (did you mean 'weights'?)")


@pytest.mark.parametrize("command", ["api", "worker", "up"])
def test_nothing_starts_with_a_bad_file(home: Path, monkeypatch: pytest.MonkeyPatch, command: str) -> None:
    (home / "bad.toml").write_text(GOOD.replace("openai/gpt-4o-mini", "opnai/gpt-4o-mini"))
    monkeypatch.setenv("LLM_CONFIG", "bad.toml")
    settings.current.cache_clear()
    try:
        found = run(command)
    finally:
        settings.current.cache_clear()
    assert found.exit_code == 1
    assert str(found.exception) == (
        "bad.toml:5: there is no provider 'opnai' (did you mean 'openai'?); add [providers.opnai], or mend the name"
    )


FILE = """
[providers.cloud]
base_url = "{cloud}"
api_key = "{key}"
[providers.az]
kind = "azure"
base_url = "{azure}"
api_version = "2024-10-21"
[providers.desk]
kind = "ollama"
base_url = "{ollama}"
[providers.gone]
kind = "vllm"
base_url = "http://127.0.0.1:1/v1"
[models.fast]
chain = ["cloud/gpt-4o-mini", "az/mine", "desk/llama3"]
fallbacks.error = ["desk/no-such-model", "gone/x"]
"""


def test_the_doctor_asks_every_provider_of_the_file(home: Path) -> None:
    with SimulatorProcess(require_key=STORED) as cloud, SimulatorProcess(dialect="ollama") as ollama:
        urls = {"cloud": cloud.base_url, "azure": cloud.endpoint, "ollama": ollama.base_url}
        for key, expected in ((STORED, "ok"), ("sk-wrong-visibly-fake", "problem")):
            (home / "file.toml").write_text(FILE.format(key=key, **urls))
            found = list(product.provider(settings.load({"llm_config": "file.toml"})))
            assert [(finding.level, finding.about) for finding in found] == [
                ("ok", "providers"), (expected, "provider"), ("warning", "provider"), ("warning", "provider"), ("problem", "provider"),
            ]  # fmt: skip
            assert key not in str(found)
    texts = [finding.text for finding in found]
    assert "refuses the key (401)" in texts[1]
    assert "az has no key in the file" in texts[2]
    assert texts[3].endswith("does not list no-such-model")
    assert "cannot be reached" in texts[4]
    (home / "file.toml").write_text("[providers.x]\nkindd = 1\n")
    found = list(product.provider(settings.load({"llm_config": "file.toml"})))
    assert [(finding.level, finding.text[:12]) for finding in found] == [
        ("problem", "file.toml:1:"),
        ("problem", "file.toml:2:"),
    ]


def test_a_key_is_stored_listed_sealed_anew_and_forgotten(site: Sessions, monkeypatch: pytest.MonkeyPatch) -> None:
    stored = run("providers", "key", "set", "openai", input=STORED + "\n")
    assert (stored.exit_code, STORED in stored.output) == (0, False)
    listed = run("providers", "key", "list").output
    assert "openai" in listed
    assert "…wxyz" in listed
    assert "earlier" not in listed
    monkeypatch.setenv("SECRET_KEY", NEXT)
    lost = run("providers", "key", "reseal")
    assert lost.exit_code == 1
    assert "cannot be opened" in lost.output
    monkeypatch.setenv("SECRET_KEY_BEFORE", f"an-older-one-still,{SECRET}")
    assert "earlier" in run("providers", "key", "list").output
    assert run("providers", "key", "reseal").output == "1 key sealed anew.\n"
    assert run("providers", "key", "reseal").output == "0 keys sealed anew.\n"
    with site.begin() as session:
        assert len(provider_keys.everything(session)) == 1
    assert run("providers", "key", "delete", "openai").output == "Forgotten.\n"
    assert run("providers", "key", "delete", "openai").output == "There was none.\n"


def test_what_is_no_key_or_no_provider_is_refused(site: Sessions) -> None:
    wrong = run("providers", "key", "set", "openai", input="two words\n")
    assert wrong.exit_code != 0
    assert "two words" not in wrong.output
    assert run("providers", "key", "set", "nobody", input=STORED).exit_code != 0
