"""Documentation leads somewhere: links, anchors, commands, paths and Python of README*.md and docs/ are compared with what there is."""

from __future__ import annotations

import collections
import json
import re
import shutil
import subprocess
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest

from app import cli
from app.core.settings import Settings
from app.http import factory, openapi
from app.webhooks import signatures

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted([*ROOT.glob("README*.md"), ROOT / "SECURITY.md", *(ROOT / "docs").rglob("*.md")])
NAMES = [str(page.relative_to(ROOT)) for page in PAGES]
NOT_OURS = {"docs/comparison.md"}  # tells of other gateways' paths, too
_FENCE = re.compile(r"^( *)```(\w*)[^\n]*\n(.*?)^\1```", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\[(?:[^\[\]]|\[[^\]]*\])*\]\(([^()\s]+)\)")
_OUTSIDE = re.compile(r"^[a-z]+:")
_COMMAND = re.compile(
    r"(?:^|(?<=[`|(=;&]))\s*(?:\$\()?(?:\.venv/bin/)?repliq"
    r"((?: (?:[^`\n|;&)]|(?<=[a-z])\|(?=[a-z]))*)?)(?![\w-])",
    re.MULTILINE,
)
_PATH = re.compile(
    r"(?<![\w.-])(?:https?://127\.0\.0\.1:80\d\d|\$REPLIQ(?:_URL)?|\$\{?\w*URL\}?)?(/v1(?:/(?:\{[^{}\n]*\}|[^\s`\"')?,;|\]\\])*)?)"
)
_SLOT = re.compile(r"\$|[{}<>…]|\d|:")


def read(name: str) -> str:
    return (ROOT / name).read_text()


def blocks(text: str, language: str) -> list[str]:
    return [match[3] for match in _FENCE.finditer(text) if match[2] == language]


def words(text: str) -> str:
    """Return a page without its blocks of code."""
    return _FENCE.sub("", text)


def anchors(text: str) -> set[str]:
    """Return the anchors of a page's headings, as they are made where Markdown is shown: a repeated one is numbered."""
    found: dict[str, int] = {}
    for heading in re.findall(r"^#{1,6} (.+?)\s*#*$", words(text), re.MULTILINE):
        shown = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).replace("`", "")
        slug = re.sub(r"[^\w\- ]", "", shown.lower()).replace(" ", "-")
        number = found.get(slug, 0)
        found[slug] = number + 1
        if number:
            found[f"{slug}-{number}"] = 1
    return set(found)


def dead_links(page: Path, text: str) -> list[str]:
    dead = []
    for target in _LINK.findall(re.sub(r"`[^`\n]*`", "", words(text))):
        if _OUTSIDE.match(target):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        if not file.is_relative_to(ROOT) or not file.exists() or (anchor and not _has(file, anchor)):
            dead.append(target)
    return dead


def _has(file: Path, anchor: str) -> bool:
    return file.suffix == ".md" and anchor in anchors(file.read_text())


def commands(text: str) -> Iterator[list[str]]:
    """Yield the words behind each `repliq` of a page's code."""
    spans = re.findall(r"(?<!`)`(repliq[^`\n]*)`(?!`)", words(text))
    for code in [*spans, *(block for language in ("bash", "sh", "") for block in blocks(text, language))]:
        for match in _COMMAND.finditer(re.sub(r"\\\n\s*", " ", code)):
            yield re.sub(r"\s#.*", "", match[1]).split()


def wrong_command(given: list[str]) -> str | None:
    """Say what is wrong with the words behind `repliq`: a command, a subcommand or an option that there is not."""
    context = click.Context(cli.command)
    at: click.Command = cli.command
    known = {"--help", "--version"}
    for before, word in zip(["", *given], given, strict=False):
        if word.startswith("--"):
            known |= {option for parameter in at.params for option in (*parameter.opts, *parameter.secondary_opts)}
            if word.partition("=")[0] not in known:
                return f"{at.name} has no {word}"
        elif isinstance(at, click.Group) and re.fullmatch(r"[a-z]+(-[a-z]+)*(\|[a-z]+)*", word):
            names = word.split("|")
            missing = [name for name in names if at.get_command(context, name) is None]
            if missing and not before.startswith("--"):
                return f"{at.name} has no {missing[0]}"
            if not missing:
                at = at.get_command(context, names[0]) or at
    return None


