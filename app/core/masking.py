"""Personal data and secrets taken out of text: what names, reaches, pays for or opens something is replaced by its kind in brackets.

Written for texts that anybody may send, a megabyte of them, so that every pattern is linear: an attempt that fails has looked at a
bounded number of characters, or begins where a run of characters begins (the look-behind), so that no run is gone through twice; what
is unbounded is possessive (`++`). Where a pattern alone would say too much, a check decides: Luhn, mod-97, lengths, words before it.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable
from typing import Any

_WORTH_A_LOOK = re.compile(r"[0-9@]")
_NUMBER = re.compile(r"[0-9](?:[^0-9\n]{0,3}[0-9]){5}")
_ESCAPE = re.compile(r"(?<!\\)(\\[bfnrt]|\\u[0-9A-Fa-f]{4})")
_LONG = 256
_LOOK_BACK = 24

KINDS = ("email", "phone", "card", "iban", "ip", "secret", "passport", "snils", "taxid")
Mark = Callable[[str, str], str]
"""Returns what stands in place of something, by its kind and what it was."""


def kind_alone(kind: str, _found: str) -> str:
    return f"[{kind}]"


def text(value: str) -> str:
    """Return a text with personal data and secrets replaced: `[email]`, `[phone]`, `[card]`, `[iban]`, `[ip]`, `[secret]`,
    `[passport]`, `[snils]`, `[taxid]`; files within it (data URLs, base64) by their type and length."""
    if not _WORTH_A_LOOK.search(value):  # all of them have an at sign or a digit
        return value
    if "base64," in value:
        value = _DATA_URL.sub(_data_url, value)
    return marked(_without_base64(value), kind_alone)


def marked(value: str, mark: Mark) -> str:
    """Return a text with personal data and secrets replaced as `mark` says; files in it stay."""
    if not _WORTH_A_LOOK.search(value):
        return value
    if "PRIVATE KEY" in value:
        value = _KEY_BLOCK.sub(lambda found: mark("secret", found[0]), value)
    if "\\" not in value:
        return _with_rules(value, mark)
    # JSON, or what a program printed: the n of \n is no letter of what follows it.
    return "".join(part if number % 2 else _with_rules(part, mark) for number, part in enumerate(_ESCAPE.split(value)))


def _with_rules(value: str, mark: Mark) -> str:
    if not _WORTH_A_LOOK.search(value):
        return value
    lower, has_number = value.lower(), _NUMBER.search(value) is not None
    for signs, of_a_number, replace in _RULES:  # to look for a few words costs a hundredth of a pattern
        if (has_number or not of_a_number) and (not signs or any(sign in lower for sign in signs)):
            value = replace(value, mark)
    return value


def document(value: Any) -> Any:
    """Return a copy of a JSON value, parsed, with every string in it masked; names of members, numbers and the rest stay."""
    whole = [value]
    within: list[Any] = [
        whole
    ]  # a list of its own, not the interpreter's stack: how deep a document is its sender decides
    while within:
        container = within.pop()
        for place, item in container.items() if isinstance(container, dict) else enumerate(container):
            if isinstance(item, str):
                container[place] = text(item)
            elif isinstance(item, dict | list):
                container[place] = item.copy()
                within.append(container[place])
    return whole[0]


# Files. A run of base64 is one only if it has all kinds of characters: a long laugh has not.

_DATA_URL = re.compile(r"data:([\w.+-]{1,64}/[\w.+-]{1,64})?(?:;[\w.=+-]{1,64}){0,4};base64,([A-Za-z0-9+/=_-]++)")
_BASE64 = re.compile(rf"(?<![A-Za-z0-9+/_-])[A-Za-z0-9+/_-]{{{_LONG},}}+={{0,2}}")
_CHARACTERS = [re.compile(kind) for kind in ("[a-z]", "[A-Z]", "[0-9]")]


def _data_url(found: re.Match[str]) -> str:
    return f"[{found[1] or 'data'}, {_size(found[2])} bytes]"


def _without_base64(value: str) -> str:
    return _BASE64.sub(_base64, value) if any(len(word) >= _LONG for word in value.split()) else value


def _base64(found: re.Match[str]) -> str:
    whole = found[0]
    return f"[base64, {_size(whole)} bytes]" if all(kind.search(whole) for kind in _CHARACTERS) else whole


def _size(encoded: str) -> int:
    return len(encoded.rstrip("=")) * 3 // 4


# Secrets: what is known by its beginning, and what a name before it says to be one.

_KEY_BLOCK = re.compile(r"-----BEGIN [A-Z ]{0,32}PRIVATE KEY-----(?:(?!-----)[\s\S])*+(?:-----END [A-Z ]{0,40}-----)?")
_URL_PASSWORD = re.compile(r"(?<=://)[^\s/@:]{0,128}:[^\s/@]{1,256}@")
_KNOWN_SECRET = re.compile(r"""
    (?<![A-Za-z0-9])(?:
        (?:(?:sk|glpat|xox[abeoprs])-|(?:rq|[spr]k_(?:live|test)|gh[opsur]|github_pat|hf|npm|whsec|dop_v1)_|AIza)[A-Za-z0-9_-]{16,}+
      | (?:AKIA|ASIA|ABIA|ACCA)[A-Z0-9]{16}(?![A-Za-z0-9])
      | SG\.[A-Za-z0-9_-]{16,}+\.[A-Za-z0-9_-]{16,}+
      | (?<![A-Za-z0-9_-])eyJ[A-Za-z0-9_-]{8,}+\.[A-Za-z0-9_-]{8,}+(?:\.[A-Za-z0-9_-]++)?
    )""", re.VERBOSE)  # fmt: skip
_TELEGRAM_TOKEN = re.compile(r"(?:(?<![A-Za-z0-9])|(?<=/bot))[0-9]{6,12}:[A-Za-z0-9_-]{35}(?![A-Za-z0-9_-])")
_BEARER = re.compile(
    r"\b(bearer|authorization:[ \t]{0,4}(?:basic|token))([ \t]{1,8})([A-Za-z0-9._~+/-]{12,}+=*+)", re.IGNORECASE
)
_NAMED_SECRET = re.compile(
    r"""(?<![A-Za-z])(api[_ -]?key|access[_ -]?key(?:[_ -]?id)?|secret(?:[_ -]?(?:access[_ -]?)?key)?|(?:access[_ -]?|auth[_ -]?)?token"""
    r"""|password|passwd|pwd|пароль|ключ|токен|секрет)"""
    r"""((?:\\?["'])?[ \t]{0,4}[:=][ \t]{0,4}(?:\\?["'])?)((?:[^\s"',;<>\[\]\\]|\\(?!["'])){8,}+)""",
    re.IGNORECASE,
)


_SECRETS_BEGIN = (
    "sk-", "glpat-", "xox", "rq_", "k_live_", "k_test_", "ghp_", "gho_", "ghs_", "ghu_", "ghr_", "github_pat_", "hf_", "npm_",
    "whsec_", "dop_v1_", "aiza", "akia", "asia", "abia", "acca", "sg.", "eyj",
)  # fmt: skip


def _known_secret(found: re.Match[str], mark: Mark) -> str:
    return mark("secret", found[0]) if _has_digit(found[0]) else found[0]


def _url_password(found: re.Match[str], mark: Mark) -> str:
    return mark("secret", found[0][:-1]) + "@"


def _telegram_token(found: re.Match[str], mark: Mark) -> str:
    return mark("secret", found[0])


def _bearer(found: re.Match[str], mark: Mark) -> str:
    return f"{found[1]}{found[2]}{mark('secret', found[3])}" if _has_digit(found[3]) else found[0]


def _named_secret(found: re.Match[str], mark: Mark) -> str:
    is_one = _has_digit(found[3]) and any(character.isalpha() for character in found[3])
    return f"{found[1]}{found[2]}{mark('secret', found[3])}" if is_one else found[0]


def _has_digit(value: str) -> bool:
    return _CHARACTERS[2].search(value) is not None


# Addresses of people.

_EMAIL = re.compile(r"(?<![\w.+%'-])[\w.+%'-]++@(?:[\w-]{1,63}\.){1,8}[^\W\d_]{2,24}")


def _email(found: re.Match[str], mark: Mark) -> str:
    return mark("email", found[0])


# Accounts and cards.

_IBAN_HEAD = re.compile(r"(?<![A-Za-z0-9])[A-Za-z]{2}[0-9]{2}(?=[ -]?[A-Za-z0-9]{4})")
_IBAN_LENGTHS = {
    "AD": 24, "AE": 23, "AL": 28, "AT": 20, "AZ": 28, "BA": 20, "BE": 16, "BG": 22, "BH": 22, "BR": 29, "BY": 28, "CH": 21, "CR": 22,
    "CY": 28, "CZ": 24, "DE": 22, "DK": 18, "DO": 28, "EE": 20, "EG": 29, "ES": 24, "FI": 18, "FO": 18, "FR": 27, "GB": 22, "GE": 22,
    "GI": 23, "GL": 18, "GR": 27, "GT": 28, "HR": 21, "HU": 28, "IE": 22, "IL": 23, "IQ": 23, "IS": 26, "IT": 27, "JO": 30, "KW": 30,
    "KZ": 20, "LB": 28, "LC": 32, "LI": 21, "LT": 20, "LU": 20, "LV": 21, "LY": 25, "MC": 27, "MD": 24, "ME": 22, "MK": 19, "MN": 20,
    "MR": 27, "MT": 31, "MU": 30, "NL": 18, "NO": 15, "PK": 24, "PL": 28, "PS": 29, "PT": 25, "QA": 29, "RO": 24, "RS": 22, "RU": 33,
    "SA": 24, "SC": 31, "SE": 24, "SI": 19, "SK": 24, "SM": 27, "ST": 25, "SV": 28, "TL": 23, "TN": 24, "TR": 26, "UA": 29, "VA": 22,
    "VG": 24, "XK": 20,
}  # fmt: skip  # ISO 13616's register
_IBAN = {
    length: re.compile(rf"(?:[ -]?[A-Za-z0-9]){{{length - 4}}}(?![A-Za-z0-9])")
    for length in set(_IBAN_LENGTHS.values())
}
_CARD = re.compile(
    r"(?<![0-9])(?<![0-9][.,])"
    r"(?:[0-9]{14,19}|[0-9]{4}([ \u00a0-])[0-9]{4}\1[0-9]{4}\1[0-9]{4}|[0-9]{4}[ -][0-9]{6}[ -][0-9]{4,5})(?![0-9])"
)
_CARD_ISSUER = re.compile(
    r"4[0-9]{15}(?:[0-9]{3})?|(?:5[0-9]|2[2-7]|35)[0-9]{14}|6[0-9]{15,18}|3[47][0-9]{13}|3[0689][0-9]{12}"
)  # Visa; Mastercard and Maestro, Mir, JCB; UnionPay and Discover; American Express; Diners


def _without_ibans(value: str, mark: Mark) -> str:
    """Replace IBANs: where one begins, its country says how long it is."""
    kept, position = [], 0
    for head in _IBAN_HEAD.finditer(value):
        length = _IBAN_LENGTHS.get(head[0][:2].upper())
        rest = _IBAN[length].match(value, head.end()) if length and head.start() >= position else None
        if rest and _mod_97(head[0] + rest[0]):
            kept += [value[position : head.start()], mark("iban", head[0] + rest[0])]
            position = rest.end()
    return "".join([*kept, value[position:]])


def _mod_97(iban: str) -> bool:
    plain = iban.replace(" ", "").replace("-", "")
    if sum(character.isdigit() for character in plain) < 10:  # a sentence that happens to begin like one
        return False
    return int("".join(str(int(character, 36)) for character in plain[4:] + plain[:4])) % 97 == 1


def _card(found: re.Match[str], mark: Mark) -> str:
    digits = re.sub("[^0-9]", "", found[0])
    return mark("card", found[0]) if _CARD_ISSUER.fullmatch(digits) and _luhn(digits) else found[0]


def _luhn(digits: str) -> bool:
    doubled = [sum(divmod(2 * int(digit), 10)) for digit in digits[-2::-2]]
    return (sum(doubled) + sum(int(digit) for digit in digits[::-2])) % 10 == 0


# Passports: a Russian one (4 + 6 digits; 2 + 7 abroad) and an ID card's nine digits where a word says so; a Ukrainian booklet's two
# letters and six digits by themselves, unless the letters are a word in capitals.

_NAMED_PASSPORT = re.compile(
    r"(?<!\w)((?:загран)?(?:паспорт|passport)\w{0,6}|сері[яїю]|сери[яию]|id[ -]?card|id[ -]?карт\w{0,3}|посвідчення)([^0-9\n]{0,40})"
    r"([0-9]{2}[ -]?[0-9]{2}[^0-9\n\]]{0,12}[0-9]{6}|[0-9]{2}[ -]?(?:№ ?)?[0-9]{7}"
    r"|(?<!\w)(?-i:[A-ZА-ЯҐЄІЇ]{2})[ -]?(?:№ ?)?[0-9]{6})(?![0-9])",
    re.IGNORECASE,
)
_BOOKLET = re.compile(r"(?<!\w)([А-ЩЬЮЯҐЄІЇ]{2})[ \u00a0-]?(?:№ ?)?[0-9]{6}(?!-?\w)")
_WORDS_OF_TWO = re.compile(r"[ДП]О|ОТ|Н[АЕИІ]|З[АІ]|[ИІ]З|ВО|[СК]О|ОБ|[ТЦЩ][ОЕ]|[МВТ][ЫИ]|ОН|ЯК|РФ|[ЄЕ]С")


def _named_passport(found: re.Match[str], mark: Mark) -> str:
    return f"{found[1]}{found[2]}{mark('passport', found[3])}"


def _booklet(found: re.Match[str], mark: Mark) -> str:
    return found[0] if _WORDS_OF_TWO.fullmatch(found[1]) else mark("passport", found[0])


# Numbers of people: Russia's SNILS and INN, Ukraine's RNOKPP. Where neither their form nor a word says what they are they stay: one
# number of ten passes the checks of some by chance. What does not pass them is no such number, whatever the word.

_SNILS = re.compile(r"(?<![\w-])[0-9]{3}-[0-9]{3}-[0-9]{3}[ -][0-9]{2}(?![\w-])")
_NAMED_NUMBER = re.compile(
    r"(?<!\w)((?:снилс|snils|инн|inn|іпн|ипн|рнокпп|rnokpp|код дрфо"
    r"|(?:ідентифікаційн|идентификационн|податков|налогов)\w{0,4} (?:код|номер)\w{0,3}(?: платника податків| налогоплательщика)?)(?!\w)"
    r"[^0-9\n\]]{0,16})([0-9](?:[ -]?[0-9]){9,11})(?![0-9])",
    re.IGNORECASE,
)
_INN_10, _INN_11, _INN_12 = (
    (2, 4, 10, 3, 5, 9, 4, 6, 8),
    (7, 2, 4, 10, 3, 5, 9, 4, 6, 8),
    (3, 7, 2, 4, 10, 3, 5, 9, 4, 6, 8),
)
_RNOKPP = (-1, 5, 7, 9, 4, 6, 10, 5, 7)


def _snils(found: re.Match[str], mark: Mark) -> str:
    return mark("snils", found[0]) if _is_snils(_digits(found[0])) else found[0]


def _named_number(found: re.Match[str], mark: Mark) -> str:
    digits = _digits(found[2])
    if len(digits) == 11 and _is_snils(digits):
        return found[1] + mark("snils", found[2])
    return found[1] + mark("taxid", found[2]) if _is_tax_number(digits) else found[0]


def _is_snils(digits: list[int]) -> bool:
    return sum(digit * (9 - place) for place, digit in enumerate(digits[:9])) % 101 % 100 == digits[9] * 10 + digits[10]


def _is_tax_number(digits: list[int]) -> bool:
    if len(digits) == 12:
        return _check(digits, _INN_11) == digits[10] and _check(digits, _INN_12) == digits[11]
    return len(digits) == 10 and digits[9] in (_check(digits, _INN_10), _check(digits, _RNOKPP))


def _check(digits: list[int], weights: tuple[int, ...]) -> int:
    return sum(digit * weight for digit, weight in zip(digits, weights, strict=False)) % 11 % 10


def _digits(value: str) -> list[int]:
    return [int(character) for character in value if character.isdigit()]


# Addresses of machines. Four numbers may be a version or a paragraph, and two hexadecimal words with colons a name in a program.

_IPV4 = re.compile(r"[0-9](?<![\w.][0-9])[0-9]{0,2}(?:\.[0-9]{1,3}){3}(?!\w|\.[0-9])")
_IPV6 = re.compile(r"(?<![\w:.])[0-9A-Fa-f]{0,4}(?::[0-9A-Fa-f]{0,4}){2,8}(?![\w:])")
_NO_ADDRESS = re.compile(
    r"(?:version|ver\.?|верси[яиюей]{1,2}|версі[яїюєй]{1,2}|release|релиз|реліз|build|сборка|збірка|firmware|section|chapter|раздел|розділ|пункт|п\.|§"
    r"|[A-Za-z]/)[ \t:№#]{0,3}$",
    re.IGNORECASE,
)


def _ipv4(found: re.Match[str], mark: Mark) -> str:
    parts = [int(part) for part in found[0].split(".")]
    nobodys = parts[0] == 127 or not any(parts)  # this machine itself
    is_one = max(parts) < 256 and not nobodys and not _NO_ADDRESS.search(_before(found))
    return mark("ip", found[0]) if is_one else found[0]


def _without_ipv6(value: str, mark: Mark) -> str:
    return _rule(_IPV6, _ipv6)(value, mark) if "::" in value or value.count(":") >= 7 else value


def _ipv6(found: re.Match[str], mark: Mark) -> str:
    groups = [group for group in found[0].split(":") if group]
    if len(groups) < 2 or not _has_digit(found[0]):
        return found[0]
    try:
        ipaddress.IPv6Address(found[0])
    except ValueError:
        return found[0]
    return mark("ip", found[0])


# Phones: with a plus; in the forms of Russia, Ukraine and North America; and any seven digits or more that a word says to be one.

_MOBILE = "0(?:39|50|63|66|67|68|73|9[1-9])"
_GAP = r"[ \u00a0().\u2011\u2013-]{0,3}"
_PHONE = re.compile(rf"""
    (?<![\w+.,/#№-])(?:
        \+(?: 7(?:{_GAP}[0-9]){{10}} | 380(?:{_GAP}[0-9]){{9}} | 1(?:{_GAP}[0-9]){{10}} | [2-9](?:{_GAP}[0-9]){{8,14}} )
      | [78][ \u00a0-]?(?:\(9[0-9]{{2}}\)|9[0-9]{{2}})[ \u00a0-]?
        (?:[0-9]{{3}}[ \u00a0-]?[0-9]{{2}}|[0-9]{{2}}[ \u00a0-]?[0-9]{{3}})[ \u00a0-]?[0-9]{{2}}
      | 8[ \u00a0-]?(?:\([348][0-9]{{2,4}}\)|[348][0-9]{{2,4}})[ \u00a0-][0-9]{{1,3}}[ \u00a0-]?[0-9]{{2}}[ \u00a0-][0-9]{{2}}
      | (?:3[ -]?8[ -]?)?(?:\({_MOBILE}\)|{_MOBILE})(?:[ \u00a0-]?[0-9]){{7}}
      | \(0[3-6][0-9]{{1,3}}\)(?:[ \u00a0-]?[0-9]){{5,7}}
      | (?:1[ .-]?)?\([2-9][0-9]{{2}}\)[ \u00a0]?[0-9]{{3}}[ \u00a0.-][0-9]{{4}}
      | (?:1[ .-])?[2-9][0-9]{{2}}([.-])[2-9][0-9]{{2}}\1[0-9]{{4}}
    )(?![0-9]|[.,:][0-9])""", re.VERBOSE)  # fmt: skip
_NAMED_PHONE = re.compile(
    r"(?<!\w)((?:тел(?:ефон\w{0,3})?|моб(?:ильн\w{0,3}|ільн\w{0,3})?|phone|mobile|cell|tel|whats ?app|viber|вайбер|ват?сап|wa\.me)(?!\w)"
    rf"(?:[ \t.:/№#–-]|номер\w?|number|no\.){{0,6}})((?:\+|\()?[0-9](?:{_GAP}[0-9]){{6,14}})(?![0-9])",
    re.IGNORECASE,
)
_AMOUNT = re.compile(r"\+?[0-9]{1,3}(?:[ \u00a0.,][0-9]{3}){2,4}")
_DATE = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}|[0-9]{1,2}\.[0-9]{1,2}\.[0-9]{4}")


def _phone(found: re.Match[str], mark: Mark) -> str:
    digits = sum(character.isdigit() for character in found[0])
    if found[0][0] in "78" and digits != 11:
        return found[0]
    is_amount = _AMOUNT.fullmatch(found[0]) and (
        digits < 10 or found[0].endswith("000")
    )  # +250 000 000, and not +48 501 234 567
    return found[0] if is_amount else mark("phone", found[0])


def _named_phone(found: re.Match[str], mark: Mark) -> str:
    if _AMOUNT.fullmatch(found[2]) or _DATE.match(found[2]):
        return found[0]
    return f"{found[1]}{mark('phone', found[2])}"


def _before(found: re.Match[str]) -> str:
    return found.string[max(0, found.start() - _LOOK_BACK) : found.start()]


def _rule(pattern: re.Pattern[str], replace: Callable[[re.Match[str], Mark], str]) -> Callable[[str, Mark], str]:
    return lambda value, mark: pattern.sub(lambda found: replace(found, mark), value)


_RULES: tuple[tuple[tuple[str, ...], bool, Callable[[str, Mark], str]], ...] = (
    (("://",), False, _rule(_URL_PASSWORD, _url_password)),
    (_SECRETS_BEGIN, False, _rule(_KNOWN_SECRET, _known_secret)),
    ((":",), True, _rule(_TELEGRAM_TOKEN, _telegram_token)),
    (("bearer", "authorization"), False, _rule(_BEARER, _bearer)),
    (("key", "token", "secret", "passw", "pwd", "пароль", "ключ", "токен", "секрет"), False, _rule(_NAMED_SECRET, _named_secret)),
    (("@",), False, _rule(_EMAIL, _email)),
    ((), True, _without_ibans),
    (("паспорт", "passport", "сері", "сери", "id", "посвідчення"), True, _rule(_NAMED_PASSPORT, _named_passport)),
    ((), True, _rule(_BOOKLET, _booklet)),
    (("-",), True, _rule(_SNILS, _snils)),
    (("снилс", "snils", "нн", "inn", "пн", "рнокпп", "rnokpp", "дрфо", "номер", "код"), True, _rule(_NAMED_NUMBER, _named_number)),
    ((), True, _rule(_CARD, _card)),
    ((".",), False, _rule(_IPV4, _ipv4)),
    ((":",), False, _without_ipv6),
    (
        ("тел", "моб", "phone", "mobile", "cell", "tel", "whats", "viber", "вайбер", "сап", "wa.me"),
        True,
        _rule(_NAMED_PHONE, _named_phone),
    ),
    ((), True, _rule(_PHONE, _phone)),
)  # fmt: skip
"""What a text must have one of (in small letters) for a rule to apply, whether it needs six digits close together, and the rule; the
longer and the surer ones first."""
