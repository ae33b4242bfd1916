"""The Celery tasks, a module a queue: each fetches the runtime and calls one function."""
