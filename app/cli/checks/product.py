"""Checks of what works on top of the servers: broker, workers, beat, API, provider."""

from __future__ import annotations

import contextlib
import importlib
import time
from typing import TYPE_CHECKING, Any

from app.cli import probes, target
from app.cli.apiclient import ApiClient
from app.cli.checks.findings import Finding, Findings, ms
from app.core import errors
from app.core.settings import Settings

if TYPE_CHECKING:
    from app.llm.answers import Provider

_ALIVE_MS = 10_000
_BEAT_PATIENCE_S = 6.0
_PROVIDER_S = 10.0
_TIMEOUT_S = 5.0


def broker(given: Settings) -> Findings:
    """Look whether tasks can be sent."""
    if given.broker_is_store:
        yield Finding("ok", "broker", "the store's own Redis, to which the scripts push")
        return
    from kombu.exceptions import OperationalError

    kombu: Any = importlib.import_module("kombu")
    started = time.perf_counter()
    try:
        with kombu.Connection(given.broker_url, connect_timeout=3) as connection:
            connection.ensure_connection(max_retries=1, interval_start=0, timeout=_TIMEOUT_S)
            shown = connection.as_uri()
    except (OperationalError, OSError) as error:
        yield Finding("problem", "broker", f"cannot be reached: {error}", "start it, or mend CELERY_BROKER_URL")
        return
    yield Finding("ok", "broker", f"{shown}, connected in {ms(time.perf_counter() - started)}")


def events(given: Settings) -> Findings:
    """Look whether events can be sent to other programs, where they are to be."""
    if not given.message_broker_url:
        return
    from kombu.exceptions import OperationalError

    kombu: Any = importlib.import_module("kombu")
    started = time.perf_counter()
    try:
        with kombu.Connection(given.message_broker_url, connect_timeout=3) as connection:
            connection.ensure_connection(max_retries=1, interval_start=0, timeout=_TIMEOUT_S)
            shown = connection.as_uri()
    except (OperationalError, OSError) as error:
        advice = "start it, or mend MESSAGE_BROKER_URL; events wait in Redis meanwhile"
        yield Finding("warning", "events", f"the broker that carries them cannot be reached: {error}", advice)
        return
    yield Finding("ok", "events", f"{shown}, connected in {ms(time.perf_counter() - started)}")


def workers(given: Settings) -> Findings:
    """Look for workers, for beat's last run, and for rows that PostgreSQL refused."""
    from app.core import presence, queue
    from app.core.store import Keys, Store

    store = Store(given.redis_url, timeout_s=_TIMEOUT_S)
    keys = Keys(given.redis_prefix, given.redis_shards, queue.prefix(given))
    try:
        found = presence.seen(store, keys, _ALIVE_MS)
        if found:
            yield Finding("ok", "workers", f"{len(found)} seen in the last 10 s: {', '.join(sorted(found))}")
            yield from _beat(store, keys)
        else:
            yield Finding("problem", "workers", "none seen in the last 10 s: nobody answers", "repliq worker")
        yield from _refused(store, keys)
    except errors.Unavailable:
        yield Finding("problem", "workers", "cannot be looked for without Redis")
    finally:
        store.close()


def _beat(store: Any, keys: Any) -> Findings:
    """Wait for a sign of beat: a run of its most frequent entry, which a worker has taken."""
    key = keys.of_shard("once", 0) + "drain_outboxes"
    until = time.monotonic() + _BEAT_PATIENCE_S
    while time.monotonic() < until:
        if store.call("EXISTS", key):
            yield Finding("ok", "beat", "its last run was taken a moment ago")
            return
        time.sleep(0.2)
    text = f"no sign of it in {_BEAT_PATIENCE_S:.0f} s: lost tasks and old sessions are not swept"
    yield Finding("warning", "beat", text, "repliq beat (and a worker that serves the queue `maintenance`)")


def _refused(store: Any, keys: Any) -> Findings:
    from app.core import rejects

    refused = rejects.counts(store, keys)
    if refused:
        text = f"{sum(refused.values())} rows were refused by PostgreSQL and put aside ({', '.join(refused)})"
        yield Finding("warning", "outbox", text, "repliq events redrive --outbox --dry-run tells why")


def api(given: Settings) -> Findings:
    """Ask the API of this machine whether it is ready."""
    url = probes.origin(given.host, given.port)
    started = time.perf_counter()
    try:
        answer = ApiClient(url, "", timeout_s=_TIMEOUT_S).call("GET", "/health/ready")
    except errors.Unavailable as error:
        yield Finding("problem", "API", str(error), "make run, or repliq api; HOST and PORT say where it is looked for")
        return
    took = time.perf_counter() - started
    wrong = {name: check for name, check in answer.json.get("checks", {}).items() if check.get("status") != "ok"}
    for name, check in wrong.items():
        yield Finding("problem", "API", f"says of {name}: {check.get('reason')}")
    if answer.status == 200:
        yield Finding("ok", "API", f"ready at {url}, answered in {ms(took)}")
    elif not wrong:
        text = f"what listens at {url} answered {answer.status}; it is not Repliq, or not ready"
        yield Finding("problem", "API", text, "set PORT, or stop the other program")


