"""The providers file: what a good one gives, and the line of each mistake in a bad one."""

from __future__ import annotations

import datetime
import tomllib
from pathlib import Path
from typing import Any

import hypothesis
import pytest
from hypothesis import strategies as st

from app.core import errors, metrics, settings
from app.llm import config, kinds, prices, toml_lines
from app.llm.answers import BreakerRules
from app.llm.config import Config
from app.llm.providers import Providers

GOOD = """
default = "quick"

[providers.openai]
kind = "openai"
base_url = "https://api.openai.com/v1"
api_key_env = "OPENAI_API_KEY"
timeout_s = 40
first_token_timeout_s = 15.5
max_concurrent = 100
requests_per_minute = 500
tokens_per_minute = 200_000
headers = { X-Team = "bots" }

[providers.az]
kind = "azure"
base_url = "https://example.openai.azure.com"
api_version = "2024-10-21"
api_key = "azure-key-visibly-fake"

[providers.local]
kind = "ollama"

[models.fast]
chain = ["openai/gpt-4o-mini", "az/mini-deployment", "local/meta/llama3:8b"]
weights = [3, 1]
aliases = ["quick"]
fallbacks.context_too_long = ["long"]
fallbacks.content_filter = ["local/llama3"]

[models.long]
chain = ["openai/gpt-4.1-mini"]
[models.long.fallbacks]
context_too_long = ["local/llama3", "local/llama3"]

[breaker]
open_s = 2
probes = 1
"""


def read(tmp_path: Path, text: str, *, lenient: bool = False, default_model: str = "", **variables: str) -> Config:
    file = tmp_path / "providers.toml"
    file.write_text(text)
    given = {"OPENAI_API_KEY": "sk-of-the-environment", **variables}
    return config.read(
        str(file), variable=lambda name: given.get(name, ""), default_model=default_model, lenient=lenient
    )


def mistakes(tmp_path: Path, text: str, **more: Any) -> list[str]:
    """Return the lines that a file is refused with, each begun by its number alone."""
    with pytest.raises(errors.ConfigurationError) as refused:
        read(tmp_path, text, **more)
    begin = f"{tmp_path}/providers.toml:"
    lines = str(refused.value).splitlines()
    assert all(line.startswith(begin) for line in lines), lines
    return [line.removeprefix(begin) for line in lines]


def test_a_good_file(tmp_path: Path) -> None:
    found = read(tmp_path, GOOD)
    openai, azure, local = found.providers.values()
    assert (openai.name, openai.api_key, openai.timeout_s, openai.first_token_timeout_s) == (
        "openai", "sk-of-the-environment", 40, 15.5,
    )  # fmt: skip
    assert (openai.max_concurrent, openai.requests_per_minute, openai.tokens_per_minute) == (100, 500, 200_000)
    assert openai.headers == (("X-Team", "bots"),)
    assert (azure.kind, azure.api_version, azure.api_key) == ("azure", "2024-10-21", "azure-key-visibly-fake")
    assert (local.base_url, local.api_key) == (kinds.of("ollama").base_url, "")
    fast, long = found.models.values()
    assert [target.label for target in fast.chain] == [
        "openai/gpt-4o-mini", "az/mini-deployment", "local/meta/llama3:8b",
    ]  # fmt: skip
    assert fast.weights == (3, 1)
    follow = {reason: [target.label for target in targets] for reason, targets in fast.fallbacks.items()}
    assert follow == {"context_too_long": ["openai/gpt-4.1-mini", "local/llama3"], "content_filter": ["local/llama3"]}
    assert [target.label for target in long.fallbacks["context_too_long"]] == ["local/llama3"]
    assert (found.aliases, found.default, found.warnings) == ({"quick": "fast"}, "quick", ())
    assert found.breaker == BreakerRules(open_s=2, probes=1)
    assert found.prices_as == {"openai": "openai", "az": "azure", "local": "-"}


def test_no_key_is_shown(tmp_path: Path) -> None:
    shown = repr(read(tmp_path, GOOD))
    assert "sk-of" not in shown
    assert "visibly-fake" not in shown
    assert "bots" not in shown


