"""A Telegram bot of one's own before Repliq: long polling, standard library alone. REPLIQ_KEY and TELEGRAM_BOT_TOKEN must be set."""

import concurrent.futures
import json
import os
import time
import urllib.error
import urllib.request

REPLIQ = os.environ.get("REPLIQ_URL", "http://127.0.0.1:8000")
TELEGRAM = f"{os.environ.get('TELEGRAM_API', 'https://api.telegram.org')}/bot{os.environ['TELEGRAM_BOT_TOKEN']}"
SORRY = "Something went wrong. Please try again later."
FOR_THE_USER = (
    429,
    500,
)  # a limit, or the provider: their detail is in the user's language; the rest is our own mistake


def post(url: str, body: dict, timeout: float, **headers: str) -> dict:
    """Post JSON and return the JSON of the answer, that of a refusal too."""
    given = {"Content-Type": "application/json", **{name.replace("_", "-"): value for name, value in headers.items()}}
    request = urllib.request.Request(url, json.dumps(body).encode(), given)
    try:
        with urllib.request.urlopen(request, timeout=timeout) as response:
            return json.load(response)
    except urllib.error.HTTPError as error:
        with error:
            return json.load(error)


def answer(update: dict) -> None:
    """Ask Repliq and tell the user. The update's number is the Idempotency-Key: an update that comes twice is counted once."""
    message = update["message"]
    chat, user = message["chat"]["id"], message["from"]
    try:
        post(f"{TELEGRAM}/sendChatAction", {"chat_id": chat, "action": "typing"}, 10)
        told = post(
            f"{REPLIQ}/v1/chat/send",
            {"telegram_id": user["id"], "message": message["text"][:4000], "language": user.get("language_code", "en")},
            90,
            Authorization=f"Bearer {os.environ['REPLIQ_KEY']}",
            Idempotency_Key=f"telegram-update-{update['update_id']}",
        )
        text = told.get("response") or (told["detail"] if told["status"] in FOR_THE_USER else SORRY)
    except (OSError, ValueError, KeyError):
        text = SORRY
    for start in range(0, len(text), 4000):  # Telegram's bound is 4,096
        if start:
            time.sleep(1)  # one message a second a chat
        post(f"{TELEGRAM}/sendMessage", {"chat_id": chat, "text": text[start : start + 4000]}, 30)


offset = 0
with concurrent.futures.ThreadPoolExecutor(32) as pool:
    while True:
        try:
            updates = post(f"{TELEGRAM}/getUpdates", {"offset": offset, "limit": 100, "timeout": 25}, 35)["result"]
        except (OSError, ValueError, KeyError):  # Telegram is away, or refuses: another program may have the same token
            time.sleep(3)
            continue
        for update in updates:
            offset = update["update_id"] + 1
            if "text" in update.get("message", {}):
                pool.submit(answer, update).add_done_callback(lambda done: done.exception() and print(done.exception()))
