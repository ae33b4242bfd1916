"""Dialogs: made, appended to, read, closed, and answered in."""

from __future__ import annotations

import re
from typing import Any

import flask
import orjson
import pydantic

from app.chat import schemas as chat_schemas
from app.chat import windows
from app.chat.requests import Place
from app.core import clock, errors, ids, metrics, paging
from app.dialogs import loading, schemas
from app.dialogs.live import Header
from app.dialogs.loading import Keeping
from app.http import outcomes, problems
from app.http.api import Answer, Api
from app.http.context import Context
from app.http.routes.chat import complete

api = Api("dialogs")
_VERSION = re.compile(r'(?:W/)?"?(\d{1,15})"?')


@api.route(
    "POST",
    "/v1/dialogs",
    "/dialogs",
    scope="dialogs",
    body=schemas.DialogSent,
    once=True,
    answers={201: schemas.DialogCreated},
)
def create_dialog(call: Context) -> Answer:
    """Make a dialog, with a first message if one is given."""
    header, messages = _create(call, call.body)
    return (
        {**schemas.dialog(header), "messages": messages},
        201,
        {"Location": f"/v1/dialogs/dlg_{header.ref}", "ETag": _etag(header)},
    )


@api.route(
    "GET", "/v1/dialogs", "/dialogs", scope="dialogs", query=schemas.ListQuery, answers={200: schemas.DialogsPage}
)
def list_dialogs(call: Context) -> Answer:
    """List dialogs, most recently active first."""
    query: schemas.ListQuery = call.query
    page = call.runtime.dialog_list.page(call.bot.id, query.user_id, query.status, query.cursor, query.limit)
    return {"data": [schemas.dialog(header) for header in page.data], "next_cursor": page.next_cursor}


@api.route("GET", "/v1/dialogs/<dialog>", "/dialogs/<dialog>", scope="dialogs", answers={200: schemas.DialogOut})
def get_dialog(call: Context, dialog: str) -> Answer:
    """Read a dialog."""
    header = _header(call, _ref(call, dialog))
    return schemas.dialog(header), 200, {"ETag": _etag(header)}


@api.route(
    "PATCH",
    "/v1/dialogs/<dialog>",
    "/dialogs/<dialog>",
    scope="dialogs",
    body=schemas.DialogChange,
    answers={200: schemas.DialogOut},
)
def change_dialog(call: Context, dialog: str) -> Answer:
    """Change a dialog's title or metadata; with If-Match only if it still has that version."""
    ref, version = _ref(call, dialog), _if_match()
    fields = call.body.fields()
    if fields:
        call.runtime.dialogs.change(call.bot.id, ref, _keeping(call), fields, version=version)
    header = _header(call, ref)
    if not fields and version not in (None, header.version):
        raise errors.VersionMismatch(f"The dialog is at version {header.version} by now.", param="If-Match")
    return schemas.dialog(header), 200, {"ETag": _etag(header)}


@api.route("DELETE", "/v1/dialogs/<dialog>", "/dialogs/<dialog>", scope="dialogs", answers={204: "deleted"})
def delete_dialog(call: Context, dialog: str) -> Answer:
    """Delete a dialog with all its messages."""
    call.runtime.dialogs.delete(call.bot.id, _ref(call, dialog), _keeping(call))
    return None, 204


@api.route(
    "POST", "/v1/dialogs/<dialog>/messages", "/dialogs/<dialog>/messages", scope="dialogs", body=schemas.MessageSent, once=True,
    answers={201: schemas.MessageOut},
)  # fmt: skip
def append_message(call: Context, dialog: str) -> Answer:
    """Append a message. A repeat with the same id gives the first one's place again."""
    return _append(call, _ref(call, dialog), call.body), 201


