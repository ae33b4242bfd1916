"""`repliq prompts`: a bot's prompts pushed from files, shown, tried, made active, and compared in experiments."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from app.cli import acting, site
from app.core import errors

if TYPE_CHECKING:
    from app.prompts.schemas import ExperimentOut
    from app.runtime import Runtime

_BOT = click.option("--bot", default="default", show_default=True, help="The bot's id or name, or `default`.")
_MOST = 1000
_MEMBERS = ("name", "texts", "default_language", "variables", "model", "note")


@click.group("prompts")
def command() -> None:
    """Make, try and compare prompts: named templates with versions."""


@command.command("list")
@_BOT
def list_(bot: str) -> None:
    """List the bot's prompts, newest first."""
    from app.cli import bots as cli_bots
    from app.prompts import schemas, versions

    with site.opened() as runtime:
        identifier = site.bot_id(runtime, bot)
        with runtime.sessions.begin() as session:
            rows = versions.list_prompts(session, identifier, None, _MOST).data
            found = [schemas.PromptOut.model_validate(versions.shown(session, row)) for row in rows]
    cli_bots.table(
        ["name", "active", "latest", "languages", "variables", "experiment", "changed"],
        [
            [
                one.name,
                str(one.active_version),
                str(one.latest_version),
                ",".join(one.version.texts) if one.version else "",
                ",".join(variable.name for variable in one.version.variables) if one.version else "",
                _split(one.experiment) if one.experiment else "",
                f"{one.updated_at:%Y-%m-%d %H:%M}Z",
            ]
            for one in found
        ],
    )


@command.command()
@click.argument("name")
@click.option("--version", "number", type=click.IntRange(1), help="Default: the active one.")
@_BOT
def show(name: str, number: int | None, bot: str) -> None:
    """Show a version of the prompt NAME, as a file that `push` takes."""
    from app.prompts import schemas, versions

    with site.opened() as runtime:
        identifier = site.bot_id(runtime, bot)
        with runtime.sessions.begin() as session:
            prompt = versions.get(session, identifier, name)
            active = prompt.active
            row = schemas.VersionOut.model_validate(versions.version(session, prompt, number or active))
    told = {"name": name, **row.model_dump(mode="json", include=set(_MEMBERS), exclude_none=True)}
    click.echo(json.dumps(told, ensure_ascii=False, indent=2))
    state = "the active one" if row.version == active else f"not the active one, which is {active}"
    click.echo(f"Version {row.version} of {row.created_at:%Y-%m-%d %H:%M}Z, {state}.", err=True)


@command.command()
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path))
@click.option("--activate", is_flag=True, help="Give it out at once; a prompt's first version always is.")
@_BOT
def push(file: Path, activate: bool, bot: str) -> None:
    """Make a version of FILE (TOML or JSON: name, texts, variables, …), and the prompt itself where it is new.

    What the latest version says already makes none.
    """
    from app.cli import bots as cli_bots
    from app.prompts import schemas, versions

    given = _document(file)
    with site.opened() as runtime:
        identifier = site.bot_id(runtime, bot)
        content = cli_bots.checked(schemas.PromptCreate, {**given, "activate": activate})
        version = schemas.VersionCreate.model_validate(content.model_dump(exclude={"name"}))
        with acting.changing(runtime.sessions) as session:
            try:
                made = versions.add(session, identifier, content.name, version)
            except errors.NotFound:
                made = versions.create(session, identifier, content)
            number, known, active = made.version.version, made.known, made.prompt.active
        _tell(runtime, identifier, content.name)
    what = "is as the file says already" if known else "is made"
    state = "it is active" if active == number else f"version {active} is active"
    click.echo(f"Version {number} of '{content.name}' {what}; {state}.")


@command.command()
@click.argument("name")
@click.argument("version", type=click.IntRange(1))
@_BOT
def activate(name: str, version: int, bot: str) -> None:
    """Give a version out to everybody, forward or back. An experiment that runs is stopped."""
    from app.prompts import versions

    with site.opened() as runtime:
        identifier = site.bot_id(runtime, bot)
        with acting.changing(runtime.sessions) as session:
            versions.activate(session, identifier, name, version)
        _tell(runtime, identifier, name)
    click.echo(f"Version {version} of '{name}' is active.")


@command.command()
@click.argument("name")
@click.option("--version", "number", type=click.IntRange(1), help="Default: the one that --user would have.")
@click.option("--language", help="ru, uk or en.")
@click.option("--user", default="", help="As this user has it in an experiment.")
@click.option("--set", "values", multiple=True, metavar="NAME=VALUE", help="A variable's value; repeat for more.")
@_BOT
def render(name: str, number: int | None, language: str | None, user: str, values: Sequence[str], bot: str) -> None:
    """Render the prompt NAME, and print it."""
    variables = dict(_pair(value) for value in values)
    with site.opened() as runtime:
        found = runtime.prompts.render(
            runtime.directory.bot(site.bot_id(runtime, bot)), name, user=user, language=language, variables=variables, version=number,
        )  # fmt: skip
    click.echo(found.text)
    variant = f", variant {found.variant}" if found.variant else ""
    click.echo(f"Version {found.version}, {found.language}{variant}.", err=True)


@command.group()
def experiment() -> None:
    """Divide a prompt's users between versions: start, stop, list."""


