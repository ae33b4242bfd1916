"""Answers for which no model need be asked: looked for before the call, kept after it, and one call for all who ask the same at once."""

from __future__ import annotations

import dataclasses
import datetime
import hashlib
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, Protocol

from sqlalchemy.exc import DBAPIError

from app.bots.directory import Bot
from app.bots.schemas import BotSettings
from app.chat import windows
from app.chat.records import Task
from app.core import clock, errors, logs, masking, metrics
from app.core.database.engine import Sessions
from app.llm import prices
from app.llm.answers import Answer, Model
from app.llm.cache import answers, asked, meanings
from app.llm.cache.asked import Asked
from app.llm.cache.fixed import FixedAnswers
from app.llm.cache.meanings import Place
from app.llm.cache.shelf import UNFIT, Kept, Shelf, Waits

if TYPE_CHECKING:
    from app.llm.client import Client

_log = logs.get(__name__)
_EMBED_S = 3.0
_TWIN_MS = 30_000
_MAX_AGE = re.compile(r"max-age=\"?(\d{1,9})")


@dataclasses.dataclass(frozen=True, slots=True)
class Hit:
    """A known answer. `wake` are tasks that waited for it."""

    answer: Answer
    source: Literal["fixed", "exact", "semantic"]
    wake: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True, slots=True)
class Lead:
    """The caller is to ask the model; `key` is what its answer is kept under. `meaning` is what was asked, where that is kept, too."""

    key: str
    task: str
    bot: str
    user: str
    epoch: str
    ttl_s: int
    alone: bool = False
    meaning: _Meaning | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class Follow:
    """Another task asks the very same; this one is noted as waiting, and looks again after `retry_ms` at the latest."""

    key: str
    retry_ms: int


@dataclasses.dataclass(frozen=True, slots=True)
class _Meaning:
    place: Place
    vector: Sequence[float]


@dataclasses.dataclass(frozen=True, slots=True)
class Wishes:
    """What a request's Cache-Control asks for (RFC 9111): may it be given a kept answer, how old a one, and may its own be kept."""

    read: bool = True
    store: bool = True
    max_age_s: int | None = None


class Models(Protocol):
    """Finds models by their names (app.llm.providers)."""

    def model(self, name: str, bot: str = "") -> Model: ...


def wishes(header: str) -> Wishes:
    """Read a request's Cache-Control; what is not known in it is left aside."""
    said = header.lower()
    words = {word.strip().split("=")[0] for word in said.split(",")}
    age = _MAX_AGE.search(said)
    kept = "no-store" not in words
    return Wishes(kept and "no-cache" not in words, kept, int(age[1]) if age else None)


def policy(settings: BotSettings, header: str, *, personal: bool) -> dict[str, Any] | None:
    """Return what the worker is told of a request's caching, None where its bot keeps no answers.

    `personal`: its prompt was made for this request alone."""
    if settings.cache == "off":
        return None
    wished = wishes(header)
    semantic = settings.cache == "semantic" and settings.store_content != "metadata"
    made: dict[str, Any] = {
        "mode": "semantic" if semantic else "exact",
        "ttl_s": settings.cache_ttl_s,
        **dataclasses.asdict(wished),
    }
    if settings.cache_shared:
        made["shared"] = True
    if personal:
        made["personal"] = True
    if semantic:
        made |= {"threshold": settings.semantic_threshold, "embedding_model": settings.semantic_model}
    return made


def prepare(
    envelope: dict[str, Any], bot: Bot, header: str, fixed: FixedAnswers, language: str | None, *, personal: bool
) -> dict[str, str]:
    """Tell the worker of a request's fixed answer and of its caching; return what the task's record says of that.

    `header` is the request's Cache-Control, `language` what the request names; `personal` as of `policy`."""
    if not bot.settings.cache_counts:
        envelope["cache_counts"] = False
    question = _question(envelope)
    known = fixed.find(bot, question, language, completion="message" not in envelope) if question else None
    if known:
        envelope["fixed"] = known.text
    given = policy(bot.settings, header, personal=personal)
    if given is None:
        return {}
    envelope["cache"] = given
    passes = given["read"] and asked.may_be_kept(envelope["body"])
    return {"cache": "miss" if passes else "bypass"}


def _question(envelope: dict[str, Any]) -> str:
    """Return what a fixed answer may be given to: a user's message; a completion's last one where a text alone is wanted."""
    if "message" in envelope:
        return str(envelope["message"])
    body = envelope["body"]
    last = body["messages"][-1]
    if last["role"] != "user" or body.get("response_format") or not asked.may_be_kept(body):
        return ""
    return last["content"] if isinstance(last.get("content"), str) else ""