@api.route(
    "GET", "/v1/dialogs/<dialog>/messages", "/dialogs/<dialog>/messages", scope="dialogs", query=schemas.MessagesQuery,
    answers={200: schemas.MessagesPage},
)  # fmt: skip
def list_messages(call: Context, dialog: str) -> Answer:
    """List a dialog's messages in order, or from the last one back."""
    ref, query = _ref(call, dialog), call.query
    cursor = paging.decode(query.cursor, [int])[0] if query.cursor else 0
    found = call.runtime.dialogs.page(
        call.bot.id, ref, _keeping(call), cursor=max(0, cursor), limit=query.limit + 1, ascending=query.order == "asc"
    )
    shown, more = found[: query.limit], len(found) > query.limit
    return {
        "data": [schemas.message(ref, message) for message in shown],
        "next_cursor": paging.encode(shown[-1].seq) if more else None,
    }


@api.route(
    "GET", "/v1/dialogs/<dialog>/context", "/dialogs/<dialog>/context", scope="dialogs", query=schemas.ContextQuery,
    answers={200: schemas.ContextOut},
)  # fmt: skip
def get_context(call: Context, dialog: str) -> Answer:
    """Tell exactly what a model would be given for a reply in this dialog, and how full the window is."""
    ref, settings, query = _ref(call, dialog), call.bot.settings, call.query
    most = 2 * settings.context_exchanges if query.max_messages is None else query.max_messages
    budget = settings.context_tokens if query.max_tokens is None else query.max_tokens
    context = call.runtime.dialogs.context(call.bot.id, ref, _keeping(call), max_messages=most, max_tokens=budget)
    prompt = call.runtime.requests.shown(call.bot)
    shares = [len(context.messages) / most if most else 1.0, context.tokens / budget if budget else 0.0]
    window = {
        "max_messages": most, "max_tokens": budget, "messages": len(context.messages), "tokens": context.tokens,
        "fullness": round(min(1.0, max(shares)), 4), "left_out": context.count - len(context.messages), "summary_seq": context.folded,
    }  # fmt: skip
    given = windows.given(prompt, context)
    return {
        "object": "dialog.context",
        "dialog_id": f"dlg_{ref}",
        "version": context.version,
        "messages": given,
        "window": window,
    }


@api.route(
    "POST",
    "/v1/dialogs/<dialog>/archive",
    "/dialogs/<dialog>/archive",
    scope="dialogs",
    answers={200: schemas.DialogOut},
)
def archive_dialog(call: Context, dialog: str) -> Answer:
    """Close a dialog to appends."""
    ref = _ref(call, dialog)
    call.runtime.dialogs.archive(call.bot.id, ref, _keeping(call))
    return schemas.dialog(_header(call, ref))


@api.route(
    "POST",
    "/v1/dialogs/<dialog>/restore",
    "/dialogs/<dialog>/restore",
    scope="dialogs",
    answers={200: schemas.DialogOut},
)
def restore_dialog(call: Context, dialog: str) -> Answer:
    """Open an archived dialog again."""
    ref = _ref(call, dialog)
    call.runtime.dialogs.restore(call.bot.id, ref, _keeping(call))
    return schemas.dialog(_header(call, ref))


@api.route(
    "POST", "/v1/dialogs/<dialog>/reply", "/dialogs/<dialog>/reply", scope="dialogs", body=chat_schemas.ReplyRequest, limited=True,
    answers={200: "OpenAI's chat.completion, or with `stream` its chunks as server-sent events", 202: chat_schemas.TaskObject},
)  # fmt: skip
def reply(call: Context, dialog: str) -> Answer:
    """Answer a user's message in a dialog, within his limits: at once, as a stream, or in the background."""
    ref = _ref(call, dialog)
    header = _header(call, ref)
    if header.state != "active":
        raise errors.DialogArchived("The dialog is archived; restore it before anything is appended.")
    place = Place(ref, header.user if header.kind == "chat" else "")
    with outcomes.speaking_to(call, header.user, None):
        return complete(call, lambda made: call.runtime.requests.reply(made, call.body, call.raw, header.user, place))