P = '[providers.openai]\napi_key = "sk-visibly-fake"\n'
M = '[models.fast]\nchain = ["openai/x"]\n'


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        pytest.param(P + "[models.fast\n", ["3: this is not TOML: expected ']' at the end"], id="syntax"),
        pytest.param(P + P + M, ["3: this is not TOML: cannot declare"], id="a table twice"),
        pytest.param(P + M + M, ["5: this is not TOML: cannot declare"], id="a model twice"),
        pytest.param(P + 'x = """', ["3: this is not TOML:"], id="a string without an end"),
        pytest.param("", ["1: there is no [models.…]; add one", "1: there is no [providers.…]; add one"], id="empty"),
        pytest.param("[providers]\n[models]\n", ["1: it has no provider", "2: it has no model"], id="nothing in them"),
        pytest.param(P + 'base_ulr = "x"\n' + M, ["3: there is no 'base_ulr' here (did you mean 'base_url'?)"], id="a key"),
        pytest.param(P + M + "[breakers]\n", ["5: there is no 'breakers' here (did you mean 'breaker'?)"], id="a table"),
        pytest.param(P + M + "[breaker]\nprobs = 1\n", ["6: there is no 'probs' here (did you mean 'probes'?)"], id="in it"),
        pytest.param(P + M + "[breaker]\nopen_s = 90\n", ["5: open_max_s is less than open_s"], id="open_max_s"),
        pytest.param(P + 'kind = "azur"\n' + M, ["3: there is no kind 'azur' (did you mean 'azure'?); it is one of"], id="kind"),
        pytest.param(P + 'timeout_s = "50"\n' + M, ["3: timeout_s must be a number"], id="a number as a string"),
        pytest.param(P + "timeout_s = 0\n" + M, ["3: timeout_s must be greater than 0"], id="a number too small"),
        pytest.param(P + "max_concurrent = 1.5\n" + M, ["3: max_concurrent must be an integer"], id="no integer"),
        pytest.param("providers = 3\n" + M, ["1: providers must be a table"], id="no table"),
        pytest.param('[providers."a/b"]\n' + M, ["1: 'a/b' is no name for a provider"], id="a provider's name"),
        pytest.param('[providers.cache]\n' + P + M, ["1: a provider cannot be called cache"], id="a name that is taken"),
        pytest.param(P + '[models.fast]\nweights = [1]\n', ['3: chain = ["PROVIDER/MODEL"] is missing'], id="no chain"),
        pytest.param(P + "[models.fast]\nchain = []\n", ["4: the chain is empty"], id="an empty chain"),
        pytest.param(
            P + '[models.fast]\nchain = [\n  "openai/x", # one\n  "opnai/x",\n]\n',
            ["6: there is no provider 'opnai' (did you mean 'openai'?); add [providers.opnai], or mend the name"],
            id="an unknown provider in a list of several lines",
        ),
        pytest.param(P + '[models.fast]\nchain = ["gpt-4o"]\n', ["4: 'gpt-4o' is no target; write"], id="no slash"),
        pytest.param(P + '[models.fast]\nchain = ["openai/"]\n', ["4: 'openai/' is no target; write"], id="no model"),
        pytest.param(P + '[models]\nfast = { chain = ["a/x"] }\n', ["4: there is no provider 'a'"], id="an inline table"),
        pytest.param(P + 'models."fa st".chain = ["a/x"]\n', ["1: there is no [models", "3: there is no 'models' here"],
                     id="a dotted key in a table"),
        pytest.param('models."fa st".chain = ["a/x"]\n' + P, ["1: there is no provider 'a'"], id="a quoted key"),
        pytest.param(P + M + 'weights = [1, 1]\n', ["5: 2 weights for a chain of 1; remove some"], id="weights too many"),
        pytest.param(P + M + "weights = [0]\n", ["5: all weights are 0"], id="weights of nothing"),
        pytest.param(P + M + "weights = [\n 1,\n -1]\n", ["5: 2 weights", "7: a weight is 0 or more"], id="a weight below 0"),
        pytest.param(P + M + "weights = [nan]\n", ["5: a weight is 0 or more"], id="a weight that is no number"),
        pytest.param(P + '[models.a]\nchain = ["openai/x", "openai/x"]\n', ["4: 'openai/x' is in this chain already"], id="twice"),
        pytest.param(P + M + 'fallbacks.eror = ["openai/y"]\n', ["5: there is no reason 'eror' (did you mean 'error'?)"], id="reason"),
        pytest.param(P + M + 'fallbacks.error = ["fsat"]\n', ["5: 'fsat' is no target (did you mean 'fast'?)"], id="a model's name"),
        pytest.param(P + M + 'fallbacks.error = ["fast"]\n', ["5: 'fast' leads back to [models.fast]"], id="to itself"),
        pytest.param(
            P + M + 'aliases = ["q"]\nfallbacks.error = ["b"]\n[models.b]\nchain = ["openai/y"]\nfallbacks.error = ["q"]\n',
            ["6: 'b' leads back to [models.b]", "9: 'q' leads back to [models.fast]"],
            id="in a circle",
        ),
        pytest.param(P + M + 'aliases = ["fast"]\n', ["5: 'fast' is a name of [models.fast] already"], id="an alias twice"),
        pytest.param('default = "fst"\n' + P + M, ["1: default: there is no model 'fst' (did you mean 'fast'?)"], id="default"),
        pytest.param('[providers.az]\nkind = "azure"\nbase_url = "https://x.openai.azure.com"\n' + P + M,
                     ["1: api_version is missing: kind azure needs it"], id="no api_version"),
        pytest.param('[providers.az]\nkind = "azure"\napi_version = "2024-10-21"\n' + P + M,
                     ["1: base_url is missing: kind azure needs it"], id="no base_url"),
        pytest.param('[providers.az]\nkind = "azure"\nbase_url = "https://x.openai.azure.com/openai/v1"\n'
                     'api_version = "latest"\n' + P + M,
                     ["3: this address speaks OpenAI's own protocol", "4: api_version is a date"], id="Azure's v1"),
        pytest.param(P + 'api_version = "2024-10-21"\n' + M, ["3: kind openai has no api_version; remove it"], id="no azure"),
        pytest.param(P + 'base_url = "api.openai.com/v1"\n' + M, ["3: base_url must begin with http:// or https://"], id="scheme"),
        pytest.param(P + 'base_url = "https://u:p@x.com/v1"\n' + M, ["3: base_url holds a password"], id="a password"),
        pytest.param(P + 'base_url = "https://x.com/v1?k=v"\n' + M, ["3: base_url has a query"], id="a query"),
        pytest.param(P + 'base_url = "http://[x"\n' + M, ["3: base_url is no address"], id="no address"),
        pytest.param(P + 'base_url = "https://x.com/v1/chat/completions"\n' + M, ["3: base_url names one endpoint"], id="endpoint"),
        pytest.param(P + 'api_key_env = "A"\n' + M, ["3: api_key and api_key_env are both there"], id="two keys"),
        pytest.param('[providers.openai]\napi_key_env = "NOT_SET"\n' + M,
                     ["2: the environment variable NOT_SET is not set"], id="a variable that is not set"),
        pytest.param('[providers.openai]\napi_key_env = "sk-proj-123"\n' + M,
                     ["2: it is the name of an environment variable, not the key itself"], id="a key for a name"),
        pytest.param('[providers.openai]\napi_key = "sk test"\n' + M, ["2: the key has a space"], id="a key with a space"),
        pytest.param(P + 'headers = { "X Y" = "1" }\n' + M, ["3: 'X Y' with this value is no HTTP header"], id="a header"),
        pytest.param(P + 'headers.X = "a\\nb"\n' + M, ["3: 'X' with this value is no HTTP header"], id="a line end in one"),
    ],
)  # fmt: skip
def test_a_mistake_is_told_with_its_line(tmp_path: Path, text: str, expected: list[str]) -> None:
    found = mistakes(tmp_path, text)
    assert len(found) == len(expected), found
    for line, begin in zip(found, expected, strict=True):
        assert line.startswith(begin), found


