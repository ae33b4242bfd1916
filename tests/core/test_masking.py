"""Masking: what names or opens something is gone, ordinary sentences stay to the letter, and no text takes long."""

from __future__ import annotations

import copy
import random
from typing import Any

import hypothesis
import orjson
import pytest
from hypothesis import strategies as st

from app.core import masking

IBANS = ["GB82 WEST 1234 5698 7654 32", "UA213223130000026007233566001", "DE89370400440532013000", "UA21 3223 1300 0002 6007 2335 6600 1",
         "NO93 8601 1117 947", "MT84 MALT 0110 0001 2345 MTLC AST0 01S"]  # fmt: skip
CARDS = ["4111 1111 1111 1111", "4111111111111111", "5555-5555-5555-4444", "378282246310005", "3782 822463 10005", "2200 7007 0001 0001",
         "6011111111111117", "5168 7427 1234 5671", "2221000000000009"]  # fmt: skip
PHONES = [
    "+380501234567", "+380 (50) 123-45-67", "+38 050 123 45 67", "0501234567", "(067) 123-45-67", "067 123 4567", "380671234567",
    "+7 916 123-45-67", "8 (916) 123-45-67", "89161234567", "8-916-123-45-67", "8 800 555-35-35", "8 (495) 123-45-67", "(044) 123-45-67",
    "+1 (415) 555-2671", "(415) 555-2671", "415-555-2671", "1-800-555-1234", "+44 20 7946 0958", "+48 501 234 567", "+4915123456789",
    "+380 501 234 567",
]  # fmt: skip
SECRETS = [
    "sk-proj-Ab12Cd34Ef56Gh78Ij90", "sk-ant-api03-Zz11-Yy22_Xx33Ww44", "rq_test-key-that-is-visibly-fake-0001", "ghp_" + "a1B2" * 9,
    "github_pat_11ABCDEFG0123456789_abcdef", "AKIAIOSFODNN7EXAMPLE", "AIzaSyA1234567890abcdefghijklmnopqrstu", "xoxb-1234567890-abcdefghij",
    "glpat-a1b2c3d4e5f6g7h8i9j0", "sk_live_" + "4eC39HqLyjWDarjt", "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", "hf_" + "aB1" * 11,
    "123456789:AAF-abcdefghijklmnopqrstuvwxyz12345",
    "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0NTY3ODkwIn0.dozjgNryP4J3jVmNHl0w5N_XgL0n3I9PlFUP0THsR8U",
    "-----BEGIN RSA PRIVATE KEY-----\nMIIEpAIBAAKCAQEA0\nab+/=\n-----END RSA PRIVATE KEY-----",
]  # fmt: skip
ADDRESSES = ["192.168.1.17", "8.8.8.8", "2001:db8::8a2e:370:7334", "fe80::1", "2001:0db8:85a3:0000:0000:8a2e:0370:7334"]
EMAILS = [
    "anna@example.com",
    "a.b+c_d@mail.example.co.uk",
    "почта@пример.рф",
    "o'neil@example.ie",
    "x" * 300 + "@example.com",
]
BOOKLETS = ["АА123456", "КН 654321", "МЕ № 123456"]
KINDS = {
    "iban": IBANS,
    "card": CARDS,
    "phone": PHONES,
    "secret": SECRETS,
    "ip": ADDRESSES,
    "email": EMAILS,
    "passport": BOOKLETS,
}
EVERY = [(kind, value) for kind, values in KINDS.items() for value in values]
FRAMES = [
    "{}",
    "Це {}.",
    "вот: {}, спасибо",
    '{{"value": "{}"}}',
    "({})",
    "a\n{}\nb",
    "мой {} и 3 яблока",
    "it is {}!",
    "{} - {}",
]


@pytest.mark.parametrize(("kind", "value"), EVERY, ids=[f"{kind}-{value[:20]}" for kind, value in EVERY])
@pytest.mark.parametrize("frame", FRAMES)
def test_what_names_or_opens_something_is_replaced_by_its_kind(kind: str, value: str, frame: str) -> None:
    assert masking.text(frame.format(value, value)) == frame.format(f"[{kind}]", f"[{kind}]")


