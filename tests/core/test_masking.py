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
    "snils": ["112-233-445 95"],
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


PERSONAL = r"""
Мой номер +7 (916) 123-45-67, звоните.|[phone]
тел. 8 916 123 45 67|[phone]
Позвони на 89161234567 вечером|[phone]
Мій номер 067 123 45 67, дзвоніть|[phone]
Мій телефон: 0671234567|[phone]
Номер +380 67 123 45 67|[phone]
+38(067)123-45-67|[phone]
380671234567|[phone]
моб.: 050-123-45-67|[phone]
Call +1 415 555 2671 now|[phone]
UK +44 7911 123456|[phone]
DE +49 151 23456789|[phone]
PL +48 601 234 567|[phone]
FR +33 6 12 34 56 78|[phone]
KZ +7 701 123 45 67|[phone]
BY +375 29 123-45-67|[phone]
GE +995 555 12 34 56|[phone]
IL +972 54-123-4567|[phone]
TR +90 532 123 45 67|[phone]
CN +86 138 1234 5678|[phone]
IN +91 98765 43210|[phone]
UZ +998 90 123 45 67|[phone]
whatsapp 79161234567|[phone]
viber: 0991234567|[phone]
tel:+78005553535|[phone]
(495) 123-45-67 доб. 2, тел. 495 123-45-67|[phone]
пишите на ivan.petrov@yandex.ru|[email]
пошта: olena_k@ukr.net.|[email]
IVAN@MAIL.RU|[email]
<anna@example.com>|[email]
mailto:anna@example.com?subject=x|[email]
a@b.co|[email]
карта 2202 2061 1111 1113|[card]
visa 4111111111111111 exp 12/27|[card]
4111-1111-1111-1111|[card]
картка: 5168 7427 1234 5671|[card]
amex 3782 822463 10005|[card]
IBAN UA213223130000026007233566001|[iban]
iban: ua21 3223 1300 0002 6007 2335 6600 1|[iban]
рахунок DE89 3704 0044 0532 0130 00|[iban]
GB33BUKB20201555555555|[iban]
FR14 2004 1010 0505 0001 3M02 606|[iban]
PL61 1090 1014 0000 0712 1981 2874|[iban]
ip 10.20.30.40|[ip]
from 203.0.113.7:443|[ip]
http://192.168.0.10/admin|[ip]
[2001:db8::1]:443|[ip]
addr fe80::1ff:fe23:4567:890a|[ip]
2a00:1450:4010:c0e::65|[ip]
паспорт 4510 123456|[passport]
паспорт РФ 45 10 № 123456|[passport]
Паспорт: серия 45 10 номер 123456|[passport]
паспортные данные: 4510 123456|[passport]
серия 4510 № 123456|[passport]
паспорт АА123456|[passport]
Паспорт серії КМ № 654321|[passport]
загранпаспорт 71 1234567|[passport]
паспорт громадянина України 001234567|[passport]
ID-картка 001234567|[passport]
ID карта: 001234567|[passport]
id card no. 123456789|[passport]
passport: 123456789|[passport]
посвідчення особи № 001234567|[passport]
СНИЛС 112-233-445 95|[snils]
112-233-445 95|[snils]
снилс: 11223344595|[snils]
ИНН 500100732259|[taxid]
ИНН: 7707083893|[taxid]
ИНН организации 7707083893|[taxid]
ІПН 3184710691|[taxid]
РНОКПП: 3184710691|[taxid]
ідентифікаційний код 3184710691|[taxid]
податковий номер платника податків 3184710691|[taxid]
идентификационный код 3184710691|[taxid]
INN 500100732259|[taxid]
Authorization: Bearer abc123def456ghi789|[secret]
curl -H "Authorization: Bearer eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.abcdefgh"|[secret]
OPENAI_API_KEY=sk-proj-abcdefghijklmnop1234|[secret]
key sk-abcdefghijklmnop12345678|[secret]
rq_visibly-fake-key-0001|[secret]
AKIAIOSFODNN7EXAMPLE|[secret]
aws_secret_access_key = wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY|[secret]
ghp_abcdefghijklmnopqrstuvwxyz0123456789|[secret]
github_pat_11ABCDEFG0123456789_abcdef|[secret]
AIzaSyA1234567890abcdefghijklmnopqrstuv|[secret]
123456789:AAFabcdefghijklmnopqrstuvwxyz123456|[secret]
https://api.telegram.org/bot123456789:AAFabcdefghijklmnopqrstuvwxyz123456/getMe|[secret]
eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.dozjgNryP4J3jVmNHl0w5N_XgL0n3I9P|[secret]
пароль: Qwerty123!|[secret]
password=hunter2hunter2|[secret]
mongodb://user:pa55word@db.example.com/x|[secret]
токен: 8f14e45fceea167a5a36dedd4bea2543|[secret]
"token": "8f14e45fceea167a5a36dedd4bea2543"|[secret]
x-api-key: 8f14e45fceea167a5a36dedd4bea2543|[secret]
-----BEGIN OPENSSH PRIVATE KEY-----\nb3BlbnNzaC1rZXktdjEA0\n-----END OPENSSH PRIVATE KEY-----|[secret]
{"phone":"\n+380501234567"}|[phone]
{\"api_key\": \"0123456789abcdef\"}|[secret]
"a\tanna1@example.com"|[email]
закордонний паспорт FB123456|[passport]
PRIVATE: {'token': 'abcdef0123456789'}|[secret]
"""
PLAIN = r"""
Заказ № 1234567890 отправлен
Заказ 4510123456 от 12.03.2024
Замовлення №380501 на суму 1500 грн
Order #123456789012 shipped on 2024-03-12
Tracking 20450123456789 (Нова пошта)
ТТН 59000123456789
трек RB123456789CN
штрихкод 4820024700016
EAN 4006381333931
ISBN 978-5-04-101234-5
артикул АА-123456-Б
арт. 1234-5678-90
Цена 1 234 567 руб.
Цена: 12345678 сум
3 000 000 000 рублей
ціна 25 000,00 грн
price $1,234,567.89
USD 1234567890
от 10 000 до 50 000 ₽
12.03.2024 15:30
2024-03-12T15:30:00Z
2024-03-12 15:30:00.123456
с 01.01.2024 по 31.12.2024
10:00-19:00 Пн-Пт
версия 2.14.3.1
v10.4.2.0
Python 3.11.7
ver 1.2.3.4-beta
Chrome/124.0.6367.91 Safari/537.36
nginx/1.25.3
п. 3.2.1.4 договора
§ 5.1.2.3
раздел 1.2.3.4
127.0.0.1:8000
http://localhost:8080
0.0.0.0
00:1B:44:11:3A:B7
std::map<int, int>
a::b::c
12:34:56
1:2:3:4
uuid 550e8400-e29b-41d4-a716-446655440000
commit da39a3ee5e6b4b0d3255bfef95601890afd80709
md5 d41d8cd98f00b204e9800998ecf8427e
sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855
инвойс INV-20240312-0001
счёт 40817810099910004312
р/с 40702810400000001234
БИК 044525225
ОГРН 1027700132195
ЄДРПОУ 14360570
КПП 770701001
индекс 101000, Москва
індекс 03150, Київ
дом 12 корпус 3 кв 456
кабинет 1204, этаж 12
рейс SU 1234, место 12A
поезд 028А
автомобиль А123ВС777
номер авто АА1234ВВ
координаты 55.755826, 37.617300
50.4501° N, 30.5234° E
размер 1920x1080
вес 1200 г, 350 мл
температура -12...+5
счёт 3:2
1000000 просмотров
10 000 000 подписчиков
+15% к скорости
+100500
+1 000 000 монет
+250 000 грн
1-2-3-4-5
1, 2, 3, 4, 5, 6, 7, 8, 9, 10
2+2=4
100-200-300
телефон за 12 500 грн
Телефон 128 ГБ 2024 года
телефон iPhone 15 Pro Max 256
phone 15 pro 256GB 2024
mobile app 2.0.1
cell 12, row 1234567
паспорт изделия 123456
паспорт здоровья 2024
серия 5, эпизод 12
серия 2024 года, тираж 100000
серія книг 12, 2024 рік
пароль: обязателен
password: required
token count: 12345
ключ: значение
ключ 12345
secret santa 2024
api key is required
Bearer of bad news
sk-learn is a library
task-1234567890123456
risk-1234567890abcdefghij
rq_ is a prefix
mask_personal_data_2024_version
AKIA is not enough
npm i @types/node@20.1.0
user@host
foo@bar
@nickname
a @ b.com
lodash@4.17.21
ИНН не указан
ИНН 1234567890
ІПН 1234567890
СНИЛС 123-456-789 00
код 1234567890
номер заказа 5001007322
номер договора 500100732259
код товара 3184710691
7707083893
3184710691
4111 1111 1111 1112
1234 5678 9012 3456
1234567812345678
0000 0000 0000 0000
GB82WEST12345698765433
UA123456
АБ 12
НА 123456 рублей
ДО 500000
ПО 123456
СССР 123456
USB 3.2 Gen 2x2
IP67, IP68
IPv4 и IPv6
CVE-2024-123456
RFC 9110, ISO 13616
GPT-4o, o1-preview-2024-09-12
gpt-4o-mini-2024-07-18
1e10, 0xDEADBEEF, #ff00ff
SELECT 1234567
http://example.com/12345678901
https://example.com/order/4510123456?x=1
/dev/sda1 12345678
3.14159265358979
1.234567e+10
16.03.1985
0,5-0,7 мм
2/3, 1/4
100 000 000 000
№ 8 916
8 800 рублей
8 (восемь) штук
7 900 000 руб
9 мая 1945
24/7
с 9 до 18
300-летие
21 век, XXI
паспорт изделия на 123456 циклов
id 1700000000123 at 1700000000
task_07f3a9c1e2b84d5f9a0b1c2d3e4f5a6b71
"""


