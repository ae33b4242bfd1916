"""Which URLs are taken: in every spelling, an address of our own network is refused, and what was read is what is called."""

from __future__ import annotations

import ipaddress
import threading

import hypothesis
import pytest
from hypothesis import strategies as st

from app.core import errors
from app.webhooks import addresses, urls
from app.webhooks.names import Names, Slow
from app.webhooks.receivers import Forbidden, Receivers
from app.webhooks.urls import Address

WORLD = ipaddress.ip_address("93.184.215.14")


def found(*texts: str) -> Names:
    return Names(lambda name: [ipaddress.ip_address(text) for text in texts])


def refusal(receivers: Receivers, text: str) -> str:
    with pytest.raises(errors.WebhookUrlRefused) as caught:
        receivers.check(text)
    assert caught.value.param == "webhook_url"
    return str(caught.value)


PRIVATE = [
    "http://127.0.0.1/", "http://127.1/", "http://2130706433/", "http://0x7f000001/", "http://0x7f.1/", "http://0177.0.0.1/",
    "http://017700000001/", "http://0/", "http://0.0.0.0/", "http://10.1.2.3/", "http://172.16.0.1/", "http://172.31.255.255/",
    "http://192.168.1.1/", "http://169.254.169.254/latest/meta-data/", "http://100.64.0.1/", "http://100.100.100.200/",
    "http://192.0.0.192/", "http://198.18.0.1/", "http://192.0.2.1/", "http://224.0.0.1/", "http://255.255.255.255/",
    "http://168.63.129.16/", "http://127.0.0.1./", "http://１２７.０.０.１/", "http://127。0。0。1/", "http://①②⑦.0.0.1/",
    "http://[::]/", "http://[::1]/", "http://[::ffff:127.0.0.1]/", "http://[::ffff:7f00:1]/", "http://[0:0:0:0:0:ffff:10.0.0.1]/",
    "http://[::127.0.0.1]/", "http://[fe80::1]/", "http://[fc00::1]/", "http://[fd00:ec2::254]/", "http://[fec0::1]/",
    "http://[ff02::1]/", "http://[64:ff9b::7f00:1]/", "http://[64:ff9b::10.0.0.1]/", "http://[64:ff9b:1::a00:1]/",
    "http://[2002:7f00:1::]/", "http://[2002:a00:1::1]/", "http://[2001:0:4136:e378:8000:63bf:80ff:fffe]/", "http://[2001:db8::1]/",
    "http://[2a00:1450:4001:80b:0:5efe:10.0.0.1]/", "http://[100::1]/", "http://[3fff::1]/",
]  # fmt: skip


@pytest.mark.parametrize("text", PRIVATE)
def test_an_address_that_is_not_public_is_refused_in_every_spelling(text: str) -> None:
    assert "not public" in refusal(Receivers(allow_private=False, names=found()), text)


@pytest.mark.parametrize("text", PRIVATE)
def test_where_private_ones_are_allowed_the_same_address_is_taken(text: str) -> None:
    assert urls.parse(Receivers(allow_private=True).check(text)).address is not None


@pytest.mark.parametrize(
    "text",
    ["https://8.8.8.8/a", "https://1.1.1.1", "http://[2606:4700::1111]/", "https://[::ffff:8.8.8.8]/", "http://[64:ff9b::808:808]/"],
)  # fmt: skip
def test_an_address_of_the_world_is_taken(text: str) -> None:
    assert Receivers(allow_private=False).check(text)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("ftp://a.example/", "https://"), ("gopher://a.example/", "https://"), ("file:///etc/passwd", "https://"),
        ("//a.example/", "https://"), ("a.example/hook", "https://"), ("", "https://"), ("https:/a.example", "https://"),
        ("https://user:secret@a.example/", "user name"), ("https://a.example@127.0.0.1/", "user name"),
        ("https://a.example:0/", "port"), ("https://a.example:65536/", "port"), ("https://a.example:x/", "port"),
        ("https://a.example:/", "port"), ("https://a.example:25/", "port"), ("https://a.example:22/", "port"),
        ("https://a b.example/", "space"), ("https://a.example/\r\nX: y", "control"), ("https://a.example\\@127.0.0.1/", "backslash"),
        ("https://%31%32%37.0.0.1/", "percent"), ("https://[fe80::1%25eth0]/", "zone"), ("https://[fe80::1%eth0]/", "zone"),
        ("https://::1/", "host"), ("https:///hook", "host"), ("https://a..example/", "host"), ("https://-a.example/", "host"),
        ("https://1.2.3.4.5/", "address"), ("https://256.1.1.1/", "address"), ("https://0x/", "not"), ("https://[::1/", "host"),
        ("https://[::1]a/", "host"), ("https://a.example/" + "x" * 2048, "longer"),
        ("https://a.example/" + "я" * 400, "longer"),
    ],
)  # fmt: skip
def test_a_url_that_cannot_be_called_is_refused_with_the_reason(text: str, reason: str) -> None:
    assert reason in refusal(Receivers(allow_private=False, names=found("8.8.8.8")), text)


