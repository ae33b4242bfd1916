"""What Alembic runs: `app.core.database.migrate` passes a connection (or, offline, a URL) and the name of the version table."""

from __future__ import annotations

from typing import Any

import sqlalchemy
from alembic import context

import app.analytics.models
import app.bots.models
import app.channels.telegram.models
import app.core.announcements
import app.dialogs.models
import app.history.models
import app.limits.models
import app.llm.cache.models
import app.prompts.models
import app.webhooks.models  # noqa: F401  the tables hang themselves on their base
from app.core.database import migrate
from app.core.database.base import AnalyticsBase, Base

given = context.config.attributes
metadata = {"main": Base.metadata, "analytics": AnalyticsBase.metadata}[given["history"]]
options = {"target_metadata": metadata, "version_table": given["version_table"], "compare_type": True}
# Each commits, so that no lock is held for longer than its own migration takes.
options["transaction_per_migration"] = True

if context.is_offline_mode():
    context.configure(url=given["url"], literal_binds=True, **options)
else:

    def be_brief_again(ctx: Any, *_: Any, **__: Any) -> None:
        """Bound the next migration's waiting, should this one have lifted the bound."""
        ctx.connection.execute(sqlalchemy.text(migrate.patience()))

    context.configure(connection=given["connection"], on_version_apply=be_brief_again, **options)
with context.begin_transaction():
    context.run_migrations()
