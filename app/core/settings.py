"""The settings: environment variables and `.env`, read once through one typed object. Nothing else reads the environment."""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import dotenv
import pydantic
import pydantic_settings
from pydantic import Field

from app.core import errors

DEFAULT_SECRET_KEY = "repliq-development-secret-change-me"  # refused in production
CommaSeparated = Annotated[list[str], pydantic_settings.NoDecode]


class Settings(pydantic_settings.BaseSettings):
    """Every setting with its default; `.env.example` lists them all and a test compares the two."""

    model_config = pydantic_settings.SettingsConfigDict(
        env_file=".env", extra="ignore", frozen=True, env_ignore_empty=True
    )

    environment: Literal["development", "staging", "production"] = "development"
    debug: bool = False
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"
    log_format: Literal["json", "console"] = "json"

    database_url: str = ""
    analytics_database_url: str = ""
    database_pool_size: int = Field(5, ge=1, le=1000)
    database_max_overflow: int = Field(15, ge=0, le=1000)
    redis_url: str = ""
    redis_prefix: str = Field("rq", pattern=r"^[a-z0-9_-]{1,32}$")
    redis_shards: int = Field(16, ge=1, le=100)
    allow_volatile_redis: bool = False
    celery_broker_url: str = ""
    message_broker_url: str = ""
    secret_key: str = Field(DEFAULT_SECRET_KEY, min_length=16)
    secret_key_before: CommaSeparated = []

    openai_api_key: str = ""
    openai_base_url: str = "https://api.openai.com/v1"
    llm_config: str = ""
    default_model: str = "gpt-4o-mini"
    system_prompt_file: str = ""
    llm_timeout_seconds: float = Field(50, gt=0, le=3600)
    llm_max_attempts: int = Field(3, ge=1, le=20)

    daily_limit: int = Field(30, ge=0)
    rate_limit_per_minute: int = Field(0, ge=0)
    user_window: int = Field(4, ge=1, le=10_000)
    bot_window: int = Field(0, ge=0)
    context_exchanges: int = Field(5, ge=0, le=50)
    sync_wait_seconds: float = Field(60, ge=3, le=3600)
    task_deadline_seconds: float = Field(900, ge=5, le=86_400)
    queue_max_depth: int = Field(10_000, ge=1)

    api_processes: int = Field(0, ge=0, le=256)
    api_threads: int = Field(640, ge=65, le=10_000)
    worker_processes: int = Field(0, ge=0, le=256)
    worker_threads: int = Field(100, ge=1, le=2_000)
    host: str = "127.0.0.1"
    port: int = Field(8000, ge=1, le=65535)
    trusted_proxies: int = Field(0, ge=0, le=10)
    data_dir: Path = Path("var")
    secrets_dir: str = ""
    cors_origins: CommaSeparated = []
    api_keys: CommaSeparated = []
    webhook_allow_private: bool = False
    metrics_port: int = Field(0, ge=0, le=65535)
    metrics_token: str = ""
    otel_exporter_otlp_endpoint: str = ""
    telegram_bot_token: str = ""
    flower_basic_auth: str = ""
    flower_port: int = Field(5555, ge=1, le=65535)
    monitoring_dir: str = ""
    prometheus_port: int = Field(9090, ge=1, le=65535)
    alertmanager_port: int = Field(9093, ge=1, le=65535)
    grafana_port: int = Field(3000, ge=1, le=65535)

    @pydantic.field_validator("cors_origins", "api_keys", "secret_key_before", mode="before")
    @classmethod
    def _split(cls, value: Any) -> Any:
        return [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value

    @pydantic.field_validator("database_url", "analytics_database_url")
    @classmethod
    def _psycopg2(cls, value: str) -> str:
        """On SQLAlchemy 2.1 a bare `postgresql://` means psycopg 3; ours is psycopg2."""
        for bare in ("postgres://", "postgresql://"):
            if value.startswith(bare):
                return "postgresql+psycopg2://" + value.removeprefix(bare)
        if value and not value.startswith("postgresql+psycopg2://"):
            raise ValueError("must begin with postgresql://")
        return value

    @pydantic.field_validator("redis_url")
    @classmethod
    def _redis_scheme(cls, value: str) -> str:
        if value and not value.startswith(("redis://", "rediss://", "unix://", "redis+cluster://")):
            raise ValueError("must begin with redis://, rediss://, unix:// or redis+cluster://")
        return value

    @pydantic.model_validator(mode="after")
    def _production_is_safe(self) -> Settings:
        if self.redis_url.startswith("redis+cluster://") and not self.celery_broker_url:
            raise ValueError("CELERY_BROKER_URL must be set beside a Redis Cluster, which cannot carry the queue")
        if self.environment == "production":
            if self.secret_key == DEFAULT_SECRET_KEY:
                raise ValueError("SECRET_KEY must be set to a secret of your own in production")
            if self.debug:
                raise ValueError("DEBUG must be off in production")
        return self

    @property
    def broker_url(self) -> str:
        """Return what carries tasks: `CELERY_BROKER_URL`, else the store's Redis, in kombu's spelling of it."""
        url = self.celery_broker_url or self.redis_url
        return "redis+socket://" + url.removeprefix("unix://") if url.startswith("unix://") else url

    @property
    def broker_is_store(self) -> bool:
        """Tell whether the queue lives in the very Redis of the store, so that scripts may push to it themselves."""
        if self.redis_url.startswith("redis+cluster://"):
            return False
        return not self.celery_broker_url or _same_redis(self.celery_broker_url, self.redis_url)

    @property
    def analytics_url(self) -> str:
        return self.analytics_database_url or self.database_url

    @property
    def cores(self) -> int:
        return (
            os.process_cpu_count() or 1
            if hasattr(os, "process_cpu_count")
            else len(os.sched_getaffinity(0))
            if hasattr(os, "sched_getaffinity")
            else os.cpu_count() or 1
        )

    @property
    def max_waiters(self) -> int:
        """Return how many requests of one API process may wait at once; the other threads stay free for health and polls."""
        return self.api_threads - 64


def _same_redis(one: str, other: str) -> bool:
    def normal(url: str) -> str:
        url = url.replace("redis+socket://", "unix://")
        if url.startswith("unix://"):
            return url
        base, _, db = url.rpartition("/") if url.count("/") > 2 else (url, "", "0")
        return f"{base}/{db or '0'}".replace("localhost", "127.0.0.1")

    return normal(one) == normal(other)


def load(environ: Mapping[str, str] | None = None, env_file: str | None = ".env") -> Settings:
    """Read the settings anew; raise `ConfigurationError` with one line for each wrong value.

    A setting that is in neither the environment nor `.env` may be a file of its name in `SECRETS_DIR`, as containers, Kubernetes and
    systemd hand secrets over.
    """
    if environ is not None:
        known = {
            name: value for name, value in ((n.lower(), v) for n, v in environ.items()) if name in Settings.model_fields
        }
        make = functools.partial(Settings.model_validate, known)
    else:
        folder = _secrets_dir(env_file)
        if folder and not Path(folder).is_dir():
            raise errors.ConfigurationError(f"SECRETS_DIR: there is no folder {folder!r}")
        make = functools.partial(Settings, _env_file=env_file, _secrets_dir=folder or None)
    try:
        return make()
    except pydantic.ValidationError as error:
        raise errors.ConfigurationError("; ".join(_line(item) for item in error.errors())) from None


def _line(item: Any) -> str:
    message = item["msg"].removeprefix("Value error, ")
    name = str(item["loc"][0]).upper() if item["loc"] else ""
    return (
        f"{name}: {message} (it is {item['input']!r})"
        if name and "secret" not in name.lower() and "key" not in name.lower()
        else f"{name} {message}".strip()
    )


def variable(name: str, env_file: str = ".env") -> str:
    """Return a variable that another file names (the providers file their keys'): as a setting is looked for; '' without it."""
    return os.environ.get(name) or dotenv.dotenv_values(env_file).get(name) or _secret(name, _secrets_dir(env_file))


def variables(prefix: str, env_file: str = ".env") -> dict[str, str]:
    """Return the variables of a library's own that begin so and are looked for as settings are: in `.env`, and as files in SECRETS_DIR."""
    folder = _secrets_dir(env_file)
    files = Path(folder).glob(f"{prefix.lower()}*") if folder else ()
    found = {path.name.upper(): path.read_text().strip() for path in files if path.is_file()}
    found |= {
        name: value for name, value in dotenv.dotenv_values(env_file).items() if name.startswith(prefix) and value
    }
    return found | {name: value for name, value in os.environ.items() if name.startswith(prefix) and value}


def _secrets_dir(env_file: str | None) -> str:
    return os.environ.get("SECRETS_DIR") or (env_file and dotenv.dotenv_values(env_file).get("SECRETS_DIR")) or ""


def _secret(name: str, folder: str) -> str:
    path = Path(folder, name.lower())
    return path.read_text().strip() if folder and path.is_file() else ""


@functools.cache
def current() -> Settings:
    """Return the process's settings, read once."""
    return load()
