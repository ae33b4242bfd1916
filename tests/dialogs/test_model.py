"""Dialogs against a model, in any order of calls and losses: dialogs/create_dialog, append_messages, read_page, read_context,
read_dialog, change_dialog, move_dialog, delete_dialog, list_dialogs, purge_dialogs, mark_flushed, load."""

from __future__ import annotations

import itertools
import uuid
from collections.abc import Callable
from typing import Any

import sqlalchemy
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test

from app.core import errors, ids
from app.core.database import Sessions
from app.core.store import Scripts, Store
from app.dialogs.live import LiveDialogs
from app.dialogs.loading import Keeping
from app.dialogs.models import DialogMessage
from app.dialogs.packing import Message, Said
from tests.dialogs.model import Kept, Talk, Talks
from tests.dialogs.place import Place

LASTING = Keeping(ttl_ms=600_000, messages=4)
FLEETING = Keeping(ttl_ms=600_000, messages=4, lasting=False)
FOREVER_MS = 10**14
_mids = itertools.count()

said = st.builds(
    lambda role, tokens, meta, body: Said(f"msg_{next(_mids)}", role, tokens, meta, body),
    st.sampled_from(["user", "assistant", "system"]),
    st.integers(0, 50),
    st.sampled_from(["", '{"a":1}']),
    st.sampled_from(["", "a|b|c\n|", "Привіт 🙂", "x" * 300])
    | st.text(st.characters(exclude_characters="\0", codec="utf-8"), max_size=5),
)
batches = st.lists(said, min_size=1, max_size=6)
users = st.sampled_from(["tg:1", "b/ö"])
metas = st.sampled_from(["", '{"b":2}', '{"c":"|"}'])
texts = st.sampled_from(["", "one", "дві"])
versions = st.sampled_from(["any", "any", "any", "any", "right", "wrong"])
MOVES = ("archive", "restore", "restore", "fold") * 3 + ("delete",)