@pytest.mark.parametrize(
    ("told", "kept"),
    [
        ("Authorization: Bearer abcdef1234567890", "Authorization: Bearer [secret]"),
        ("authorization: Basic dXNlcjpwYXNzd29yZDE=", "authorization: Basic [secret]"),
        ("postgres://repliq:hunter22@db.example.com/x", "postgres://[secret]@db.example.com/x"),
        ("redis://:hunter22@10.1.2.3:6379", "redis://[secret]@[ip]:6379"),
        ("password: Summer2024!", "password: [secret]"),
        ('{"api_key": "0123456789abcdef0123"}', '{"api_key": "[secret]"}'),
        ("AWS_SECRET_ACCESS_KEY=wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY", "AWS_SECRET_ACCESS_KEY=[secret]"),
        ("мой пароль: qwerty12345", "мой пароль: [secret]"),
        ("паспорт 45 08 123456 выдан", "паспорт [passport] выдан"),
        ("Паспорт гражданина РФ: серия 4508 № 123456", "Паспорт гражданина РФ: серия [passport]"),
        ("серия 45 08 номер 123456", "серия [passport]"),
        ("загранпаспорт 75 1234567", "загранпаспорт [passport]"),
        ("ID-картка № 123456789", "ID-картка № [passport]"),
        ("passport number 123456789", "passport number [passport]"),
        ("телефон: 123-45-67", "телефон: [phone]"),
        ("тел. номер 2345678", "тел. номер [phone]"),
        ("https://wa.me/380501234567", "https://wa.me/[phone]"),
        ("Call me at tel:+1-415-555-2671", "Call me at tel:[phone]"),
        ("write to anna@example.com, bob@example.org", "write to [email], [email]"),
        ("UA213223130000026007233566001 GB82 WEST 1234 5698 7654 32", "[iban] [iban]"),
        ("IBAN DE89 3704 0044 0532 0130 00 AND MORE", "IBAN [iban] AND MORE"),
        ("2 4111 1111 1111 1111 123", "2 [card] 123"),
        ("ssh root@10.0.0.5 -p 2222", "ssh root@[ip] -p 2222"),
        ("see ![x](data:image/png;base64,iVBORw0KGgo=) here", "see ![x]([image/png, 8 bytes]) here"),
        ("8 916 123-45-67, 8 916 765-43-21", "[phone], [phone]"),
    ],
)  # fmt: skip
def test_what_a_word_says_to_be_one_is_replaced_and_the_word_stays(told: str, kept: str) -> None:
    assert masking.text(told) == kept


ORDINARY = """
Встреча 21.11.2026 в 10:30, зал 5. Заказ № 12345678 на сумму 1 250 000,50 ₽ оплачен 15/01/2024.
Цена 7 900 000 – 8 500 000 руб., скидка 15%, от 100000 до 250000. ЦЕНА ДО 100000 РУБ, ОТ 150000.
Версия 1.2.3.4 и версии 10.0.19.1; пункт 4.1.2.3; Python 3.11.2, PostgreSQL 18.6, Chrome/120.0.0.0, v1.2.3.4.
В 2024 году было 1 234 567 890 запросов, на 12,5 % больше: +250 000 000 и +10 000 000. Телефон за 12 500 грн. Телефон 1 250 000 сум.
Індекс 01001, вул. Хрещатик, 22, кв. 15. Рейс PS 123, потяг 091К, місце 36. Курс 41,2345 грн, ПДВ 20 %.
Рахунок-фактура INV-2024-000123, артикул 4820012345678, ISBN 978-3-16-148410-0, автомобіль АА 1234 ВВ.
О 9:00 до 18:00, з 01.01.2024 по 31.12.2024, температура −5…+12 °C, 1920x1080, 16:9, 3-5 днів, 2+2=4.
The meeting is on 2026-11-21 at 10:30:45 (2026-11-21T08:01:04.720019Z); mobile release 2024-01-15, 1,234,567 users.
Order 550e8400-e29b-41d4-a716-446655440000, build 20240115.3, commit 9fceb02d0ae598e95dc970b74767f19372d61af8, sha256:ab12.
SELECT * FROM t WHERE id = 1234567 AND price >= 19.99; std::vector<int> a; Foo::Bar; x[1:2]; #fff000; 0xDEADBEEF; 1e-10.
git clone user/repo@1.2.3, pip install sk-learn-compatible-estimators, npm i lodash@4.17.21, disk-based, task-force-141.
He said: basic understanding of python3 is enough; the bearer of news; token by token; secret: none; password: required.
Score 3:2, ratio 1:1000, 5 km in 25:30, flight BA 0117, room 1204, 100 000 000 000 tons, 42 is the answer to 7x6.
Passport control is at gate 12; серия 5, выпуск 123456; паспорт качества изделия 2024 года. @nick and #tag_2024, e-mail me.
"""


@pytest.mark.parametrize("line", ORDINARY.strip().splitlines())
def test_ordinary_sentences_stay_to_the_letter(line: str) -> None:
    assert masking.text(line) == line


