"""A bot's own keys of model providers: stored and forgotten here, and shown to nobody again."""

from __future__ import annotations

from app.bots import provider_keys, schemas
from app.http.api import Answer, Api
from app.http.context import Context

api = Api("providers")


@api.route("PUT", "/v1/providers/<provider>/key", scope="admin", body=schemas.ProviderKeySet,
           answers={200: schemas.ProviderKeyOut})  # fmt: skip
def store_key(call: Context, provider: str) -> Answer:
    """Store the bot's own key of a provider, encrypted. Every process asks with it within five seconds; nobody is shown it again."""
    name, key = call.runtime.providers.provider(provider).name, call.body.api_key.get_secret_value()
    with call.changing() as session:
        row = provider_keys.put(session, call.runtime.sealer, call.bot.id, name, key)
        stored = schemas.ProviderKeyOut.of(name, row)
    call.runtime.provider_keys.forget()
    return stored


@api.route("GET", "/v1/providers/<provider>/key", scope="admin", answers={200: schemas.ProviderKeyOut})
def get_key(call: Context, provider: str) -> Answer:
    """Tell whether the bot has stored a key of its own, since when, and what it ends with."""
    name = call.runtime.providers.provider(provider).name
    with call.runtime.sessions.begin() as session:
        return schemas.ProviderKeyOut.of(name, provider_keys.of_bot(session, call.bot.id).get(name))


@api.route("DELETE", "/v1/providers/<provider>/key", scope="admin", answers={204: "forgotten"})
def delete_key(call: Context, provider: str) -> Answer:
    """Forget the bot's own key; from then on the deployment's is used. Repeating it does no harm."""
    with call.changing() as session:
        provider_keys.remove(session, call.bot.id, provider)
    call.runtime.provider_keys.forget()
    return None, 204