def paths(text: str) -> set[str]:
    return {match[1].rstrip("/.:*") for match in _PATH.finditer(text)}


def is_served(path: str, served: set[str]) -> bool:
    """Tell whether a path of the documentation is one of the API's; `…` and what is cut off stand for any rest."""
    parts = path.split("/")
    open_end = parts[-1] in ("…", "...")
    parts = parts[: len(parts) - open_end]
    family = open_end or len(parts) <= 3  # `/v1/analytics` means all that is under it
    candidates = [path.split("/") for path in served]
    return any(
        all(_fits(part, their) for part, their in zip(parts, candidate, strict=False))
        for candidate in candidates
        if len(candidate) == len(parts) or (family and len(candidate) > len(parts))
    )


def _fits(part: str, their: str) -> bool:
    if their.startswith("{"):
        return part == "latest" or bool(_SLOT.search(part)) or part.isidentifier()
    return part == their


@pytest.fixture(scope="module")
def served() -> set[str]:
    return set(openapi.document(factory.all_routes())["paths"])


@pytest.mark.parametrize("name", [*NAMES, "lua/README.md"])
def test_every_link_leads_somewhere(name: str) -> None:
    assert dead_links(ROOT / name, read(name)) == []


@pytest.mark.parametrize("name", NAMES)
def test_every_command_is_one_of_the_command_line(name: str) -> None:
    assert [wrong for given in commands(read(name)) if (wrong := wrong_command(given))] == []


@pytest.mark.parametrize("name", sorted(set(NAMES) - NOT_OURS))
def test_every_path_is_one_of_the_api(name: str, served: set[str]) -> None:
    assert sorted(path for path in paths(read(name)) if not is_served(path, served)) == []


def test_python_compiles() -> None:
    codes = {(name, number): code for name in NAMES for number, code in enumerate(blocks(read(name), "python"))}
    codes |= {(path.name, 0): path.read_text() for path in (ROOT / "docs" / "examples").glob("*.py")}
    for (name, number), code in codes.items():
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            compile(code, f"{name}, block {number}", "exec")