def test_all_mistakes_of_a_kind_are_told_at_once_and_none_shows_a_key(tmp_path: Path) -> None:
    found = mistakes(
        tmp_path, '[providers.a]\napi_key = 5\ntimeout_s = -1\nx = "sk-secret"\n[models.b]\nchain = "sk-secret"\n'
    )
    assert [line.split(":")[0] for line in found] == ["2", "3", "4", "6"]
    assert "secret" not in "".join(found)


def test_a_file_that_is_not_there_or_no_text(tmp_path: Path) -> None:
    with pytest.raises(errors.ConfigurationError, match=r"LLM_CONFIG: .*nowhere\.toml cannot be read: No such file"):
        config.read(str(tmp_path / "nowhere.toml"), variable=lambda _: "")
    (tmp_path / "latin.toml").write_bytes("# \xe9".encode("latin-1"))
    with pytest.raises(errors.ConfigurationError, match="is not UTF-8"):
        config.read(str(tmp_path / "latin.toml"), variable=lambda _: "")


def test_a_variable_that_is_not_set_is_a_warning_on_a_developers_machine(tmp_path: Path) -> None:
    found = read(tmp_path, '[providers.openai]\napi_key_env = "NOT_SET"\n' + M, lenient=True)
    assert [warning.split(":", 1)[1][:35] for warning in found.warnings] == ["2: the environment variable NOT_SET"]
    assert found.providers["openai"].api_key == ""


