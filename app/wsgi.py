"""What the web server imports: the application of this process."""

from __future__ import annotations

from app.core import garbage, lifeline, logs, tracing
from app.core import settings as settings_
from app.http import factory
from tasks import broker

lifeline.follow_parent()  # granian's workers would keep the port if its own process were killed
logs.configure(settings_.current())
tracing.start(settings_.current(), "api")
runtime = broker.runtime()
app = factory.create_app(runtime)
runtime.start_serving()
garbage.settle()