@experiment.command("start")
@click.argument("name")
@click.argument("experiment", metavar="EXPERIMENT")
@click.argument("variants", nargs=-1, required=True, metavar="VERSION[:WEIGHT]...")
@_BOT
def start(name: str, experiment: str, variants: Sequence[str], bot: str) -> None:
    """Start EXPERIMENT on the prompt NAME, such as: experiment start sales tone 1:3 2:1"""
    from app.cli import bots as cli_bots
    from app.prompts import experiments, schemas

    with site.opened() as runtime:
        identifier = site.bot_id(runtime, bot)
        split = [
            dict(zip(("version", "weight"), variant.split(":"), strict=False))
            if variant.count(":") < 2
            else {"version": variant}
            for variant in variants
        ]
        given = cli_bots.checked(schemas.ExperimentCreate, {"name": experiment, "variants": split})
        with acting.changing(runtime.sessions) as session:
            made = schemas.ExperimentOut.model_validate(experiments.start(session, identifier, name, given))
        _tell(runtime, identifier, name)
    click.echo(f"'{name}' is divided: {_split(made)}.")


@experiment.command("stop")
@click.argument("name")
@click.argument("experiment", metavar="EXPERIMENT")
@click.option("--winner", type=click.IntRange(1), help="The version that everybody has from now on.")
@_BOT
def stop(name: str, experiment: str, winner: int | None, bot: str) -> None:
    """Stop EXPERIMENT on the prompt NAME."""
    from app.prompts import experiments, versions

    with site.opened() as runtime:
        identifier = site.bot_id(runtime, bot)
        with acting.changing(runtime.sessions) as session:
            experiments.stop(session, identifier, name, experiment, winner)
            active = versions.get(session, identifier, name).active
        _tell(runtime, identifier, name)
    click.echo(f"'{experiment}' is stopped; version {active} of '{name}' is active.")


@experiment.command("list")
@click.argument("name")
@_BOT
def list_experiments(name: str, bot: str) -> None:
    """List the experiments of the prompt NAME, newest first."""
    from app.cli import bots as cli_bots
    from app.prompts import experiments, schemas

    with site.opened() as runtime:
        identifier = site.bot_id(runtime, bot)
        with runtime.sessions.begin() as session:
            rows = experiments.list_page(session, identifier, name, None, _MOST).data
            found = [schemas.ExperimentOut.model_validate(row) for row in rows]
    cli_bots.table(
        ["name", "variants", "started", "stopped", "winner"],
        [
            [
                one.name,
                _split(one),
                f"{one.started_at:%Y-%m-%d %H:%M}Z",
                f"{one.stopped_at:%Y-%m-%d %H:%M}Z" if one.stopped_at else "",
                str(one.winner or ""),
            ]
            for one in found
        ],
    )


@command.command()
@click.argument("name")
@click.argument("experiment", metavar="EXPERIMENT")
@_BOT
def figures(name: str, experiment: str, bot: str) -> None:
    """Show what the variants of EXPERIMENT on the prompt NAME came to."""
    from app.cli import bots as cli_bots
    from app.prompts import experiments, schemas, versions
    from app.prompts import figures as figures_

    with site.opened() as runtime:
        identifier = site.bot_id(runtime, bot)
        with runtime.sessions.begin() as session:
            prompt = versions.get(session, identifier, name)
            told = figures_.of(session, prompt, experiments.get(session, identifier, name, experiment))
            found = schemas.ExperimentFigures.model_validate(told)
    titles = [
        "variant",
        "version",
        "weight",
        "requests",
        "users",
        "success",
        "mean cost",
        "p50 ms",
        "p95 ms",
        "up",
        "down",
        "liked",
    ]
    cli_bots.table(
        titles,
        [
            [
                one.name,
                str(one.version),
                str(one.weight),
                str(one.requests),
                str(one.users),
                _rate(one.success_rate, one.success_rate_interval),
                one.mean_cost or "",
                str(one.p50_response_ms or ""),
                str(one.p95_response_ms or ""),
                str(one.thumbs_up),
                str(one.thumbs_down),
                _rate(one.thumbs_up_rate, one.thumbs_up_interval),
            ]
            for one in found.variants
        ],
    )
    click.echo(f"\n{found.verdict[0].upper()}{found.verdict[1:]}.", err=True)


def _tell(runtime: Runtime, bot: str, name: str) -> None:
    from app.prompts import announce

    announce.prompt_changed(runtime.store, runtime.keys, bot, name)


def _split(found: ExperimentOut) -> str:
    variants = ", ".join(f"{one.name} (version {one.version}) {one.weight}" for one in found.variants)
    return f"{found.name}: {variants}"


def _rate(rate: float | None, interval: tuple[float, float] | None) -> str:
    if rate is None or interval is None:
        return ""
    return f"{rate:.0%} ({interval[0]:.0%}-{interval[1]:.0%})"


def _pair(value: str) -> tuple[str, Any]:
    name, equals, given = value.partition("=")
    if not equals:
        raise click.BadParameter(f"'{value}' is not NAME=VALUE.", param_hint="--set")
    return name.strip(), given


def _document(file: Path) -> dict[str, Any]:
    """Read a prompt's file; raise `ClickException` in one line."""
    try:
        text = file.read_text(encoding="utf-8")
        found = json.loads(text) if file.suffix == ".json" else tomllib.loads(text)
    except (OSError, UnicodeDecodeError) as error:
        raise click.ClickException(f"The file {file} cannot be read: {error}") from None
    except ValueError as error:  # both parsers' errors are such
        raise click.ClickException(f"{file}: {error}") from None
    if not isinstance(found, dict):
        raise click.ClickException(f"{file}: must hold a prompt: name, texts, …")
    return found
