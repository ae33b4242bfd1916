"""The Lua scripts keep to their rules: headers that say the truth, no undefined names, keys that come only through KEYS."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from luaparser import ast, astnodes
from lupa import lua51

from app.core.store import scripts
from tests.rules import lua_headers

NAMES = scripts.names()
GLOBALS = {
    "redis",
    "KEYS",
    "ARGV",
    "tonumber",
    "tostring",
    "string",
    "math",
    "table",
    "unpack",
    "ipairs",
    "pairs",
    "type",
    "select",
    "cjson",
}
TESTS = "\n".join(path.read_text() for path in (Path(__file__).parents[1]).rglob("test_*.py"))
WRAPPERS = "\n".join(path.read_text() for path in (Path(__file__).parents[2] / "app").rglob("*.py"))


def source(name: str) -> str:
    return (lua_headers.LUA / f"{name}.lua").read_text()


@pytest.mark.parametrize("name", NAMES)
def test_a_script_compiles_in_the_lua_that_redis_has(name: str) -> None:
    load = lua51.LuaRuntime().eval("function(text) local made, problem = loadstring(text); return problem end")
    assert load(scripts.read(name).text) is None


@pytest.mark.parametrize("name", NAMES)
def test_a_header_declares_the_keys_and_arguments_that_its_script_uses(name: str) -> None:
    text = source(name)
    header = lua_headers.parse(text)
    names = lua_headers.bound_by_unpack(text)
    tail = {int(n) for n in re.findall(r"unpack\(KEYS, (\d+)", text)}
    keys = set(range(1, len(names) + 1)) | lua_headers.used("KEYS", text) | tail
    assert keys == set(header.keys)
    arguments = lua_headers.used("ARGV", text)
    assert arguments <= set(header.arguments), "an argument that the header does not declare"
    if "ARGV[i]" not in text:
        tails = {int(n) for n in re.findall(r"unpack\(ARGV, (\d+)", text)}
        assert set(header.arguments) - arguments - tails <= ({header.arguments[-1]} if "ARGV, 19" in text else set())
    for key in names:
        assert len(re.findall(rf"\b{key}\b", text)) > 1, f"the key {key} is bound and never used"


@pytest.mark.parametrize("name", NAMES)
def test_a_script_uses_no_name_that_is_not_there(name: str) -> None:
    """An undefined global raises only when it is reached, after the writes before it."""
    assert undefined(scripts.read(name).text) == set()


def test_the_check_for_undefined_names_can_fail() -> None:
    assert undefined("local a = 1\nif a then redis.call('DEL', kyes) end\nb = 2") == {"kyes", "b"}


@pytest.mark.parametrize("path", lua_headers.files(), ids=lambda path: path.stem)
def test_a_script_never_walks_or_names_keys_by_itself(path: Path) -> None:
    code = re.sub(r"--\[\[.*?\]\]|--[^\n]*", "", path.read_text(), flags=re.DOTALL)
    for call in re.findall(r"redis\.call\('(\w+)'", code):
        assert call not in {"KEYS", "SCAN", "FLUSHALL", "FLUSHDB", "SELECT", "EVAL"}
    assert not re.search(r"redis\.call\('\w+', '[^']*:", code), "a key's name is written in Lua"


@pytest.mark.parametrize("name", NAMES)
def test_a_script_has_a_wrapper_and_a_test(name: str) -> None:
    assert f'"{name}"' in WRAPPERS, "no Python wrapper runs it"
    assert name in TESTS or name.split("/")[1] in TESTS, "no test names it"


def undefined(text: str) -> set[str]:
    """Return the names that are neither local, nor a parameter, nor Redis's."""
    found: set[str] = set()
    _walk(ast.parse(text), [set(GLOBALS)], found)
    return found


def _walk(node: object, scopes: list[set[str]], found: set[str]) -> None:
    if isinstance(node, list):
        for item in node:
            _walk(item, scopes, found)
    elif isinstance(node, astnodes.Name):
        if not any(node.id in scope for scope in scopes):
            found.add(node.id)
    elif isinstance(node, astnodes.LocalFunction):
        scopes[-1].add(node.name.id)
        _function(node, scopes, found)
    elif isinstance(node, astnodes.AnonymousFunction | astnodes.Function):
        _function(node, scopes, found)
    elif isinstance(node, astnodes.LocalAssign):
        _walk(node.values, scopes, found)
        scopes[-1].update(target.id for target in node.targets)
    elif isinstance(node, astnodes.Fornum):
        _walk([node.start, node.stop, node.step], scopes, found)
        _walk(node.body, [*scopes, {node.target.id}], found)
    elif isinstance(node, astnodes.Forin):
        _walk(node.iter, scopes, found)
        _walk(node.body, [*scopes, {target.id for target in node.targets}], found)
    elif isinstance(node, astnodes.Block):
        _walk(node.body, [*scopes, set()], found)
    elif isinstance(node, astnodes.Index):
        _walk(node.value, scopes, found)
        if node.notation == astnodes.IndexNotation.SQUARE:
            _walk(node.idx, scopes, found)
    elif isinstance(node, astnodes.Field):
        if node.between_brackets:
            _walk(node.key, scopes, found)
        _walk(node.value, scopes, found)
    elif isinstance(node, astnodes.Node):
        for name, value in vars(node).items():
            if not name.startswith("_") and isinstance(value, astnodes.Node | list):
                _walk(value, scopes, found)


def _function(node: object, scopes: list[set[str]], found: set[str]) -> None:
    arguments = {argument.id for argument in node.args if isinstance(argument, astnodes.Name)}  # type: ignore[attr-defined]
    _walk(node.body, [*scopes, arguments], found)  # type: ignore[attr-defined]
