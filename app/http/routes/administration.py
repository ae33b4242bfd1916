"""Administration: an organisation's bots and their keys, and the users of a bot."""

from __future__ import annotations

import contextlib

import pydantic

from app.bots import announce, bots, keys, models, schemas, users
from app.bots.schemas import checked_user
from app.chat import personal
from app.core import errors, ids
from app.core.paging import PageQuery
from app.http.api import Answer, Api
from app.http.context import Context
from app.prompts import versions

api = Api("administration")
_MOST_CHARACTERS = 128


class BotsPage(pydantic.BaseModel):
    """A page of bots, newest first."""

    model_config = pydantic.ConfigDict(from_attributes=True)

    data: list[schemas.BotOut]
    next_cursor: str | None


class KeysPage(pydantic.BaseModel):
    """A page of keys, newest first, revoked ones too."""

    model_config = pydantic.ConfigDict(from_attributes=True)

    data: list[schemas.KeyOut]
    next_cursor: str | None


class UsersPage(pydantic.BaseModel):
    """A page of users, newest first."""

    model_config = pydantic.ConfigDict(from_attributes=True)

    data: list[schemas.UserOut]
    next_cursor: str | None


@api.route("POST", "/v1/bots", scope="org", body=schemas.BotCreate, once=True, answers={201: schemas.BotOut})
def create_bot(call: Context) -> Answer:
    """Make a bot; what is not set follows the defaults."""
    _check_urls(call, call.body.settings)
    with call.changing() as session:
        bot = schemas.BotOut.model_validate(bots.create(session, call.principal.organisation, call.body))
        versions.expect(session, str(bot.id), call.body.settings)
    return bot, 201, {"Location": f"/v1/bots/{bot.id}"}


@api.route("GET", "/v1/bots", scope="org", query=PageQuery, answers={200: BotsPage})
def list_bots(call: Context) -> Answer:
    """List the organisation's bots, newest first."""
    with call.runtime.sessions.begin() as session:
        page = bots.list_page(session, call.principal.organisation, call.query.cursor, call.query.limit)
        return BotsPage.model_validate(page)


@api.route("GET", "/v1/bots/<bot_id>", scope="org", answers={200: schemas.BotOut})
def get_bot(call: Context, bot_id: str) -> Answer:
    """Read a bot."""
    with call.runtime.sessions.begin() as session:
        return schemas.BotOut.model_validate(bots.get(session, call.principal.organisation, bot_id))


@api.route("PATCH", "/v1/bots/<bot_id>", scope="org", body=schemas.BotChange, answers={200: schemas.BotOut})
def change_bot(call: Context, bot_id: str) -> Answer:
    """Change a bot's name and the settings that are given; every process follows within a second."""
    _check_urls(call, call.body.settings)
    with call.changing() as session:
        bot = schemas.BotOut.model_validate(bots.change(session, call.principal.organisation, bot_id, call.body))
        versions.expect(session, str(bot.id), call.body.settings)
    _tell_bot(call, str(bot.id))
    return bot


def _check_urls(call: Context, settings: schemas.BotSettings) -> None:
    """Refuse a receiver that nothing may be delivered to, and a server that is not to be asked."""
    personal.check_url(call.runtime.receivers, settings)
    if settings.alerts_webhook_url is not None:
        name = "settings.alerts_webhook_url"
        try:
            call.runtime.receivers.check(settings.alerts_webhook_url)
        except errors.WebhookUrlRefused as error:
            raise errors.WebhookUrlRefused(str(error).replace("webhook_url", name, 1), param=name) from None


@api.route("DELETE", "/v1/bots/<bot_id>", scope="org", answers={204: "deleted, its keys revoked"})
def delete_bot(call: Context, bot_id: str) -> Answer:
    """Delete a bot and revoke its keys; its history stays until its time is over."""
    with call.changing() as session:
        bot = str(bots.get(session, call.principal.organisation, bot_id).id)
        bots.delete(session, call.principal.organisation, bot)
    _tell_bot(call, bot)
    return None, 204