@api.route(
    "POST",
    "/v1/dialogs/batch",
    "/dialogs/batch",
    scope="dialogs",
    body=schemas.Batch,
    once=True,
    answers={200: schemas.BatchOut},
)
def run_batch(call: Context) -> Answer:
    """Create, append, archive or delete up to 500 times in one call; one that fails does not stop the others."""
    return {"results": [_result(call, operation) for operation in call.body.operations]}


def _result(call: Context, raw: dict[str, Any]) -> dict[str, Any]:
    name = raw.get("op")
    try:
        return {"op": name, **_operate(call, schemas.OPERATION.validate_python(raw))}
    except pydantic.ValidationError as error:
        response = problems.of_validation(error)
    except errors.RepliqError as error:
        response = problems.of_error(error)
    body = orjson.loads(response.get_data())
    return {"op": name if isinstance(name, str) else None, "status": response.status_code, "error": body["error"]}


def _operate(call: Context, operation: Any) -> dict[str, Any]:
    if isinstance(operation, schemas.CreateOperation):
        header, messages = _create(call, operation)
        return {"status": 201, "dialog": {**schemas.dialog(header), "messages": messages}}
    ref = _ref(call, operation.dialog_id)
    if isinstance(operation, schemas.AppendOperation):
        return {"status": 201, "message": _append(call, ref, operation)}
    if operation.op == "archive":
        call.runtime.dialogs.archive(call.bot.id, ref, _keeping(call))
        return {"status": 200, "dialog": schemas.dialog(_header(call, ref))}
    call.runtime.dialogs.delete(call.bot.id, ref, _keeping(call))
    return {"status": 204}


def _create(call: Context, sent: schemas.DialogSent) -> tuple[Header, list[dict[str, Any]]]:
    said = [sent.initial_message.said()] if sent.initial_message else []
    live, keeping = call.runtime.dialogs, _keeping(call)
    fields = sent.fields()
    ref = live.create(call.bot.id, sent.user_id, keeping, title=fields["title"], meta=fields["meta"], said=said)
    for message in said:
        metrics.messages.labels(message.role).inc()
    messages = live.page(call.bot.id, ref, keeping, cursor=0, limit=2, ascending=True) if said else []
    return _header(call, ref), [schemas.message(ref, message) for message in messages]


def _append(call: Context, ref: str, sent: schemas.MessageSent) -> dict[str, Any]:
    said, keeping = sent.said(), _keeping(call)
    done = call.runtime.dialogs.append(call.bot.id, ref, [said], keeping, own_ids=sent.id is not None)
    seq = done.seqs[0]
    if done.at_ms:
        metrics.messages.labels(said.role).inc()
        meta = orjson.Fragment(said.meta) if said.meta else {}
        return {
            "id": said.mid, "object": "message", "dialog_id": f"dlg_{ref}", "seq": seq, "role": said.role, "content": said.body,
            "tokens": said.tokens, "metadata": meta, "created_at": clock.rfc3339(done.at_ms),
        }  # fmt: skip
    known = call.runtime.dialogs.page(call.bot.id, ref, keeping, cursor=seq - 1, limit=1, ascending=True)
    return schemas.message(ref, known[0])


def _ref(call: Context, public: str) -> str:
    ref = ids.parse(public, "dlg", call.runtime.settings.redis_shards)
    if ids.shard_in(ref) != ids.shard_of(call.bot.id, call.runtime.settings.redis_shards):
        raise errors.NotFound(f"There is no dialog '{public}'.", param="id")
    return ref


def _keeping(call: Context) -> Keeping:
    return loading.keeping(call.bot.settings)


def _header(call: Context, ref: str) -> Header:
    return call.runtime.dialogs.header(call.bot.id, ref, _keeping(call))


def _etag(header: Header) -> str:
    return f'"{header.version}"'


def _if_match() -> int | None:
    """Return the version that If-Match names, None for any; raise `VersionMismatch` for what cannot be one."""
    given = flask.request.headers.get("If-Match", "").strip()
    if given in ("", "*"):
        return None
    match = _VERSION.fullmatch(given)
    if match is None:
        raise errors.VersionMismatch("If-Match must hold the dialog's version.", param="If-Match")
    return int(match[1])
