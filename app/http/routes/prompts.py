"""A bot's prompts: made, versioned, made active, tried, and compared in experiments."""

from __future__ import annotations

from app.core import errors
from app.core.paging import PageQuery
from app.http.api import Answer, Api
from app.http.context import Context
from app.prompts import announce, experiments, figures, schemas, versions

api = Api("prompts")


@api.route("POST", "/v1/prompts", scope="admin", body=schemas.PromptCreate, once=True, answers={201: schemas.PromptOut})
def create_prompt(call: Context) -> Answer:
    """Make a prompt with its first version, which is given out at once."""
    with call.changing() as session:
        made = versions.create(session, call.bot.id, call.body)
        shown = schemas.PromptOut.model_validate(versions.shown(session, made.prompt))
    _tell(call, shown.name)
    return shown, 201, {"Location": f"/v1/prompts/{shown.name}"}


@api.route("GET", "/v1/prompts", scope="admin", query=PageQuery, answers={200: schemas.PromptsPage})
def list_prompts(call: Context) -> Answer:
    """List the bot's prompts, newest first, without their texts."""
    with call.runtime.sessions.begin() as session:
        page = versions.list_prompts(session, call.bot.id, call.query.cursor, call.query.limit)
        found = [schemas.PromptOut.model_validate(versions.shown(session, row, whole=False)) for row in page.data]
    return schemas.PromptsPage(data=found, next_cursor=page.next_cursor)


@api.route("GET", "/v1/prompts/<name>", scope="admin", answers={200: schemas.PromptOut})
def get_prompt(call: Context, name: str) -> Answer:
    """Read a prompt with its active version, and the experiment that runs on it."""
    with call.runtime.sessions.begin() as session:
        prompt = versions.get(session, call.bot.id, name)
        return schemas.PromptOut.model_validate(versions.shown(session, prompt))


@api.route("DELETE", "/v1/prompts/<name>", scope="admin", answers={204: "deleted, with its versions and experiments"})
def delete_prompt(call: Context, name: str) -> Answer:
    """Delete a prompt; not the one that the bot's own answers are made with. What was asked with it stays on record."""
    if call.bot.settings.prompt == name:
        raise errors.InvalidRequest(
            f"'{name}' is the bot's own prompt: change its setting `prompt` first.", param="name"
        )
    with call.changing() as session:
        versions.delete(session, call.bot.id, name)
    _tell(call, name)
    return None, 204


@api.route(
    "POST", "/v1/prompts/<name>/versions", scope="admin", body=schemas.VersionCreate, once=True,
    answers={200: schemas.VersionOut, 201: schemas.VersionOut},
)  # fmt: skip
def create_version(call: Context, name: str) -> Answer:
    """Make a prompt's next version; 200 with the latest one where that says the very same."""
    with call.changing() as session:
        made = versions.add(session, call.bot.id, name, call.body)
        shown = schemas.VersionOut.model_validate(made.version)
    _tell(call, name)
    return shown, 200 if made.known else 201, {"Location": f"/v1/prompts/{name}/versions/{shown.version}"}


@api.route("GET", "/v1/prompts/<name>/versions", scope="admin", query=PageQuery, answers={200: schemas.VersionsPage})
def list_versions(call: Context, name: str) -> Answer:
    """List a prompt's versions, the latest first."""
    with call.runtime.sessions.begin() as session:
        prompt = versions.get(session, call.bot.id, name)
        page = versions.list_versions(session, prompt, call.query.cursor, call.query.limit)
        found = [schemas.VersionOut.model_validate(row) for row in page.data]
    return schemas.VersionsPage(data=found, next_cursor=page.next_cursor)


@api.route("GET", "/v1/prompts/<name>/versions/<version>", scope="admin", answers={200: schemas.VersionOut})
def get_version(call: Context, name: str, version: str) -> Answer:
    """Read a version."""
    with call.runtime.sessions.begin() as session:
        prompt = versions.get(session, call.bot.id, name)
        return schemas.VersionOut.model_validate(versions.version(session, prompt, _number(version)))


@api.route("POST", "/v1/prompts/<name>/activate", scope="admin", body=schemas.Activate, once=True,
           answers={200: schemas.PromptOut})  # fmt: skip