class CachedAnswers:
    """Finds and keeps answers. That Redis, PostgreSQL or the embeddings are away never fails a request: then the model is asked."""

    def __init__(self, shelf: Shelf, sessions: Sessions, models: Models, llm: Any) -> None:
        self.shelf = shelf
        self.sessions = sessions
        self.models = models
        self._llm = llm
        self._without_vectors = False

    def find(self, task: Task, envelope: dict[str, Any], body: dict[str, Any]) -> Hit | Lead | Follow | None:
        """Return a known answer, the flight that the task leads, or whom it follows; None for a request that is not kept.

        `body` is the whole request as a provider would get it, before anything in it is masked."""
        if "fixed" in envelope:
            metrics.cache_hits.labels("fixed").inc()
            return Hit(answers.fixed(envelope["fixed"], task.ref, task.model, clock.now_ms()), "fixed")
        given = envelope.get("cache")
        if not given or not given["store"] or "fold" in envelope:
            return None
        request = self._read(task, envelope, body)
        if request is None:
            return None
        try:
            found = self._look_up(task, envelope, request)
        except errors.Unavailable as error:
            _log.warning("cache_away", reason=str(error))
            return None
        if isinstance(found, Hit):
            metrics.cache_requests.labels("hit").inc()
            metrics.cache_hits.labels(found.source).inc()
        elif isinstance(found, Lead):
            metrics.cache_requests.labels("miss").inc()
        return found

    def _read(self, task: Task, envelope: dict[str, Any], body: dict[str, Any]) -> Asked | None:
        return asked.read(
            task.model, body["messages"], envelope["body"]["messages"], windows.system(envelope.get("system")), envelope["body"],
            personal=bool(envelope["cache"].get("personal")), cap=int(envelope.get("caps", {}).get("output_tokens") or 0),
        )  # fmt: skip

    def _look_up(self, task: Task, envelope: dict[str, Any], request: Asked) -> Hit | Lead | Follow:
        given = envelope["cache"]
        shared = bool(given.get("shared"))
        epoch = self.shelf.epoch(task.bot, task.user)
        name = request.name(task.bot, task.user if request.personal and not shared else "", epoch)
        oldest_ms = -1 if given["max_age_s"] is None else given["max_age_s"] * 1000
        found = self.shelf.look_up(
            name, task.ref, read=given["read"], max_age_ms=oldest_ms, patience_ms=max(0, task.deadline - task.now)
        )
        if isinstance(found, Kept):
            return Hit(answers.told(found.body), "exact")
        if isinstance(found, Waits):
            return Follow(name, found.left_ms)
        lead = Lead(name, task.ref, task.bot, task.user, epoch, given["ttl_s"], found.alone)
        if given["mode"] != "semantic" or not given["read"] or not request.question:
            return lead
        try:
            return self._by_meaning(lead, envelope, request, "" if shared else task.user, oldest_ms)
        except errors.Unavailable as error:  # it leads all the same: others wait for it by now
            _log.warning("meanings_away", reason=str(error))
            return lead
        except BaseException:
            self.give_up(lead)
            raise

    # By meaning

    def _by_meaning(
        self, lead: Lead, envelope: dict[str, Any], request: Asked, scope: str, oldest_ms: int
    ) -> Hit | Lead:
        """Look for an answer to a question that means the same; who leads keeps what this one means."""
        if masking.text(request.question) != request.question:
            return lead  # it names somebody: no other question is the same, and it is nothing for one more provider
        given = envelope["cache"]
        vector = self._embed(given["embedding_model"], lead.bot, request.question, envelope.get("prices"))
        if vector is None:
            return lead
        context = hashlib.sha256(f"{request.context} {given['embedding_model']}".encode()).hexdigest()
        place = Place(lead.bot, scope, context)
        lead = dataclasses.replace(lead, meaning=_Meaning(place, vector))
        try:
            with self.sessions.begin() as session:
                near = meanings.nearest(session, place, vector)
        except errors.Unavailable as error:
            _log.warning("meanings_away", reason=str(error))
            return lead
        except meanings.NoVectors as error:
            return self._no_vectors(lead, error)
        if near is None or near.likeness < given["threshold"]:
            return lead
        kept = self.shelf.read(near.answer)
        if kept is None or (oldest_ms >= 0 and kept.age_ms > oldest_ms):
            return lead
        return Hit(answers.told(kept.body), "semantic", self._serve_twins(lead, kept))

    def _serve_twins(self, lead: Lead, kept: Kept) -> tuple[str, ...]:
        """Let those have the answer, too, who asked the very same meanwhile: for half a minute, and without a meaning of its own."""
        if lead.alone:
            return ()
        if not self.shelf.note(lead.bot, lead.user, lead.epoch, lead.key, _TWIN_MS):
            return tuple(self.shelf.give_up(lead.key, lead.task))
        ttl_ms = min(_TWIN_MS, lead.ttl_s * 1000)
        return tuple(self.shelf.fill(lead.key, lead.task, kept.body, ttl_ms, age_ms=kept.age_ms))

    def _embed(
        self, model: str, bot: str, question: str, overrides: dict[str, dict[str, str]] | None
    ) -> Sequence[float] | None:
        """Return what a question means, None where that cannot be had. What it costs is no request's: metrics have it."""
        try:
            target = self.models.model(model, bot).chain[0]
            client: Client = self._llm()
            found = client.embed(target.provider, target.model, [question], timeout_s=_EMBED_S)
        except (errors.UpstreamError, errors.NotFound) as error:
            reason = error.plain if isinstance(error, errors.UpstreamError) else str(error)
            _log.warning("question_not_embedded", model=model, reason=reason)
            return None
        metrics.cache_embedding_tokens.inc(found.tokens)
        used = {"prompt_tokens": found.tokens, "completion_tokens": 0, "total_tokens": found.tokens}
        charge = prices.price(
            target.provider.name, [target.model], used, datetime.datetime.now(datetime.UTC), overrides=overrides
        )
        if charge is not None:
            metrics.chat_cost_usd.labels(target.provider.name, metrics.model_label(target.model)).inc(
                float(charge.total)
            )
        return found.vectors[0]

    def _no_vectors(self, lead: Lead, error: Exception) -> Lead:
        if not self._without_vectors:
            self._without_vectors = True
            _log.error(
                "no_pgvector",
                reason=str(error),
                advice="repliq cache enable; repliq doctor says more",
            )
        return dataclasses.replace(lead, meaning=None)

    # After the call

    def fill(self, lead: Lead, answer: Answer) -> list[str]:
        """Keep the answer that a lead brought, if it may be; return the tasks that waited, which look again either way."""
        try:
            body = answers.fit(answer, clock.now_ms())
            if body is None:
                return self.shelf.give_up(lead.key, lead.task, UNFIT)
            if not self.shelf.note(lead.bot, lead.user, lead.epoch, lead.key, lead.ttl_s * 1000):
                return self.shelf.give_up(lead.key, lead.task)
            waited = self.shelf.fill(lead.key, lead.task, body, lead.ttl_s * 1000)
            self._keep_meaning(lead)
            if self.shelf.epoch(lead.bot, lead.user) != lead.epoch:  # forgotten between the two: so is this
                self._drop(lead)
            return waited
        except errors.Unavailable as error:
            _log.warning("answer_not_kept", reason=str(error))
            return []

    def _keep_meaning(self, lead: Lead) -> None:
        if lead.meaning is None:
            return
        ttl = datetime.timedelta(seconds=lead.ttl_s)
        try:
            with self.sessions.begin() as session:
                meanings.add(session, lead.meaning.place, lead.user, lead.key, lead.meaning.vector, ttl)
        except (errors.Unavailable, DBAPIError) as error:  # the answer is paid for, and must not be lost for this
            _log.warning("meaning_not_kept", reason=type(error).__name__)

    def _drop(self, lead: Lead) -> None:
        self.shelf.drop(lead.key)
        if lead.meaning is not None:
            with self.sessions.begin() as session:
                meanings.drop(session, lead.bot, lead.key)

    def give_up(self, lead: Lead, *, failed: bool = True) -> list[str]:
        """End a flight whose call brought nothing; return the tasks that waited: the next of them asks.

        One that found no provider free has not `failed`: else, where all are limited, everybody would soon ask for himself."""
        try:
            return self.shelf.give_up(lead.key, lead.task, 1 if failed else 0)
        except errors.Unavailable:
            return []  # its lease lapses

    def filled(self, follow: Follow) -> bool:
        """Tell whether a task that has just been parked need not wait: what it waits for came before it was parked."""
        return self.shelf.settled(follow.key)

    def forget(self, bot: str, user: str) -> None:
        """Forget a user: the answers that are kept because of him, whoever was to have them, and what his questions meant."""
        self.shelf.forget(bot, user)
        with self.sessions.begin() as session:
            meanings.forget(session, bot, user)

    def stop(self) -> None:
        self.shelf.stop()
