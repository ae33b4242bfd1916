"""Azure OpenAI: a resource's own address, deployments in the path, `api-key` and `api-version`.

Its newer address (`…/openai/v1`) speaks OpenAI's own protocol: that is the kind `openai`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from app.llm.kinds.kind import Kind, without

if TYPE_CHECKING:
    import httpx2
    import openai

    from app.llm.answers import Provider

_STREAMS_USAGE_SINCE = "2024-09-01"


class Azure(Kind):
    """Azure OpenAI; what follows the slash of a target is the deployment's name."""

    name = "azure"
    needs_version = True
    prices = "azure"

    def client(self, provider: Provider, http: httpx2.Client) -> openai.OpenAI:
        import openai

        return openai.AzureOpenAI(
            api_key=provider.api_key or "none",
            azure_endpoint=provider.base_url,
            api_version=provider.api_version,
            max_retries=0,
            timeout=provider.timeout_s,
            default_headers=dict(provider.headers),
            http_client=http,
        )

    def body(self, provider: Provider, body: dict[str, Any]) -> dict[str, Any]:
        """Leave `stream_options` away before the version that knows it: it answers 400, and the usage is estimated then."""
        return without(body, "stream_options") if provider.api_version[:10] < _STREAMS_USAGE_SINCE else body

    def wrong_url(self, base_url: str) -> str:
        path = base_url.partition("://")[2].partition("/")[2].strip("/")
        if path in ("openai/v1", "openai/v1/chat/completions"):
            return 'this address speaks OpenAI\'s own protocol; set kind = "openai", without api_version'
        if path == "openai" or "openai/deployments" in path:
            return "base_url is the resource's address alone, such as https://NAME.openai.azure.com"
        return super().wrong_url(base_url)