@pytest.mark.skipif(not shutil.which("node"), reason="needs node")
def test_javascript_can_be_read(tmp_path: Path) -> None:
    codes = [path.read_text() for path in (ROOT / "docs" / "examples").glob("*.mjs")]
    codes += re.findall(r'<script type="module">(.*?)</script>', read("docs/examples/chat.html"), re.DOTALL)
    codes += [code for name in NAMES for code in blocks(read(name), "javascript")]
    reader = tmp_path / "reader.mjs"
    reader.write_text(
        "import vm from 'node:vm'; import { readFileSync } from 'node:fs';"
        "for (const code of JSON.parse(readFileSync(0, 'utf8'))) new vm.SourceTextModule(code);"
    )
    arguments = ["node", "--no-warnings", "--experimental-vm-modules", str(reader)]
    done = subprocess.run(arguments, input=json.dumps(codes), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_guides_way_to_check_a_webhook_is_right() -> None:
    code = next(code for code in blocks(read("docs/guide.md"), "python") if "def verify" in code)
    names: dict[str, Any] = {}
    exec(code[: code.index("class Receiver")], names)
    secret, body, now = "whsec_dGVzdHMtb3du", b'{"type": "task.completed"}', int(time.time())
    ours = signatures.headers("msg_1", now, body, [secret])
    assert names["verify"](secret, body, collections.defaultdict(lambda: None, ours)) == {"type": "task.completed"}
    wrong = [
        (secret, body + b" ", ours),
        ("whsec_b3RoZXI=", body, ours),
        (secret, body, {**ours, "webhook-id": "msg_2"}),
        (secret, body, {**ours, "webhook-timestamp": str(now + 1)}),
        (secret, body, {**ours, "webhook-signature": ""}),
        (secret, body, {}),
        (secret, body, signatures.headers("msg_1", now - 400, body, [secret])),
        (secret, body, signatures.headers("msg_1", now + 400, body, [secret])),
    ]
    for given, sent, headers in wrong:
        with pytest.raises(ValueError, match=r"too old|not signed"):
            names["verify"](given, sent, collections.defaultdict(lambda: None, headers))


def test_every_page_is_in_the_index() -> None:
    """Pages of a folder are in the folder's own index."""
    for index in (ROOT / "docs").rglob("README.md"):
        linked = {(index.parent / target.partition("#")[0]).resolve() for target in _LINK.findall(index.read_text())}
        assert set(index.parent.glob("*.md")) - linked <= {index}, index


def test_every_script_and_test_that_a_decision_names_is_there() -> None:
    for page in (ROOT / "docs" / "decisions").glob("*.md"):
        for named in re.findall(r"`((?:app|lua|tests|tasks)/[\w/.]+)`", page.read_text()):
            assert (ROOT / named).exists(), (page.name, named)


def test_the_russian_readme_has_the_same_commands_in_the_same_order() -> None:
    """Comments may be translated, commands may not."""
    for language in ("bash", "python"):
        ours, theirs = (blocks(read(name), language) for name in ("README.md", "README.ru.md"))
        assert [_without_comments(block) for block in ours] == [_without_comments(block) for block in theirs]


def test_the_russian_readme_has_the_same_structure() -> None:
    ours, theirs = (words(read(name)) for name in ("README.md", "README.ru.md"))
    for shape in (r"^(#+) ", r"^\| `([^`]+)` \|", r"^- (\*\*)", r"\]\(([^)]+\.md)\)"):
        left, right = (re.findall(shape, text, re.MULTILINE) for text in (ours, theirs))
        if shape.startswith("\\]"):  # sentences may be turned around, links not left out
            left, right = sorted(set(left) - {"README.ru.md"}), sorted(set(right) - {"README.md"})
        assert left == right, shape
    for name in Settings.model_fields:
        assert f"| `{name.upper()}` |" in theirs, name


def _without_comments(block: str) -> list[str]:
    return [re.sub(r"\s+# .*", "", line).rstrip() for line in block.splitlines()]


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("`repliq up --flower`", None),
        ("`repliq upp`", "repliq has no upp"),
        ("`repliq up --flour`", "up has no --flour"),
        ("`repliq keys make`", "command has no make"),
        ("```bash\nKEY=$(repliq keys create --name \"a b\")\n```", None),
        ("```bash\n.venv/bin/repliq bots set default cache=off\n```", None),
        ("`repliq webhooks secret|rotat`", "command has no rotat"),
    ],
)  # fmt: skip
def test_the_check_of_commands_can_fail(text: str, wrong: str | None) -> None:
    found = [wrong_command(given) for given in commands(text)]
    assert len(found) == 1
    assert (found[0] or "").split(" has ")[-1] == (wrong or "").split(" has ")[-1]


def test_the_check_of_links_can_fail() -> None:
    page = ROOT / "docs" / "README.md"
    text = "[a](api.md) [b](api.md#limits) [c](none.md) [d](api.md#none) [e](https://x.example) `[f](none.md)` [g](../../x)"
    assert dead_links(page, text) == ["none.md", "api.md#none", "../../x"]
    assert anchors("# A `b` (c)\n## A b c\n### Больше, чем\n") == {"a-b-c", "a-b-c-1", "больше-чем"}


def test_the_check_of_paths_can_fail(served: set[str]) -> None:
    for path in (
        "/v1/tasks/{id}",
        "/v1/tasks/$TASK/events",
        "/v1/tasks/{task['id']}/events",
        "/v1/chat/…",
        "/v1/chat/limits/123",
        "/v1",
    ):
        assert is_served(path, served), path
    for path in ("/v1/taks", "/v1/tasks/{id}/event", "/v2/tasks", "/v1/chatt/…", "/v1/chat/send/more"):
        assert not is_served(path, served), path
    text = "`POST /v1/chat/send`, `http://127.0.0.1:8000/v1/tasks/$TASK?wait=25`, f'/v1/tasks/{t['id']}/x', https://a.example/v1/b"
    assert paths(text) == {"/v1/chat/send", "/v1/tasks/$TASK", "/v1/tasks/{t['id']}/x"}
