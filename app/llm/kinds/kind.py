"""What a kind of provider says of itself. As it stands it is a server that speaks OpenAI's protocol and has no ways of its own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from app.llm.prices.rates import NOBODY

__all__ = ["NOBODY", "Kind", "with_max_tokens", "without"]

if TYPE_CHECKING:  # the SDK takes 15 MB and most of a second to load, and who only reads the providers file asks nobody
    import httpx2
    import openai

    from app.llm.answers import Provider


class Kind:
    """One kind. A new one is a file with a subclass and a place in `kinds.KINDS`.

    A server with a protocol of its own can be a kind, too: its `client` gives the SDK an `http` with a transport that translates.
    """

    name: ClassVar[str]
    base_url: ClassVar[str] = ""
    """Where it is asked unless the file says so; empty: the file must."""
    needs_version: ClassVar[bool] = False
    needs_key: ClassVar[bool] = True
    prices: ClassVar[str] = ""
    """The id that the table of prices knows it by; empty: the name it has in the file; `NOBODY`: none."""

    def client(self, provider: Provider, http: httpx2.Client) -> openai.OpenAI:
        """Make the SDK's client of a provider over our connections."""
        import openai

        made = openai.OpenAI(
            api_key=provider.api_key or "none",
            base_url=provider.base_url,
            max_retries=0,
            timeout=provider.timeout_s,
            default_headers=dict(provider.headers),
            http_client=http,
        )
        if not made.base_url.host.endswith(
            "openai.com"
        ):  # the environment's OPENAI_ORG_ID and its like are nobody else's business
            made.organization = made.project = None
        return made

    def body(self, provider: Provider, body: dict[str, Any]) -> dict[str, Any]:
        """Return a request as this provider takes it; what is given is not changed."""
        return body

    def wrong_url(self, base_url: str) -> str:
        """Return what is wrong with an address of this kind, and what to do; '' where nothing is."""
        if base_url.rstrip("/").endswith(("/chat/completions", "/embeddings", "/models")):
            return "base_url names one endpoint; give what comes before it"
        return ""


def without(body: dict[str, Any], *names: str) -> dict[str, Any]:
    """Return a request without some of its members."""
    return {name: value for name, value in body.items() if name not in names} if body.keys() & set(names) else body


def with_max_tokens(body: dict[str, Any]) -> dict[str, Any]:
    """Return a request that names its longest answer by the older word, which is the only one that some servers know."""
    most = body.get("max_completion_tokens")
    if most is None:
        return body
    return {**without(body, "max_completion_tokens"), "max_tokens": most}
