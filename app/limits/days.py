"""A user's day: how much of it is used, and giving it back to Redis from PostgreSQL and the outbox when Redis lost it."""

from __future__ import annotations

from app.core import clock, errors, ids, logs, texts
from app.core.database.engine import Sessions
from app.core.outbox import Outbox
from app.core.store import Keys, Scripts
from app.limits import seeds
from app.limits.standing import Limits, Standing, counts_for

_log = logs.get(__name__)
_ROUNDS = 5
LAPSE_MS = 960_000


class Days:
    """The days of all users."""

    def __init__(self, scripts: Scripts, keys: Keys, outbox: Outbox, sessions: Sessions) -> None:
        self.scripts = scripts
        self.keys = keys
        self.outbox = outbox
        self.sessions = sessions

    def standing(self, shard: int, bot: str, user: str, limits: Limits) -> Standing:
        """Tell how a user's day stands."""
        if not counts_for(user, limits):
            day = clock.local_day(limits.zone)
            return Standing(day_resets_ms=day.ends_ms - clock.now_ms(), day_resets_at=day.ends_ms)
        zone = ""
        for _ in range(_ROUNDS):
            now = clock.now_ms() + self.scripts.shift_ms
            day = clock.local_day(zone or limits.zone, now)
            reply = self.scripts.run(
                "limits/peek", self._keys(shard, bot, user, day)[:3], [zone, day.starts_ms, day.ends_ms]
            )
            if reply[0] == 1:
                limit = int(reply[2]) if reply[2] else limits.daily
                return Standing(limit, reply[1], day.ends_ms - now, day.ends_ms)
            if reply[0] == -2:
                self.seed(shard, bot, user, day, LAPSE_MS)
            elif reply[0] == -3:
                zone = reply[1].decode()
        raise errors.Unavailable(
            "The user's day could not be read; the clocks of this machine and of Redis may differ."
        )

    def seed(self, shard: int, bot: str, user: str, day: clock.LocalDay, lapse_ms: int) -> None:
        """Give Redis what it lacks of a user. Without PostgreSQL a day can still begin, where this Redis has surely lost nothing of it."""
        try:
            # The outbox first: what leaves it meanwhile is in PostgreSQL by then, so that nothing falls between the two.
            undrained = [fields for _, fields in self.outbox.pending("history", shard)]
            with self.sessions.begin() as session:
                profile = seeds.profile(session, bot, user, shard=shard)
                own = (
                    clock.local_day(profile.zone, day.starts_ms if profile.zone == day.zone else None)
                    if profile.zone
                    else day
                )
                counted, open_ = seeds.count_day(session, bot, user, own.date, undrained, shard=shard)
        except errors.Unavailable:
            if not self._whole_since(shard, bot, user, day):
                raise
            _log.warning("day_begun_without_database", bot=bot)
            self.scripts.run("limits/seed_user", self._keys(shard, bot, user, day), ["", "", "", "", 0, lapse_ms])
            return
        dialog = self._open_dialog(shard, bot, profile.dialog_ref)
        limit = "" if profile.daily_limit is None else profile.daily_limit
        args = [profile.zone or "", limit, profile.language or "", dialog, counted, lapse_ms, *open_]
        self.scripts.run("limits/seed_user", self._keys(shard, bot, user, own), args)

    def change(self, shard: int, bot: str, user: str) -> None:
        """Bring a user's profile up to date after a change in PostgreSQL has been committed."""
        with self.sessions.begin() as session:
            profile = seeds.profile(session, bot, user, shard=shard)
        limit = "" if profile.daily_limit is None else profile.daily_limit
        args = [profile.zone or "", limit, profile.language or "", profile.dialog_ref or ids.new_ref(shard)]
        self.scripts.run("limits/change_user", [self.keys.of_user("profile", shard, bot, user)], args)

    def _open_dialog(self, shard: int, bot: str, ref: str | None) -> str:
        """Return the dialog to go on with: the latest, unless it was closed a moment ago, and PostgreSQL does not know yet."""
        state = self.scripts.store.call("HGET", self.keys.of_dialog(shard, bot, ref)[0], "st") if ref else None
        return ids.new_ref(shard) if ref is None or state in (b"archived", b"deleted") else ref

    def language(self, shard: int, bot: str, user: str) -> str | None:
        """Return the language that a user is known to want."""
        try:
            known = self.scripts.store.call("HGET", self.keys.of_user("profile", shard, bot, user), "language")
        except errors.Unavailable:
            return None
        return known.decode() if known else None

    def language_for(self, shard: int, bot: str, user: str, asked: str | None, default: str | None) -> str:
        """Choose the language of a text for a user: the request's, else his own, else the bot's."""
        return texts.choose(asked, self.language(shard, bot, user), default)

    def _keys(self, shard: int, bot: str, user: str, day: clock.LocalDay) -> list[str]:
        counters = self.keys.of_day(shard, bot, user, day.date.strftime("%Y%m%d"))
        return [self.keys.of_user("profile", shard, bot, user), *counters, self.keys.of_shard("born", shard)]

    def _whole_since(self, shard: int, bot: str, user: str, day: clock.LocalDay) -> bool:
        """Tell whether Redis has kept everything since the day began: then a counter that is missing is one that never was."""
        with self.scripts.store.borrow() as client:
            born = client.get(self.keys.of_shard("born", shard))
            known = client.exists(self.keys.of_user("profile", shard, bot, user))
        return bool(known) and born is not None and int(float(born)) <= day.starts_ms
