"""Telegram in front of the whole product, over a Bot API server of ours that minds its rates."""

from __future__ import annotations

import itertools

from click.testing import CliRunner, Result

from app.cli import telegram
from app.core import ids, texts
from tests.channels.botapi import Bot, BotApi
from tests.channels.conftest import Desk
from tests.stack import Stack, eventually


def ask(api: BotApi, bot: Bot, user: int, text: str | None, *, language: str = "en", **more: object) -> str:
    """Write to a bot and wait for its next message."""
    before = len(api.shown(bot, user))
    api.write(bot, user, text, language=language, **more)
    eventually(lambda: len(api.shown(bot, user)) > before, 30)
    return api.shown(bot, user)[before]


def ask_all(api: BotApi, bot: Bot, asked: dict[int, tuple[str | None, str]]) -> dict[int, str]:
    """Let several users write at once, each a text in a language; return what each is told."""
    before = {user: len(api.shown(bot, user)) for user in asked}
    for user, (text, language) in asked.items():
        api.write(bot, user, text, language=language)
    eventually(lambda: all(len(api.shown(bot, user)) > count for user, count in before.items()), 30)
    return {user: api.shown(bot, user)[count] for user, count in before.items()}


def unsent(stack: Stack, bot: str) -> int:
    keys = stack.keys()
    return int(stack.redis_call("HLEN", keys.of_bot("telegram_unsent", ids.shard_of(bot, keys.shards), bot)))


def test_a_conversation(api: BotApi, desk: Desk) -> None:
    bot = desk.default
    told = ask_all(api, bot, {11: ("/start", "uk-UA"), 12: ("/start hello", "ru"), 13: ("/help", "de")})
    assert told == {
        11 + number: texts.text("telegram.start", language) for number, language in enumerate(("uk", "ru", "en"))
    }
    assert bot.commands["uk"] == ["start", "limits", "reset"]
    assert "weather" in ask(api, bot, 14, "What is the weather like?")
    assert "(4 messages" in ask(api, bot, 14, "And tomorrow?"), "the dialog's context is there"
    assert ask(api, bot, 14, "/limits").startswith("Today: 2 of 1000000 used, 999998 left. New ones come at ")
    assert ask(api, bot, 14, "/reset", language="uk") == texts.text("telegram.reset", "uk")
    assert "(2 messages" in ask(api, bot, 14, "And the day after?"), "the context is gone"
    history = desk.stack.call("GET", "/v1/dialogs?user_id=tg:14")[2]["data"]
    assert sorted(one["status"] for one in history) == ["active", "archived"]


def test_what_is_no_question_is_told_politely_or_left_alone(api: BotApi, desk: Desk) -> None:
    bot = desk.default
    before = len(bot.messages)
    api.tell(bot, {"update_id": 1, "edited_message": {"message_id": 1}})
    api.write(bot, 21, "in a group", chat={"id": -5, "type": "supergroup"})
    api.tell(bot, {"update_id": 2, "message": {"nothing": "that we know"}})
    told = ask_all(api, bot, {21: (None, "ru"), 22: ("x" * 4001, "en"), 23: ("/dance", "en")})
    assert told[21] == texts.text("telegram.no_text", "ru")
    assert told[22] == texts.text("telegram.too_long", "en")
    assert told[23] == texts.text("telegram.unknown", "en")
    assert len(bot.messages) == before + 3


def test_an_answer_grows_before_the_users_eyes(api: BotApi, desk: Desk) -> None:
    _, bot = desk.new_bot(model="sim:ttft=800,tps=25,words=70")
    ask(api, bot, 31, "Tell me more")
    assert [chat for chat, _ in bot.typing] == [31]
    assert bot.typing[0][1] < bot.messages[0].at[0]
    eventually(lambda: len(api.shown(bot, 31)[0].split()) == 70, 30)
    grown = bot.messages[0].texts
    assert len(grown) >= 3
    assert all(after.startswith(before) for before, after in itertools.pairwise(grown))
    assert len(bot.messages) == 1


def test_a_long_answer_comes_in_parts(api: BotApi, desk: Desk, stack: Stack) -> None:
    made, bot = desk.new_bot(model="sim:words=1900")
    ask(api, bot, 32, "Tell me everything")
    eventually(lambda: unsent(stack, made) == 0, 30)
    shown = api.shown(bot, 32)
    assert len(shown) > 1
    assert len(" ".join(shown).split()) == 1900


def test_formats_are_made_where_they_can_be(api: BotApi, desk: Desk, stack: Stack) -> None:
    made, bot = desk.new_bot(markdown=True)
    formed, broken = "this is **bold**, `a < b` and [a link](https://shop.example/a?b=c&d)", "crossed **a *b** c*"
    ask_all(api, bot, {33: (formed, "en"), 34: (broken, "en")})
    eventually(lambda: unsent(stack, made) == 0, 30)
    assert "this is bold, a < b and a link" in api.shown(bot, 33)[0]
    assert broken in api.shown(bot, 34)[0], "what Telegram refuses comes as it was written"


def test_fifty_chats_at_once_break_no_rate(api: BotApi, desk: Desk) -> None:
    _, bot = desk.new_bot(model="sim:tps=40,words=60")
    for user in range(100, 150):
        api.write(bot, user, "Hello")
    eventually(lambda: sum(len(api.shown(bot, user)[:1]) for user in range(100, 150)) == 50, 60)
    eventually(lambda: all(len(message.text.split()) == 60 for message in bot.messages), 60)
    assert len(bot.messages) == 50