def activate_version(call: Context, name: str) -> Answer:
    """Give a version out to everybody, forward or back; an experiment that runs is stopped. Every process follows within a second."""
    with call.changing() as session:
        prompt = versions.activate(session, call.bot.id, name, call.body.version)
        shown = schemas.PromptOut.model_validate(versions.shown(session, prompt))
    _tell(call, name)
    return shown


@api.route("POST", "/v1/prompts/<name>/render", scope="admin", body=schemas.RenderRequest,
           answers={200: schemas.RenderedOut})  # fmt: skip
def render_prompt(call: Context, name: str) -> Answer:
    """Render a prompt as a request would have it, to be looked at."""
    with call.runtime.sessions.begin() as session:
        versions.get(session, call.bot.id, name)
    given: schemas.RenderRequest = call.body
    found = call.runtime.prompts.render(
        call.bot, name, user=given.user or "", language=given.language, variables=given.variables,
        version=given.version, param="version",
    )  # fmt: skip
    return schemas.RenderedOut(
        name=name,
        version=found.version,
        variant=found.variant,
        language=found.language,
        model=found.model,
        text=found.text,
    )


@api.route("POST", "/v1/prompts/<name>/experiments", scope="admin", body=schemas.ExperimentCreate, once=True,
           answers={201: schemas.ExperimentOut})  # fmt: skip
def start_experiment(call: Context, name: str) -> Answer:
    """Divide a prompt's users between versions, by weights; each user keeps his."""
    with call.changing() as session:
        made = schemas.ExperimentOut.model_validate(experiments.start(session, call.bot.id, name, call.body))
    _tell(call, name)
    return made, 201, {"Location": f"/v1/prompts/{name}/experiments/{made.id}"}


@api.route("GET", "/v1/prompts/<name>/experiments", scope="admin", query=PageQuery,
           answers={200: schemas.ExperimentsPage})  # fmt: skip
def list_experiments(call: Context, name: str) -> Answer:
    """List a prompt's experiments, newest first."""
    with call.runtime.sessions.begin() as session:
        page = experiments.list_page(session, call.bot.id, name, call.query.cursor, call.query.limit)
        found = [schemas.ExperimentOut.model_validate(row) for row in page.data]
    return schemas.ExperimentsPage(data=found, next_cursor=page.next_cursor)


@api.route("GET", "/v1/prompts/<name>/experiments/<experiment>", scope="admin", answers={200: schemas.ExperimentOut})
def get_experiment(call: Context, name: str, experiment: str) -> Answer:
    """Read an experiment, by its id or its name."""
    with call.runtime.sessions.begin() as session:
        return schemas.ExperimentOut.model_validate(experiments.get(session, call.bot.id, name, experiment))


@api.route("POST", "/v1/prompts/<name>/experiments/<experiment>/stop", scope="admin", body=schemas.ExperimentStop,
           once=True, answers={200: schemas.ExperimentOut})  # fmt: skip
def stop_experiment(call: Context, name: str, experiment: str) -> Answer:
    """Stop an experiment, and activate its winner if one is named; one that was stopped already stays as it is."""
    with call.changing() as session:
        stopped = experiments.stop(session, call.bot.id, name, experiment, call.body.winner)
        shown = schemas.ExperimentOut.model_validate(stopped)
    _tell(call, name)
    return shown


@api.route("GET", "/v1/prompts/<name>/experiments/<experiment>/figures", scope="admin",
           answers={200: schemas.ExperimentFigures})  # fmt: skip
def get_experiment_figures(call: Context, name: str, experiment: str) -> Answer:
    """Tell what each variant came to: success, cost, latency, and what users thought of it."""
    with call.runtime.sessions.begin() as session:
        prompt = versions.get(session, call.bot.id, name)
        found = figures.of(session, prompt, experiments.get(session, call.bot.id, name, experiment))
    return schemas.ExperimentFigures.model_validate(found)


def _tell(call: Context, name: str) -> None:
    """Make every process read a prompt anew: this one at once, so that the caller's next request sees what he did."""
    call.runtime.prompts.forget(call.bot.id, name)
    announce.prompt_changed(call.runtime.store, call.runtime.keys, call.bot.id, name)


def _number(version: str) -> int:
    if not (version.isascii() and version.isdigit() and len(version) < 8):
        raise errors.NotFound(f"There is no version '{version[:80]}'.", param="version")
    return int(version)
