"""`repliq cache`: turns on what the semantic cache needs, and measures how often it would be wrong."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from app.cli import site

if TYPE_CHECKING:
    from app.llm.cache.evaluation import Judged
    from app.runtime import Runtime

_EMBED_S = 60.0


@click.group("cache")
def command() -> None:
    """Look after the cache of answers."""


@command.command()
def enable() -> None:
    """See to it that the database has pgvector, for bots with `cache: semantic`."""
    from app.core.database import extensions

    with site.opened() as runtime, runtime.sessions.begin() as session:
        extensions.require_vector(session)
    click.echo("pgvector is there: a bot may have cache: semantic.")


@command.command()
@click.argument("file", type=click.Path(path_type=Path, exists=True, dir_okay=False), required=False)
@click.option(
    "--bot", default="default", show_default=True, help="The bot whose semantic_model is measured: its id or name."
)
@click.option("--model", help="Another model for embeddings, by the name that requests would give.")
@click.option(
    "--show", default=5, show_default=True, type=click.IntRange(0, 1000), help="So many mistakes of each kind."
)
def evaluate(file: Path | None, bot: str, model: str | None, show: int) -> None:
    """Measure wrong and missed hits by threshold, on pairs of questions: FILE, or the Ukrainian, Russian and English ones that come along.

    FILE is JSON Lines or CSV with question, other, and same: yes where one answer is right for both. Each question is embedded once, at
    your provider's price.
    """
    from app.cli import bots
    from app.llm.cache import evaluation

    pairs = evaluation.read(file or evaluation.SHIPPED)
    with site.opened() as runtime:
        identifier = site.bot_id(runtime, bot)
        settings = runtime.directory.bot(identifier).settings
        name = model or settings.semantic_model
        embedder = _Embedder(runtime, identifier, name)
        judged = evaluation.judge(pairs, embedder)
    best = evaluation.best(judged)
    rows = [evaluation.at(judged, threshold) for threshold in evaluation.THRESHOLDS]
    bots.table(
        ["threshold", "right", "wrong", "missed", ""],
        [
            [f"{one.threshold:.3f}", str(one.right), str(one.wrong), str(one.missed), "best" if one is best else ""]
            for one in sorted(
                [*(row for row in rows if row.threshold != best.threshold), best], key=lambda one: one.threshold
            )
        ],
    )
    same, apart = sum(pair.same for pair in pairs), sum(one.apart for one in judged)
    click.echo(
        f"\n{name}: {len(pairs)} pairs, {same} the same and {len(pairs) - same} not; {embedder.tokens:,} tokens embedded."
    )
    click.echo(f"Pairs that are never compared, for other numbers or something personal in them: {apart}.")
    _mistakes("Wrong", [one for one in judged if one.hit(best.threshold) and not one.pair.same], show)
    _mistakes("Missed", [one for one in judged if not one.hit(best.threshold) and one.pair.same], show)
    if not evaluation.knows_meanings(judged):
        click.echo(
            "These embeddings know no meaning (the simulator's are made from a hash): the figures say nothing of your bot."
        )
        return
    told = f"Best: semantic_threshold {best.threshold:.3f}, {best.wrong} wrong and {best.missed} missed"
    click.echo(f"{told}; the bot has {settings.semantic_threshold:g}. Try it on questions of your own users.")


class _Embedder:
    """Embeds texts by a bot's provider, and counts the tokens."""

    def __init__(self, runtime: Runtime, bot: str, model: str) -> None:
        self._client = runtime.llm
        self._target = runtime.providers.model(model, bot).chain[0]
        self.tokens = 0

    def __call__(self, texts: list[str]) -> Sequence[Sequence[float]]:
        found = self._client.embed(self._target.provider, self._target.model, texts, timeout_s=_EMBED_S)
        self.tokens += found.tokens
        return found.vectors


def _mistakes(title: str, found: Sequence[Judged], show: int) -> None:
    for one in sorted(found, key=lambda one: -one.likeness)[:show]:
        click.echo(f"{title}: {one.likeness:.3f}  {one.pair.question}  |  {one.pair.other}")