@pytest.mark.parametrize(
    ("text", "called"),
    [
        ("HTTPS://Hooks.Example/A?b=1#c", "https://hooks.example/A?b=1"),
        ("https://hooks.example.:443", "https://hooks.example/"),
        ("http://hooks.example:8080/x?", "http://hooks.example:8080/x"),
        ("https://bücher.example/ä", "https://xn--bcher-kva.example/%C3%A4"),
        ("https://straße.example/", "https://xn--strae-oqa.example/"),
        ("https://hooks.example/%7Ea%20b", "https://hooks.example/%7Ea%20b"),
        ("http://[2606:4700:0::1111]:81/", "http://[2606:4700::1111]:81/"),
    ],
)
def test_a_url_is_read_once_into_what_is_called(text: str, called: str) -> None:
    assert Receivers(allow_private=True).check(text) == called


@hypothesis.given(st.text(max_size=60) | st.from_regex(r"https?://[a-z0-9.\[\]:%@/?#ä。\\-]{0,40}", fullmatch=True))
@hypothesis.example("http://0x7f.1:1/%zz?ä#")
def test_what_was_read_is_read_the_same_again(text: str) -> None:
    receivers = Receivers(allow_private=True)
    try:
        called = receivers.check(text)
    except errors.WebhookUrlRefused:
        return
    assert called.isascii()
    assert receivers.check(called) == called


@hypothesis.given(st.ip_addresses(v=4))
def test_an_ipv4_address_is_judged_the_same_within_ipv6(address: ipaddress.IPv4Address) -> None:
    public = addresses.is_public(address)
    assert not (public and (address.is_private or address.is_multicast or address.is_reserved or address.is_loopback))
    for text in (f"::ffff:{address}", f"64:ff9b::{address}"):
        assert addresses.is_public(ipaddress.ip_address(text)) == public
    assert not addresses.is_public(ipaddress.IPv6Address((0x2002 << 112) | (int(address) << 80)))


@pytest.mark.parametrize("others", [[], ["93.184.215.14"]])
def test_a_name_that_leads_into_our_network_is_refused_whatever_else_it_leads_to(others: list[str]) -> None:
    assert "not public" in refusal(
        Receivers(allow_private=False, names=found(*others, "10.0.0.1")), "https://a.example/"
    )
    assert Receivers(allow_private=False, names=found("93.184.215.14")).check("https://a.example/")


def test_a_name_is_looked_up_once_a_minute_and_one_that_is_slow_or_unknown_is_left_to_the_delivery() -> None:
    asked, now = [], [0.0]

    def lookup(name: str) -> list[Address]:
        asked.append(name)
        if name == "broken.example":
            raise OSError("no server")
        return [] if name == "unknown.example" else [ipaddress.ip_address("10.0.0.1")]

    receivers = Receivers(allow_private=False, names=Names(lookup), clock=lambda: now[0])
    for name in ("broken.example", "unknown.example"):
        assert receivers.check(f"https://{name}/")
    for _ in range(3):
        refusal(receivers, "https://inside.example/")
    now[0] = 61.0
    refusal(receivers, "https://inside.example/")
    assert asked == ["broken.example", "unknown.example", "inside.example", "inside.example"]


def test_a_look_up_that_hangs_is_left_behind() -> None:
    over = threading.Event()
    names = Names(lambda name: [WORLD] if over.wait(60) else [])
    with pytest.raises(Slow):
        names.addresses("slow.example", 0.05)
    over.set()
    assert names.addresses("slow.example", 30) == [WORLD]


def test_so_many_look_ups_that_hang_make_the_next_one_slow_and_no_more_threads() -> None:
    over = threading.Event()
    names = Names(lambda name: [WORLD] if over.wait(60) else [])
    before = threading.active_count()
    for _ in range(70):
        with pytest.raises(Slow):
            names.addresses("slow.example", 0.001)
    assert threading.active_count() - before <= 64
    over.set()


def test_no_name_is_looked_up_where_private_addresses_are_allowed() -> None:
    def never(name: str) -> list[Address]:
        raise AssertionError(name)

    assert Receivers(allow_private=True, names=Names(never)).check("http://localhost:9/") == "http://localhost:9/"


def test_at_delivery_a_private_address_is_forbidden_too() -> None:
    receivers = Receivers(allow_private=False, names=found("8.8.8.8", "127.0.0.1"))
    with pytest.raises(Forbidden):
        receivers.addresses(urls.parse("https://a.example/"), 1)
    with pytest.raises(Forbidden):
        receivers.addresses(urls.parse("https://127.0.0.1/"), 1)
