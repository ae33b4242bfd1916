"""Who may be given a webhook: judged when a request names a URL, and again, by the very address that is called, at each delivery."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence

from app.webhooks import addresses, urls
from app.webhooks.names import Names
from app.webhooks.urls import Address, Url

_PATIENCE_S = 2.0
_FRESH_S = 60.0
_MOST_KNOWN = 10_000
_LOWEST_PORT = 1024
_WEB = (80, 443)


class Forbidden(Exception):
    """The receiver is at an address that webhooks must not reach; the message says so."""


class Receivers:
    """Judges receivers. `allow_private` lets those of our own network be called: for a test, or where every bot is trusted."""

    def __init__(
        self, *, allow_private: bool, names: Names | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.allow_private = allow_private
        self.names = names or Names()
        self._clock = clock
        self._known: dict[str, tuple[float, bool]] = {}
        self._lock = threading.Lock()

    def check(self, text: str) -> str:
        """Take a request's URL and return it as it is called; raise `WebhookUrlRefused`.

        A name that cannot be looked up now is taken: the delivery will look again. What was found out is remembered for a minute.
        """
        url = urls.parse(text)
        if not self.allow_private:
            self._check_port(url)
            if not self._is_public(url):
                raise urls.refused("it leads to an address that is not public")
        return url.text

    def addresses(self, url: Url, timeout_s: float) -> Sequence[Address]:
        """Return the addresses to call; raise `Forbidden` unless each of them may be, and `OSError` where there are none."""
        literal = url.address
        found = [literal] if literal is not None else self.names.addresses(url.host, timeout_s)
        if not found:
            raise OSError("the host's name is not known")
        if not self.allow_private and not all(addresses.is_public(address) for address in found):
            raise Forbidden("The host's name leads to an address that is not public; webhooks are not delivered there.")
        return found

    def _check_port(self, url: Url) -> None:
        """Refuse the ports of mail, shells and the like: none of them is a receiver, and we are not to speak to them for others."""
        if url.port < _LOWEST_PORT and url.port not in _WEB:
            raise urls.refused("its port must be 80, 443, or 1024 and above")

    def _is_public(self, url: Url) -> bool:
        literal = url.address
        if literal is not None:
            return addresses.is_public(literal)
        now = self._clock()
        known = self._known.get(url.host)
        if known is not None and now - known[0] < _FRESH_S:
            return known[1]
        try:
            found = self.names.addresses(url.host, _PATIENCE_S)
        except OSError:
            found = []
        public = all(addresses.is_public(address) for address in found)
        with self._lock:
            if len(self._known) >= _MOST_KNOWN:
                self._known.clear()
            self._known[url.host] = now, public
        return public
