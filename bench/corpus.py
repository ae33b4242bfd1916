"""A million chat messages to search in: three languages with a vocabulary as uneven as theirs, twenty bots, dialogs over half a year."""

from __future__ import annotations

import itertools
import math
import random
import uuid
from collections.abc import Iterator
from typing import NamedTuple

from simplemma.strategies.dictionaries import LOW_MEMORY_DICTIONARY_FACTORY

DAYS = 180
BOTS = 20
MESSAGES_A_DIALOG = 20
STEP_MS = 30_000  # between a dialog's messages
_DIALOGS_A_USER = 2.5
_VOCABULARY = 30_000  # word forms a language
_MIXED = 0.1  # of the dialogs change their language from message to message
_LANGUAGES = {"ru": 0.45, "uk": 0.35, "en": 0.20}
_MS_A_DAY = 86_400_000

# What every text is full of; real words, so that the commonest word of the corpus can be searched.
_COMMON = {
    "ru": "и в не на я что с по это как а но к у за из то так для если от о же бы до или мне вы есть можно нет когда заказ доставка цена "
    "товар здравствуйте спасибо сколько какой будет оплата книги размер адрес",
    "uk": "і в не на я що з по це як а але до у за із то так для якщо від про ж би або мені ви є можна немає коли замовлення доставка ціна "
    "товар вітаю дякую скільки який буде оплата книги розмір адреса",
    "en": "the a to and of is in you it for on that i this be with are not have your can will my if we as at now order delivery price "
    "item hello thanks how much when payment books size address",
}  # fmt: skip


class Message(NamedTuple):
    """A message of the corpus; `at_ms` since the epoch."""

    dialog: uuid.UUID
    seq: int
    mid: str
    role: str
    at_ms: int
    text: str


class Dialog(NamedTuple):
    """A dialog of the corpus."""

    id: uuid.UUID
    bot: uuid.UUID
    user: str
    at_ms: int
    language: str


class Corpus:
    """The messages, the same ones for the same seed."""

    def __init__(self, messages: int, until_ms: int, seed: int = 1) -> None:
        self.messages = messages
        self.until_ms = until_ms
        self.chance = random.Random(seed)
        self.bots = [uuid.UUID(int=self.chance.getrandbits(128)) for _ in range(BOTS)]
        self._vocabularies = {language: _vocabulary(language, self.chance) for language in _LANGUAGES}
        self._weights = list(itertools.accumulate(1 / rank for rank in range(3, _VOCABULARY + 3)))
        self._shares = list(itertools.accumulate(1 / rank for rank in range(1, BOTS + 1)))

    def word(self, language: str, rank: int) -> str:
        """Return the word form of a rank, 0 for the commonest."""
        return self._vocabularies[language][rank]

    def dialogs(self) -> Iterator[Dialog]:
        """Yield the dialogs, oldest first; a bot's first user is one in fifty of its dialogs."""
        count = max(self.messages // MESSAGES_A_DIALOG, 1)
        for number in range(count):
            bot = self.chance.choices(range(BOTS), cum_weights=self._shares)[0]
            users = max(int(count / _DIALOGS_A_USER / (bot + 1) / 3.6), 1)
            user = 0 if self.chance.random() < 0.02 else self.chance.randrange(users)
            at_ms = self.until_ms - int((1 - number / count) * DAYS * _MS_A_DAY)
            language = self.chance.choices([*_LANGUAGES], [*_LANGUAGES.values()])[0]
            language = "mixed" if self.chance.random() < _MIXED else language
            identifier = uuid.UUID(int=self.chance.getrandbits(128))
            yield Dialog(identifier, self.bots[bot], user_of(bot, user), at_ms, language)

    def said(self, dialog: Dialog) -> Iterator[Message]:
        """Yield a dialog's messages: short ones of the user, long ones of the assistant, 600 bytes on average."""
        chance = random.Random(dialog.id.int)
        for number in range(MESSAGES_A_DIALOG):
            language = chance.choice([*_LANGUAGES]) if dialog.language == "mixed" else dialog.language
            role, mean = ("assistant", 60) if number % 2 else ("user", 12)
            count = max(1, min(600, round(chance.lognormvariate(math.log(mean), 0.6))))
            yield Message(
                dialog.id,
                number + 1,
                f"msg_{number}",
                role,
                dialog.at_ms + number * STEP_MS,
                self._text(chance, language, count),
            )

    def _text(self, chance: random.Random, language: str, count: int) -> str:
        return (
            " ".join(chance.choices(self._vocabularies[language], cum_weights=self._weights, k=count)).capitalize()
            + "."
        )


def user_of(bot: int, number: int) -> str:
    """Return the id of a bot's user; number 0 is the one who writes most."""
    return f"tg:{bot}{number:06d}"


def _vocabulary(language: str, chance: random.Random) -> list[str]:
    """Return word forms, the commonest first: real function words, then words of the dictionary."""
    common = _COMMON[language].split()
    dictionary = LOW_MEMORY_DICTIONARY_FACTORY.get_dictionary(language)
    known = [word for word in dictionary if word.isalpha() and word.islower() and 3 <= len(word) <= 14]
    return common + chance.sample(known, _VOCABULARY - len(common))
