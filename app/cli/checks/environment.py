"""Checks of the settings and of the machine's disk."""

from __future__ import annotations

import shutil
from pathlib import Path

from app.cli.checks.findings import Finding, Findings, Level
from app.core.settings import DEFAULT_SECRET_KEY, Settings

_DISK_WARNING, _DISK_PROBLEM = 2 * 2**30, 256 * 2**20
_SMALL_WARNING, _SMALL_PROBLEM = 4 * 2**20, 2**20
SECRET_OF_OWN = "python -c 'import secrets; print(secrets.token_urlsafe(48))'"


def production(given: Settings) -> Findings:
    """Look for what is fit for a desk and not for production. What is plainly unsafe, the settings refuse themselves."""
    if given.environment != "production":
        yield Finding("ok", "environment", f"{given.environment}; ENVIRONMENT=production turns the production rules on")
        return
    doubtful = {
        "DATABASE_URL is not set: the database of `repliq up` serves one machine, and nobody backs it up": not given.database_url,
        "REDIS_URL is not set: the Redis of `repliq up` serves one machine": not given.redis_url,
        "METRICS_TOKEN is not set: anybody who reaches the port reads the metrics": not given.metrics_token,
        "CORS_ORIGINS allows every web site": "*" in given.cors_origins,
        "WEBHOOK_ALLOW_PRIVATE lets clients reach your own network": given.webhook_allow_private,
        "ALLOW_VOLATILE_REDIS lets a restart of Redis lose tasks": given.allow_volatile_redis,
        "API_KEYS lie in the environment for good; keys of `repliq keys create` can be revoked": bool(given.api_keys),
    }
    for text, doubt in doubtful.items():
        if doubt:
            yield Finding("warning", "environment", text)
    yield Finding("ok", "environment", "production")


def secrets(given: Settings) -> Findings:
    """Look at the keys that are set."""
    from app.bots.bootstrap import MIN_KEY_LENGTH

    if given.secret_key == DEFAULT_SECRET_KEY:
        yield Finding("warning", "SECRET_KEY", "the one that everybody knows", f"make your own: {SECRET_OF_OWN}")
    if any(len(key) < MIN_KEY_LENGTH for key in given.api_keys):
        advice = f"each must have at least {MIN_KEY_LENGTH} characters"
        yield Finding("problem", "API_KEYS", "a key is too short, so that nothing starts", advice)


def disk(given: Settings) -> Findings:
    """Look how much room the data folder has."""
    usage = shutil.disk_usage(_existing(given.data_dir.absolute()))
    warning, problem = _DISK_WARNING, _DISK_PROBLEM
    if usage.total <= _DISK_PROBLEM and given.database_url and given.redis_url:
        # a container's, small on purpose: with the servers elsewhere no more than beat's schedule lies there
        warning, problem = _SMALL_WARNING, _SMALL_PROBLEM
    room = f"{usage.free / 2**30:.1f} GiB" if usage.free >= 2**30 else f"{usage.free / 2**20:.0f} MiB"
    level: Level = "problem" if usage.free < problem else "warning" if usage.free < warning else "ok"
    yield Finding(
        level, "disk", f"{room} free for {given.data_dir}/", "" if level == "ok" else "make room, or set DATA_DIR"
    )


def _existing(path: Path) -> Path:
    return path if path.exists() else _existing(path.parent)