def provider(given: Settings) -> Findings:
    """Ask the providers for their models; without a key, the API for those of the simulator."""
    if given.llm_config:
        yield from _of_file(given)
        return
    if not given.openai_api_key:
        yield from _models_of_api(given)
        return
    from app.llm.answers import Provider
    from app.llm.client import Client

    started = time.perf_counter()
    asked = Provider("openai", given.openai_base_url, given.openai_api_key, _PROVIDER_S)
    try:
        models = Client().models(asked, _PROVIDER_S)
    except errors.UpstreamError as error:
        yield _of_provider(error, given)
        return
    took = time.perf_counter() - started
    yield Finding("ok", "provider", f"{given.openai_base_url} lists {len(models)} models, answered in {ms(took)}")
    if models and all(model.get("id") != given.default_model for model in models):
        yield Finding("warning", "provider", f"it does not list {given.default_model}", "set DEFAULT_MODEL")


def _of_file(given: Settings) -> Findings:
    """Read the providers file, and ask every provider of it."""
    from app.llm import providers

    try:
        found = providers.read(given)
    except errors.ConfigurationError as error:
        for line in str(error).splitlines():
            yield Finding("problem", "providers", line)
        return
    assert found is not None
    counts = f"providers: {len(found.providers)}, models: {len(found.models)}"
    yield Finding(
        "ok", "providers", f"{given.llm_config} can be read ({counts}); who names no model gets {found.default}"
    )
    for warning in found.warnings:
        yield Finding("warning", "providers", warning)
    targets = [
        target for model in found.models.values() for target in (*model.chain, *sum(model.fallbacks.values(), ()))
    ]
    for asked in found.providers.values():
        yield _of_one(asked, sorted({target.model for target in targets if target.provider.name == asked.name}))


def _of_one(asked: Provider, wanted: list[str]) -> Finding:
    """Ask a provider of the file for its models."""
    from app.llm import kinds
    from app.llm.client import Client

    if not asked.api_key and kinds.of(asked.kind).needs_key:
        text = f"{asked.name} has no key in the file: only bots that have stored their own can use it"
        return Finding("warning", "provider", text, "api_key_env in the file, or PUT /v1/providers/{name}/key")
    started = time.perf_counter()
    try:
        with contextlib.closing(Client()) as client:
            models = client.models(asked, _PROVIDER_S)
    except errors.UpstreamModelNotFound:
        return Finding("warning", "provider", f"{asked.name} ({asked.base_url}) lists no models", "try it: repliq chat")
    except errors.UpstreamError as error:
        if error.status in (401, 403):
            text = f"{asked.name} ({asked.base_url}) refuses the key ({error.status})"
            return Finding("problem", "provider", text, "mend its api_key_env or api_key")
        return Finding(
            "problem", "provider", f"{asked.name} ({asked.base_url}): {error}", "mend base_url, or the network"
        )
    took = time.perf_counter() - started
    ids = [str(model.get("id")) for model in models]
    listed = {*ids, *(name.removeprefix("models/").removesuffix(":latest") for name in ids)}  # Google's, and Ollama's
    missing = [name for name in wanted if name not in listed]
    if missing and listed and asked.kind != "azure":  # which lists models, not the deployments that it is asked for
        text = f"{asked.name} ({asked.base_url}) does not list {', '.join(missing)}"
        return Finding("warning", "provider", text, "mend the name in the chain, or make the model available there")
    return Finding(
        "ok", "provider", f"{asked.name} ({asked.base_url}) lists {len(models)} models, answered in {ms(took)}"
    )


def _of_provider(error: errors.UpstreamError, given: Settings) -> Finding:
    if error.status in (401, 403):
        text = f"{given.openai_base_url} refuses the key ({error.status})"
        return Finding(
            "problem",
            "provider",
            text,
            "mend OPENAI_API_KEY; it must be of the very service that OPENAI_BASE_URL names",
        )
    if isinstance(error, errors.UpstreamModelNotFound):  # some servers list no models, and answer nevertheless
        return Finding("warning", "provider", f"{given.openai_base_url} lists no models", "try it: repliq chat")
    return Finding("problem", "provider", str(error), "mend OPENAI_BASE_URL, or the network")


def _models_of_api(given: Settings) -> Findings:
    text = "OPENAI_API_KEY is not set: under `repliq up` the bundled simulator answers"
    with contextlib.suppress(errors.RepliqError):
        client = ApiClient(probes.origin(given.host, given.port), target.api_key(given), timeout_s=_TIMEOUT_S)
        answer = client.call("GET", "/v1/models")
        if answer.status == 200:
            names = [str(model.get("id")) for model in answer.json.get("data", [])]
            text += f"; the API lists {', '.join(names[:5])}{' …' if len(names) > 5 else ''}"
    yield Finding("ok" if given.environment != "production" else "problem", "provider", text)