@api.route("GET", "/v1/bots/<bot_id>/webhook-secret", scope="org", answers={200: schemas.WebhookSecretOut})
def get_webhook_secret(call: Context, bot_id: str) -> Answer:
    """Read the secret that a bot's webhooks are signed with, for those who receive them."""
    with call.changing() as session:
        return _webhook_secret(bots.webhook_secret(session, call.principal.organisation, bot_id))


@api.route("POST", "/v1/bots/<bot_id>/webhook-secret/rotate", scope="org", once=True, secret=("secret",),
           answers={200: schemas.WebhookSecretOut})  # fmt: skip
def rotate_webhook_secret(call: Context, bot_id: str) -> Answer:
    """Give a bot a new secret; for 24 h its webhooks are signed with the one before, too. Twice is rid of a stolen one at once."""
    with call.changing() as session:
        found = _webhook_secret(bots.rotate_webhook_secret(session, call.principal.organisation, bot_id))
    _tell_bot(call, str(found.bot_id))
    return found


def _webhook_secret(bot: models.Bot) -> schemas.WebhookSecretOut:
    return schemas.WebhookSecretOut(
        bot_id=bot.id, secret=bot.webhook_secret, previous_valid_until=bot.webhook_secret_before_until
    )


def _tell_bot(call: Context, bot: str) -> None:
    """Make every process forget a bot: this one at once, so that the caller's next request sees what he did."""
    call.runtime.directory.forget("bot", bot)
    announce.bot_changed(call.runtime.store, call.runtime.keys, bot)


@api.route("POST", "/v1/bots/<bot_id>/keys", scope="org", body=schemas.KeyCreate, once=True, secret=("key",),
           answers={201: schemas.KeyCreated})  # fmt: skip
def create_key(call: Context, bot_id: str) -> Answer:
    """Make a key for a bot. The key itself is shown this once; a replay is without it."""
    owner = call.principal.organisation
    with call.changing() as session:
        bot = str(bots.get(session, owner, bot_id).id)
        row, key = keys.create(session, call.runtime.settings.secret_key, owner, bot, call.body)
        made = schemas.KeyCreated.model_validate({**schemas.KeyOut.model_validate(row).model_dump(), "key": key})
    return made, 201, {"Location": f"/v1/bots/{bot}/keys/{made.id}"}


@api.route("GET", "/v1/bots/<bot_id>/keys", scope="org", query=PageQuery, answers={200: KeysPage})
def list_keys(call: Context, bot_id: str) -> Answer:
    """List a bot's keys: prefix, scopes, last use, end; revoked ones too."""
    owner = call.principal.organisation
    with call.runtime.sessions.begin() as session:
        bot = str(bots.get(session, owner, bot_id).id)
        return KeysPage.model_validate(keys.list_page(session, owner, bot, call.query.cursor, call.query.limit))


@api.route(
    "PATCH", "/v1/bots/<bot_id>/keys/<key_id>", scope="org", body=schemas.KeyChange, answers={200: schemas.KeyOut}
)
def change_key(call: Context, bot_id: str, key_id: str) -> Answer:
    """Change a key's budgets; every process follows within a second."""
    owner = call.principal.organisation
    with call.changing() as session:
        bot = str(bots.get(session, owner, bot_id).id)
        row = keys.change(session, owner, bot, key_id, call.body)
        digest, changed = row.digest, schemas.KeyOut.model_validate(row)
    call.runtime.directory.forget("key", digest.hex())
    announce.key_revoked(call.runtime.store, call.runtime.keys, digest)  # forgotten everywhere, and read anew
    return changed


@api.route("POST", "/v1/bots/<bot_id>/keys/<key_id>/rotate", scope="org", body=schemas.KeyRotate, once=True, secret=("key",),
           answers={201: schemas.KeyRotated})  # fmt: skip