@pytest.mark.parametrize(("default_model", "expected"), [("b", "b"), ("also", "also"), ("gpt-4o-mini", "a"), ("", "a")])
def test_who_names_no_model_gets_default_model_if_the_file_has_it_else_the_first(
    tmp_path: Path, default_model: str, expected: str
) -> None:
    text = P + '[models.a]\nchain = ["openai/x"]\n[models.b]\nchain = ["openai/y"]\naliases = ["also"]\n'
    assert read(tmp_path, text, default_model=default_model).default == expected


# The lines of what TOML can write in many ways.

_KEY = st.text(st.characters(codec="ascii", categories=("L", "N")), min_size=1, max_size=4)
_VALUE = st.recursive(
    st.one_of(st.integers(), st.booleans(), st.sampled_from(['"', "'", "#", "]", "}", "=", "\n", "\\", "a, b", '"""'])),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_KEY, inner, max_size=3),
    max_leaves=6,
)


def _written(value: Any, draw: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value)
    if isinstance(value, str):
        escaped = value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
        literal = [f"'{value}'"] if "'" not in value and "\n" not in value else []
        return str(draw(st.sampled_from([f'"{escaped}"', f'"""\n{escaped}"""', *literal])))
    if isinstance(value, list):
        gap = draw(st.sampled_from([" ", "\n", " # ]\n"]))
        return "[" + "".join(f"{gap}{_written(each, draw)}{gap}," for each in value) + gap + "]"
    return "{ " + ", ".join(f'"{key}" = {_written(each, draw)}' for key, each in value.items()) + " }"


@hypothesis.given(st.data())
@hypothesis.settings(max_examples=60)
def test_every_key_is_found_on_the_line_where_it_stands(data: st.DataObject) -> None:
    tables = data.draw(st.dictionaries(_KEY, st.dictionaries(_KEY, _VALUE, max_size=3), max_size=3))
    lines: list[str] = []
    expected: dict[toml_lines.Path, int] = {}

    def line() -> int:
        return "".join(lines).count("\n") + 1

    for name, members in tables.items():
        expected[(name,)] = line()
        lines.append(f"[ {name} ] # a = 1\n")
        for key, value in members.items():
            expected[(name, key)] = line()
            lines.append(f"{data.draw(st.sampled_from([key, repr(key)]))} = {_written(value, data.draw)}\n")
    text = "".join(lines)
    assert tomllib.loads(text) == tables
    found = toml_lines.find(text)
    assert {path: found[path] for path in expected} == expected


# What the file is read for.


def providers(tmp_path: Path, text: str, **given: str) -> Providers:
    file = tmp_path / "providers.toml"
    file.write_text(text)
    made = settings.load({"llm_config": str(file), "openai_api_key": "sk-of-the-settings", **given})
    return Providers(made, lambda: pytest.fail("nobody is asked"))