def test_a_document_keeps_its_shape_and_its_names() -> None:
    told = {
        "anna@example.com": "anna@example.com", "n": 380501234567, "none": None, "yes": True, "f": 1.5, "empty": {}, "list": [[], "x"],
        "messages": [{"role": "user", "content": [{"type": "text", "text": "call +380501234567"}]}],
        "arguments": '{"to": "anna@example.com", "n": 1}',
    }  # fmt: skip
    before = copy.deepcopy(told)
    found = masking.document(told)
    assert told == before, "what was given is left alone"
    assert list(found) == list(told)
    assert found["anna@example.com"] == "[email]"
    assert found["messages"] == [{"role": "user", "content": [{"type": "text", "text": "call [phone]"}]}]
    assert orjson.loads(found["arguments"]) == {"to": "[email]", "n": 1}
    assert [found[name] for name in ("n", "none", "yes", "f", "empty", "list")] == [
        380501234567,
        None,
        True,
        1.5,
        {},
        [[], "x"],
    ]
    assert [masking.document(value) for value in ("a@b.com", 5, None, [])] == ["[email]", 5, None, []]


def test_files_are_replaced_by_their_type_and_length() -> None:
    encoded = "iVBORw0KGgoAAAANSUhEUg" * 100
    found = masking.document({
        "image_url": {"url": f"data:image/png;base64,{encoded}"}, "input_audio": {"data": encoded, "format": "wav"},
        "far": "https://example.com/cat.png", "laugh": "ha" * 5000,
    })  # fmt: skip
    assert found["image_url"]["url"] == "[image/png, 1650 bytes]"
    assert found["input_audio"] == {"data": "[base64, 1650 bytes]", "format": "wav"}
    assert (found["far"], found["laugh"]) == ("https://example.com/cat.png", "ha" * 5000)


def test_a_document_may_be_nested_deeper_than_the_interpreters_stack() -> None:
    deep: Any = "anna@example.com"
    for _ in range(50_000):
        deep = [deep]
    found = masking.document(deep)
    for _ in range(50_000):
        found = found[0]
    assert found == "[email]"


# Each of a quarter of a megabyte. What was quadratic would take hours, so that the test's time limit is what fails.
_PIECES = [
    "a", "1", "12 ", "1.1.1.", "1.1.1.1 ", "1:", ":", ":: ", "a@", "a@b.", "+1", "+7 9", "(0", "8 9", "0 ", "- ", "://a:", "data:a/b;",
    "data:a/b;base64,", "sk-sk-a", "-eyJ", "eyJaaaaaaaa.", "SG.aaaaaaaaaaaaaaaa", "-ghp_", "bearer a", "token: a", "паспорт ", "серия 12 ",
    "АА", "UA21 ", "UA213223130000026007233566 ", "4111-", "411111111111111", "тел. номер ", "phone: 1 ", "-----BEGIN PRIVATE KEY-----",
    "\ud800\0", "п.1.1.1.1 ",
]  # fmt: skip


@pytest.mark.parametrize("piece", _PIECES)
def test_a_quarter_of_a_megabyte_of_anything_is_gone_through_in_one_go(piece: str) -> None:
    masking.text("id 7916123" + piece * (250_000 // len(piece)) + "@x.com")


def test_a_quarter_of_a_megabyte_of_everything_is_gone_through_in_one_go() -> None:
    chance = random.Random(5)
    masking.text("".join(chance.choices([*_PIECES, *(value for _, value in EVERY)], k=80_000)))


_ALPHABET = st.text(alphabet="aA1 0:@.+-()/=_#№АБпсй\n[]\"';,@éß\u00a0\ud800", max_size=60)


@hypothesis.given(st.lists(_ALPHABET | st.sampled_from([value for _, value in EVERY]), max_size=6).map(" ".join))
def test_masking_again_changes_nothing_more(told: str) -> None:
    once = masking.text(told)
    assert masking.text(once) == once


@hypothesis.given(st.lists(st.sampled_from(EVERY), min_size=1, max_size=5), st.data())
def test_nothing_of_it_is_left_between_other_words(found: list[tuple[str, str]], data: st.DataObject) -> None:
    words = data.draw(
        st.lists(
            st.sampled_from(["і", "and", "потом", "—", "№ 5;", "см.:", "\n"]), min_size=len(found), max_size=len(found)
        )
    )
    told = " ".join(f"{word} {value} ;" for word, (_, value) in zip(words, found, strict=True))
    kept = masking.text(told)
    assert kept == " ".join(f"{word} [{kind}] ;" for word, (kind, _) in zip(words, found, strict=True))