def rotate_key(call: Context, bot_id: str, key_id: str) -> Answer:
    """Put a new key in a key's place; the one before is good for the grace, 24 h by default. The new one is shown this once."""
    owner, secret_key = call.principal.organisation, call.runtime.settings.secret_key
    with call.changing() as session:
        bot = str(bots.get(session, owner, bot_id).id)
        row, key, old = keys.rotate(session, secret_key, owner, bot, key_id, call.body.grace_seconds)
        shown = schemas.KeyOut.model_validate(row).model_dump()
        before = {"previous_id": old.id, "previous_expires_at": old.expires_at}
        made = schemas.KeyRotated.model_validate({**shown, "key": key, **before})
        digest = old.digest
    call.runtime.directory.forget("key", digest.hex())
    # Without Redis all look again within a second anyway, and the new key is to be had now or never.
    with contextlib.suppress(errors.Unavailable):
        announce.key_revoked(call.runtime.store, call.runtime.keys, digest)
    return made, 201, {"Location": f"/v1/bots/{bot}/keys/{made.id}"}


@api.route("DELETE", "/v1/bots/<bot_id>/keys/<key_id>", scope="org", answers={204: "revoked"})
def revoke_key(call: Context, bot_id: str, key_id: str) -> Answer:
    """Revoke a key: no process takes it a second later. Repeating it does no harm."""
    owner = call.principal.organisation
    with call.changing() as session:
        bot = str(bots.get(session, owner, bot_id).id)
        digest = keys.revoke(session, owner, bot, key_id).digest
    call.runtime.directory.forget("key", digest.hex())
    announce.key_revoked(call.runtime.store, call.runtime.keys, digest)
    return None, 204


@api.route("GET", "/v1/users", scope="admin", query=PageQuery, answers={200: UsersPage})
def list_users(call: Context) -> Answer:
    """List the bot's users, newest first."""
    with call.runtime.sessions.begin() as session:
        return UsersPage.model_validate(users.list_page(session, call.bot.id, call.query.cursor, call.query.limit))


# A user's name may hold slashes, and he too must be within reach of the right to erasure.
@api.route("GET", "/v1/users/<path:user_id>", scope="admin", answers={200: schemas.UserOut})
def get_user(call: Context, user_id: str) -> Answer:
    """Read a user: what is set for him, and when he was last seen."""
    with call.runtime.sessions.begin() as session:
        return schemas.UserOut.model_validate(users.get(session, call.bot.id, _user(user_id)))


@api.route("PATCH", "/v1/users/<path:user_id>", scope="admin", body=schemas.UserChange, answers={200: schemas.UserOut})
def change_user(call: Context, user_id: str) -> Answer:
    """Set a user's language, zone, daily limit, preferences; null goes back to the bot's. His next request has it."""
    bot, user = call.bot.id, _user(user_id)
    with call.changing() as session:
        changed = schemas.UserOut.model_validate(users.change(session, bot, user, call.body))
    call.runtime.days.change(ids.shard_of(bot, call.runtime.settings.redis_shards), bot, user)
    return changed


@api.route("DELETE", "/v1/users/<path:user_id>", scope="admin", answers={204: "forgotten"})
def delete_user(call: Context, user_id: str) -> Answer:
    """Forget a user: everything of his (the right to erasure). What was counted stays, under a pseudonym."""
    call.runtime.erasure.erase(call.bot.id, _user(user_id), call.by)
    return None, 204


def _user(user_id: str) -> str:
    """Take a user of a path as he is written: digits alone are no Telegram id here, `tg:123` is one."""
    try:
        known = checked_user(user_id)
    except ValueError as error:
        raise errors.InvalidRequest(f"user_id: {error}", param="user_id") from None
    if not known or len(known) > _MOST_CHARACTERS:
        raise errors.InvalidRequest("user_id must have 1 to 128 characters.", param="user_id")
    return known
