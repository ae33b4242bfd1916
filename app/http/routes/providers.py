"""Providers: how it stands with each of them, as the bot has it."""

from __future__ import annotations

from app.bots import provider_keys
from app.bots.schemas import ProviderKeyOut
from app.http.api import Answer, Api
from app.http.context import Context
from app.llm import schemas

api = Api("providers")


@api.route("GET", "/v1/providers", scope="admin", answers={200: schemas.ProvidersPage})
def list_providers(call: Context) -> Answer:
    """List the providers with their limits, their models' circuits, and the bot's own key of each. There is one page."""
    providers = call.runtime.providers
    with call.runtime.sessions.begin() as session:
        rows = provider_keys.of_bot(session, call.bot.id)
        keys = {name: ProviderKeyOut.of(name, rows.get(name)) for name in providers.names()}
    states = call.runtime.gate.states(schemas.as_asked(providers.all(), call.bot.id, rows))
    return schemas.page(map(providers.provider, keys), states, keys)
