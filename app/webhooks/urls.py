"""The URLs that webhooks are posted to: read once, strictly, so that what was checked is what is called."""

from __future__ import annotations

import dataclasses
import hashlib
import ipaddress
import re
import socket
import urllib.parse

import idna

from app.core import errors

MOST_CHARACTERS = 2048
_PORTS = {"http": 80, "https": 443}
_LABEL = re.compile(r"[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?")
_NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*")
_SAFE = "/%:@!$&'()*+,;=-._~?[]"

Address = ipaddress.IPv4Address | ipaddress.IPv6Address


@dataclasses.dataclass(frozen=True, slots=True)
class Url:
    """A receiver's address: `host` in ASCII, an IPv6 one without brackets; `target` is path and query."""

    scheme: str
    host: str
    port: int
    target: str

    @property
    def address(self) -> Address | None:
        """Return the address where the host is one, None for a name."""
        try:
            return ipaddress.ip_address(self.host)
        except ValueError:
            return None

    @property
    def authority(self) -> str:
        """Return what the Host header says."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == _PORTS[self.scheme] else f"{host}:{self.port}"

    @property
    def text(self) -> str:
        """Return the whole as it is kept and called: what `parse` reads as this again."""
        return f"{self.scheme}://{self.authority}{self.target}"

    @property
    def receiver(self) -> str:
        """Return a short hash of scheme, host and port: who is spoken to."""
        return hashlib.blake2b(f"{self.scheme}://{self.authority}".encode(), digest_size=10).hexdigest()


def refused(message: str) -> errors.WebhookUrlRefused:
    return errors.WebhookUrlRefused(f"webhook_url: {message}", param="webhook_url")


def parse(text: str) -> Url:
    """Read a URL; raise `WebhookUrlRefused` for one that cannot be called, or that two readers might read differently."""
    if len(text) > MOST_CHARACTERS:
        raise refused(f"it is longer than {MOST_CHARACTERS} characters")
    if re.search(r"[\x00-\x20\x7f\\\ud800-\udfff]", text):
        raise refused("it holds a space, a backslash or a control character; write them percent-encoded")
    try:
        parts = urllib.parse.urlsplit(text)
        port = parts.port
    except ValueError:
        raise refused("its host or port cannot be read") from None
    scheme = parts.scheme.lower()
    if scheme not in _PORTS or not text[len(scheme) :].startswith("://"):
        raise refused("it must begin with https:// or http://")
    if "@" in parts.netloc:
        raise refused("it must not hold a user name or password; put a secret into the path, or check the signature")
    if port == 0 or parts.netloc.endswith(":"):
        raise refused("its port must be 1 to 65535")
    host = _host(parts.netloc)
    path = urllib.parse.quote(parts.path or "/", safe=_SAFE)
    query = f"?{urllib.parse.quote(parts.query, safe=_SAFE)}" if parts.query else ""
    url = Url(scheme, host, port or _PORTS[scheme], path + query)
    if len(url.text) > MOST_CHARACTERS:  # or its own delivery could not read it
        raise refused(f"it is longer than {MOST_CHARACTERS} characters when it is percent-encoded")
    return url


def _host(netloc: str) -> str:
    """Return the host of an authority in the one spelling that is used from here on."""
    if netloc.startswith("["):
        inside, _, rest = netloc[1:].partition("]")
        if rest and not rest.startswith(":"):
            raise refused("its host cannot be read")
        return _ipv6(inside)
    name = netloc.rpartition(":")[0] if ":" in netloc else netloc
    if "%" in name:
        raise refused("its host must not be percent-encoded")
    name = _ascii(name.removesuffix(".")).removesuffix(".")  # the dot may also be one of the ideographic ones
    labels = name.split(".")
    if _NUMBER.fullmatch(labels[-1]):
        return _ipv4(name)
    if not all(_LABEL.fullmatch(label) for label in labels) or len(name) > 253:
        raise refused("its host is not a name that can be looked up")
    return name


def _ascii(name: str) -> str:
    """Return a name as DNS knows it: in lower case, an international one in Punycode."""
    if name.isascii():
        return name.lower()
    try:
        return idna.encode(name, uts46=True, transitional=False).decode().lower()
    except idna.IDNAError:
        raise refused("its host is not a name that can be looked up") from None


def _ipv4(name: str) -> str:
    """Return an address in its usual form, whichever of the old spellings it came in: decimal, octal, hexadecimal, or short."""
    try:
        return str(ipaddress.IPv4Address(socket.inet_aton(name)))
    except OSError:
        raise refused("its host is not an address") from None


def _ipv6(inside: str) -> str:
    if "%" in inside:
        raise refused("an address with a zone is of this machine alone")
    try:
        return str(ipaddress.IPv6Address(inside))
    except ValueError:
        raise refused("its host is not an address") from None