def test_an_update_is_answered_once(api: BotApi, desk: Desk, stack: Stack) -> None:
    made, bot = desk.new_bot()
    ask(api, bot, 41, "Only once", update_id=900)
    for number in (900, 900, 901):
        api.write(bot, 41, "Only once" if number == 900 else "/start", update_id=number)
    eventually(lambda: len(api.shown(bot, 41)) == 2, 30)
    eventually(lambda: unsent(stack, made) == 0, 30)
    assert api.shown(bot, 41)[1] == texts.text("telegram.start", "en")
    eventually(lambda: stack.rows("SELECT count(*) FROM request_history WHERE bot_id = %s", made) == [(1,)], 30)


def test_a_limit_is_told_in_the_users_language(api: BotApi, desk: Desk) -> None:
    _, bot = desk.new_bot(daily_limit=1, timezone="Europe/Kyiv")
    limits = {"ru": "Вы использовали все", "uk": "Ви використали всі", "en": "You have used all"}
    for text in ("The first", "The second", "/limits"):
        told = ask_all(api, bot, {61 + number: (text, language) for number, language in enumerate(limits)})
        if text != "The first":
            assert all("00:00 (Europe/Kyiv)" in one for one in told.values())
        if text == "The second":
            assert [one.startswith(begins) for one, begins in zip(told.values(), limits.values(), strict=True)] == [
                True
            ] * 3


def test_a_failure_is_told_in_the_users_language(api: BotApi, desk: Desk) -> None:
    _, bot = desk.new_bot(model="sim:filter=1")
    assert ask(api, bot, 62, "Something", language="uk") == texts.text("error.content_filtered", "uk")


def test_a_chat_that_is_to_be_left_alone_is(api: BotApi, desk: Desk) -> None:
    _, bot = desk.new_bot()
    bot.refuse_once[71] = 3
    api.write(bot, 71, "/start")
    api.write(bot, 72, "/start")
    eventually(lambda: api.shown(bot, 72), 30)
    eventually(lambda: api.shown(bot, 71), 30)
    assert bot.messages[0].chat == 72


def test_whoever_blocked_the_bot_holds_nobody_back(api: BotApi, desk: Desk, stack: Stack) -> None:
    made, bot = desk.new_bot()
    bot.blocked.add(73)
    bot.down = 2
    api.write(bot, 73, "Hello")
    assert ask(api, bot, 74, "/start")
    eventually(lambda: unsent(stack, made) == 0, 30)


def test_another_reader_of_the_same_bot_is_told_of(api: BotApi, desk: Desk) -> None:
    _, bot = desk.new_bot()
    eventually(lambda: bot.poller, 30)
    assert api.answer(bot.token, "getUpdates", {"offset": 0, "timeout": 0, "limit": 1})["ok"]
    eventually(lambda: "telegram_conflict" in desk.log(), 30)
    assert ask(api, bot, 91, "/start")


def test_a_bot_is_added_listed_and_removed_by_command(api: BotApi, desk: Desk, stack: Stack) -> None:
    made, theirs = desk.bare_bot(), desk.new_theirs()

    def command(*arguments: str, stdin: str = "") -> Result:
        given = ["--api-url", api.url, *arguments]
        return CliRunner(env=stack.env).invoke(telegram.command, given, input=stdin)

    assert command("add", "--bot", made, stdin="not a token\n").exit_code == 1
    done = command("add", "--bot", made, stdin=f"{theirs.token}\n")
    assert done.stdout.startswith(f"@{theirs.username} is the front of the bot {made}."), done.stderr
    assert ask(api, theirs, 95, "/start")
    kept = stack.rows("SELECT token FROM telegram_bots WHERE bot_id = %s", made)[0][0]
    assert theirs.token.encode() not in bytes(kept)
    other = command("add", "--bot", desk.bare_bot(), stdin=f"{theirs.token}\n")
    assert "is the front of the bot" in str(other.exception)
    assert theirs.username in command("list").stdout
    assert command("remove", "--bot", made).stdout.endswith("has no front any more.\n")
    assert theirs.token not in done.output + str(other.exception)


def test_processes_share_the_bots_and_take_over_from_one_that_was_killed(api: BotApi, desk: Desk, stack: Stack) -> None:
    first, second = desk.front, desk.start()
    made = [desk.new_bot(model="sim:tps=20,words=80") for _ in range(4)]
    slow, bots = made[0][1], [bot for _, bot in made]
    eventually(lambda: second.log.read_text().count("telegram_bot_taken") >= 2, 60)
    slow.stuck = True
    for bot in bots:
        api.write(bot, 81, "Go on")
    eventually(lambda: all(api.shown(bot, 81) for bot in bots[1:]), 30)
    assert not api.shown(slow, 81), "the others did not wait for the slow one"
    slow.stuck = False
    first.kill()
    for bot in bots:
        api.write(bot, 82, "Written while its process was dead")
    eventually(lambda: all(unsent(stack, name) == 0 and api.shown(bot, 82) for name, bot in made), 60)
    for bot in bots:
        assert [len(text.split()) for user in (81, 82) for text in api.shown(bot, user)] == [80, 80]
    desk.front = second