def test_models_are_resolved_by_name_and_alias_and_no_other_is_there(tmp_path: Path) -> None:
    found = providers(tmp_path, GOOD)
    assert found.model("fast") is found.model("quick")
    assert found.model("fast").chain[0].provider.api_key == "sk-of-the-settings"
    with pytest.raises(errors.ModelNotFound):
        found.model("gpt-4o-mini")
    assert found.default_model == "quick"
    assert found.breaker.open_s == 2
    assert [model["id"] for model in found.listed()] == ["fast", "long", "quick"]
    assert [target.label for target in found.all()] == [
        "openai/gpt-4o-mini", "az/mini-deployment", "local/meta/llama3:8b", "openai/gpt-4.1-mini", "local/llama3",
    ]  # fmt: skip
    assert {"fast", "quick", "mini-deployment"} <= metrics.KNOWN_MODELS
    assert found.provider("az").name == "az"
    with pytest.raises(errors.NotFound):
        found.provider("nobody")


def test_prices_know_a_provider_by_its_kind_or_by_what_the_file_says(tmp_path: Path) -> None:
    text = GOOD.replace('kind = "ollama"', 'base_url = "https://openrouter.ai/api/v1"\nprices_as = "openrouter"')
    found = providers(tmp_path, text)
    assert [found.prices_as(name) for name in ("openai", "az", "local", "gone")] == [
        "openai", "azure", "openrouter", "gone",
    ]  # fmt: skip
    assert prices.KNOWN_AS["az"] == "azure"


def test_a_machine_of_ones_own_does_not_cost_what_the_models_maker_takes(tmp_path: Path) -> None:
    providers(tmp_path, GOOD.replace("[providers.local]", "[providers.mine]").replace('"local/', '"mine/'))
    usage, now = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}, datetime.datetime.now(datetime.UTC)
    assert prices.price("az", ["gpt-4o-mini"], usage, now) is not None
    assert prices.price("mine", ["gpt-4o-mini"], usage, now) is None
    own = {"gpt-*": {"input": "0", "output": "0"}}
    found = prices.price("mine", ["gpt-4o-mini"], usage, now, overrides=own)
    assert found is not None
    assert found.total == 0


def test_without_a_file_every_name_is_the_one_providers() -> None:
    found = Providers(settings.load({"openai_api_key": "sk-x", "default_model": "m"}), lambda: pytest.fail("asked"))
    model = found.model("anything/at:all")
    assert [target.label for target in model.chain] == ["openai/anything/at:all"]
    assert model.chain[0].provider.api_key == "sk-x"
    assert [target.label for target in found.all()] == ["openai/m"]
    assert found.names() == ("openai",)


def test_a_bots_own_keys_stand_in_for_the_files(tmp_path: Path) -> None:
    file = tmp_path / "providers.toml"
    file.write_text(GOOD)
    stored: dict[str, dict[str, str | None]] = {
        "one": {"openai": "sk-of-bot-one"},
        "two": {"openai": None},
        "three": {"openai": None, "az": None, "local": None},
    }
    made = settings.load({"llm_config": str(file), "openai_api_key": "sk-of-the-settings"})
    found = Providers(made, lambda: pytest.fail("asked"), lambda bot: stored.get(bot, {}))
    assert found.model("fast", "nobody") is found.model("fast")
    own = found.model("fast", "one")
    assert [target.provider.api_key for target in own.chain] == ["sk-of-bot-one", "azure-key-visibly-fake", ""]
    assert [target.label for target in own.chain] == [target.label for target in found.model("fast").chain]
    assert own.fallbacks["context_too_long"][0].provider.api_key == "sk-of-bot-one"
    without = found.model("fast", "two")  # a key of his that cannot be opened: nobody else's is taken for it
    assert [target.provider.name for target in without.chain] == ["az", "local"]
    assert without.weights == (1,)
    assert all(without.fallbacks.values())  # a reason with nobody left is one that nothing is said of
    with pytest.raises(errors.UpstreamRefused, match="cannot be opened"):
        found.model("fast", "three")


def test_a_variable_is_read_of_the_environment_and_of_the_env_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / ".env").write_text("IN_FILE=from-file\nIN_BOTH=from-file\n")
    monkeypatch.setenv("IN_BOTH", "from-environment")
    monkeypatch.chdir(tmp_path)
    assert [settings.variable(name) for name in ("IN_FILE", "IN_BOTH", "NOWHERE_AT_ALL")] == [
        "from-file", "from-environment", "",
    ]  # fmt: skip