class Dialogs(RuleBasedStateMachine):
    """A bot's dialogs under any order of calls, flushes, purges and losses of single keys."""

    place: Place
    refs = Bundle("refs")

    def __init__(self) -> None:
        super().__init__()
        self.bot = str(uuid.uuid4())
        self.shard = ids.shard_of(self.bot, 16)
        self.model = Talks()
        self.made: list[str] = []
        self.blurred: set[str] = set()  # what lists may not show as it is, until it is flushed or used

    @initialize(target=refs, first=st.just([]) | batches)
    def start(self, first: list[Said]) -> str:
        self.place.store.call("FLUSHDB")
        return self._create("tg:1", "", "", first, LASTING)

    @precondition(lambda self: len(self.model.talks) < 3)
    @rule(
        target=refs, user=users, title=texts, meta=metas, first=st.just([]) | batches, lasting=st.sampled_from([1, 1, 1, 0])
    )  # fmt: skip
    def create(self, user: str, title: str, meta: str, first: list[Said], lasting: int) -> str:
        return self._create(user, title, meta, first, LASTING if lasting else FLEETING)

    def _create(self, user: str, title: str, meta: str, first: list[Said], keeping: Keeping) -> str:
        ref = self.live.create(self.bot, user, keeping, title=title, meta=meta, said=first)
        talk = self.model.talks[ref] = Talk(user, title, meta, keeping.lasting, keeping.messages)
        self.made.append(ref)
        if first:
            talk.append(first)
        talk.active_ms = self.live.header(self.bot, ref, self._keeping(ref)).active_ms
        return ref

    @rule(
        ref=refs,
        batch=batches,
        repeated=st.lists(st.integers(-4, -1), max_size=2),
        twice=st.booleans(),
        version=versions,
    )
    def append(self, ref: str, batch: list[Said], repeated: list[int], twice: bool, version: str) -> None:
        kept = self._kept(ref)
        batch = batch * (1 + twice) + [
            kept[place][1]._replace(body="other") for place in repeated if len(kept) >= -place
        ]
        self._append(ref, batch, self._version(ref, version))

    @rule(ref=refs, repeated=st.lists(st.integers(-4, -1), min_size=1, max_size=4))
    def append_again(self, ref: str, repeated: list[int]) -> None:
        kept = self._kept(ref)
        if batch := [kept[place][1] for place in repeated if len(kept) >= -place]:
            self._append(ref, batch, None)

    def _append(self, ref: str, batch: list[Said], version: int | None) -> None:
        times: list[int] = []

        def append() -> tuple[int, list[int]]:
            done = self.live.append(self.bot, ref, batch, self._keeping(ref), version=version)
            times.append(done.at_ms)
            return done.version, done.seqs

        self._same(ref, append, lambda talk: talk.append(batch, version))
        if times and times[0]:
            assert times[0] >= self.model.find(ref).active_ms, "time goes back"
            self.model.find(ref).active_ms = times[0]

    @rule(ref=refs, cursor=st.integers(0, 25), limit=st.integers(1, 8), ascending=st.booleans())
    def read_page(self, ref: str, cursor: int, limit: int, ascending: bool) -> None:
        self._same(
            ref,
            lambda: _kept(
                self.live.page(self.bot, ref, self._keeping(ref), cursor=cursor, limit=limit, ascending=ascending)
            ),
            lambda talk: talk.page(cursor, limit, ascending),
        )

    @rule(
        ref=refs, most=st.integers(0, 12), budget=st.just(0) | st.integers(1, 200), role=st.sampled_from(["", "user"])
    )
    def read_context(self, ref: str, most: int, budget: int, role: str) -> None:
        def read() -> tuple[Any, ...]:
            found = self.live.context(
                self.bot, ref, self._keeping(ref), max_messages=most, max_tokens=budget, first_role=role
            )
            of_all = found.version, found.count, found.total, found.last, found.summary, found.folded
            return _kept(found.messages), found.tokens, found.first, of_all

        def expect(talk: Talk) -> tuple[Any, ...]:
            window = talk.context(most, budget, role)
            of_all = talk.version, talk.count, talk.tokens, talk.seq, talk.summary, talk.folded
            return window, sum(said.tokens for _, said in window), window[0][0] if window else talk.seq + 1, of_all

        self._same(ref, read, expect)

    @rule(ref=refs, name=st.sampled_from(["title", "meta"]), title=texts, meta=metas, version=versions)
    def change(self, ref: str, name: str, title: str, meta: str, version: str) -> None:
        values, given = {name: title if name == "title" else meta}, self._version(ref, version)
        self._same(
            ref,
            lambda: self.live.change(self.bot, ref, self._keeping(ref), values, version=given),
            lambda talk: talk.change(values, given),
        )

    @rule(ref=refs, how=st.sampled_from(MOVES), up_to=st.integers(1, 12))
    def move(self, ref: str, how: str, up_to: int) -> None:
        bot, live, keeping = self.bot, self.place.live, self._keeping(ref)
        if how == "archive":
            self._same(ref, lambda: live.archive(bot, ref, keeping), lambda talk: talk.move("archived"))
        elif how == "restore":
            self._same(ref, lambda: live.restore(bot, ref, keeping), lambda talk: talk.move("active"))
        elif how == "fold":
            self._same(ref, lambda: live.fold(bot, ref, keeping, "a|b", up_to), lambda talk: talk.fold("a|b", up_to))
        else:
            self._same(ref, lambda: live.delete(bot, ref, keeping), lambda talk: None)
            self.model.talks.pop(ref, None)

    @rule(user=st.none() | users, state=st.sampled_from([None, "active", "archived"]), limit=st.integers(1, 5))
    def page_through(self, user: str | None, state: str | None, limit: int) -> None:
        found: list[str] = []
        cursor: str | None = None
        while True:
            page = self.place.lists.page(self.bot, user, state, cursor, limit)
            assert len(page.data) <= limit
            for header in page.data:
                assert header.ref in self.blurred or self._header(header) == self._expected(self.model.find(header.ref))
                found.append(header.ref)
            cursor = page.next_cursor
            if cursor is None:
                break
        expected = self.model.listed(user, state)
        assert [ref for ref in found if ref not in self.blurred] == [ref for ref in expected if ref not in self.blurred]

    @rule(what=st.sampled_from(["flush", "purge", "purge nothing"]))
    def upkeep(self, what: str) -> None:
        if what == "flush":
            self.place.flush(self.shard)
            self.blurred.clear()
        elif what == "purge":
            self.live.purge(self.bot, 0, FOREVER_MS)
        else:
            assert self.live.purge(self.bot, FOREVER_MS, FOREVER_MS) == (0, 0)
        self._lose_words()

    @rule(ref=refs, which=st.integers(0, 4))
    def lose(self, ref: str, which: int) -> None:
        """Lose one key."""
        keys = self.place.keys
        names = [
            *keys.of_dialog(self.shard, self.bot, ref),
            *(keys.of_bot(name, self.shard, self.bot) for name in ("dialogs_here", "dialogs_dirty")),
        ]
        if self.place.store.call("DEL", names[which]):
            self.blurred.update(self.made if which == 4 else {ref})
            self._lose_words(ref if which < 3 else "")

    def _lose_words(self, torn: str = "") -> None:
        """Forget the words (and their summary) that were in Redis alone, of dialogs that have left it or were torn."""
        for ref, talk in self.model.talks.items():
            head = self.place.keys.of_dialog(self.shard, self.bot, ref)[0]
            if not talk.lasting and (ref == torn or not self.place.store.call("EXISTS", head)):
                self.live.header(self.bot, ref, FLEETING)  # which puts it in place again
                talk.said, talk.summary, talk.folded = [], "", 0

    def teardown(self) -> None:
        """Compare everything, the second time with what PostgreSQL has alone."""
        for _ in range(2):
            for ref in self.model.talks:
                self._whole(ref)
            self.place.flush(self.shard)
            for ref in self.model.talks:
                self.place.store.call("DEL", *self.place.keys.of_dialog(self.shard, self.bot, ref))
            self._lose_words()
        with self.place.sessions.begin() as session:
            for ref, talk in self.model.talks.items():
                mine = sqlalchemy.select(DialogMessage.seq).where(DialogMessage.dialog_id == ids.uuid_in(ref))
                seqs = list(session.scalars(mine.order_by(DialogMessage.seq)))
                assert seqs == ([seq for seq, _ in talk.said] if talk.lasting else [])

    @property
    def live(self) -> LiveDialogs:
        return self.place.live

    def _whole(self, ref: str) -> None:
        self._same(
            ref,
            lambda: self._header(self.live.header(self.bot, ref, self._keeping(ref))),
            lambda talk: self._expected(talk),
        )
        self._same(
            ref,
            lambda: _kept(self.live.page(self.bot, ref, self._keeping(ref), cursor=0, limit=200, ascending=True)),
            lambda talk: talk.said,
        )

    def _same(self, ref: str, call: Callable[[], Any], expect: Callable[[Talk], Any]) -> None:
        """Do the same to the dialog and to its model; both must return, or refuse, the same."""
        assert _outcome(call) == _outcome(lambda: expect(self.model.find(ref)))

    def _kept(self, ref: str) -> list[Kept]:
        """Return what Redis has for certain: ids of messages before these may have been forgotten."""
        return self.model.find(ref).said[-4:] if ref in self.model.talks else []

    def _keeping(self, ref: str) -> Keeping:
        return LASTING if ref not in self.model.talks or self.model.find(ref).lasting else FLEETING

    def _version(self, ref: str, how: str) -> int | None:
        version = self.model.find(ref).version if ref in self.model.talks else 1
        return {"any": None, "right": version, "wrong": version - 1}[how]

    @staticmethod
    def _header(header: Any) -> tuple[Any, ...]:
        return (
            header.user, header.title, header.state, header.meta, header.count, header.tokens, header.version, header.seq, header.active_ms
        )  # fmt: skip

    @staticmethod
    def _expected(talk: Talk) -> tuple[Any, ...]:
        return (
            talk.user, talk.title, talk.state, talk.meta, talk.count, talk.tokens, talk.version, talk.seq, talk.active_ms
        )  # fmt: skip


def _outcome(call: Callable[[], Any]) -> Any:
    """Return what a call returns, or the kind of its refusal."""
    try:
        return call()
    except errors.RepliqError as refused:
        return type(refused)


def _kept(messages: list[Message]) -> list[Kept]:
    return [(one.seq, Said(one.mid, one.role, one.tokens, one.meta, one.body)) for one in messages]


def check_dialogs(place: Place, *, examples: int, steps: int = 40) -> None:
    """Lead dialogs through random lives on a place's server."""
    machine = type("BoundDialogs", (Dialogs,), {"place": place})
    checks = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.filter_too_much]
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=examples,
            stateful_step_count=steps,
            deadline=None,
            suppress_health_check=checks,
            report_multiple_bugs=False,
            phases=[Phase.generate, Phase.shrink],
        ),
    )


def test_dialogs_are_what_a_model_says_whatever_redis_loses(store: Store, scripts: Scripts, sessions: Sessions) -> None:
    check_dialogs(Place(store, scripts, sessions), examples=60)