def test_what_people_write_in_three_languages_is_found() -> None:
    lines = [line.rsplit("|", 1) for line in PERSONAL.strip().splitlines()]
    assert [(line, kept) for line, kind in lines if kind not in (kept := masking.text(line))] == []
    assert len(lines) >= 95


def test_what_looks_a_little_like_it_stays() -> None:
    lines = PLAIN.strip("\n").splitlines()
    assert [(line, kept) for line in lines if (kept := masking.text(line)) != line] == []
    assert len(lines) >= 150


def test_a_mark_is_told_the_kind_and_what_it_was_and_files_stay() -> None:
    told: list[tuple[str, str]] = []

    def mark(kind: str, found: str) -> str:
        told.append((kind, found))
        return "*"

    image = "data:image/png;base64,iVBORw0KGgo="
    text = f"ИНН 7707083893, тел. 234-56-78, https://anna:hunter22@example.com, Bearer abcdef1234567890, {image}"
    assert masking.marked(text, mark) == f"ИНН *, тел. *, https://*@example.com, Bearer *, {image}"
    assert sorted(told) == [
        ("phone", "234-56-78"), ("secret", "abcdef1234567890"), ("secret", "anna:hunter22"), ("taxid", "7707083893")
    ]  # fmt: skip
    assert {kind for kind, _ in told} <= set(masking.KINDS)


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
    "\ud800\0", "п.1.1.1.1 ", "ИНН ", "код 1", "ИНН 1 1", "112-233-445-", "\\n", "\\u1234", "\\\\", "token: \\", "паспорт АА", "/bot1",
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
