"""Getting leave to speak to a server elsewhere: OAuth 2.1 as MCP has it, by the SDK's client.

Theory of operation
    The SDK's provider is a generator of requests (discovery, registration, token, refresh) that wants
    their responses; here they are carried by the gateway's own client, so that the same egress rules
    hold for them and nothing goes to a host that the policy does not name. A token is asked for when
    the server says 401, once for all sessions of it, and sent to that server's origin alone.
    Client credentials need no person. The authorization code needs one once: `purple login`.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

import httpx2
from mcp.client.auth import (
    AuthorizationCodeResult,
    OAuthClientProvider,
    OAuthFlowError,
)
from mcp.client.auth.extensions.client_credentials import ClientCredentialsOAuthProvider
from mcp.client.auth.utils import issuers_match
from mcp.shared.auth import (
    OAuthClientInformationFull,
    OAuthClientMetadata,
    OAuthMetadata,
    OAuthToken,
)
from pydantic import AnyUrl

from ..tokens import TokenFile
from .http_client import Origin, Response
from .links import Grant, destination

# What goes wrong is said to whoever waits; the SDK would print it with a traceback as well.
logging.getLogger("mcp.client.auth").addHandler(logging.NullHandler())
logging.getLogger("mcp.client.auth").propagate = False
_MOST_BODY_BYTES = 1 << 20


@dataclass(frozen=True)
class Person:
    """Who signs in, at `redirect`.

    Attributes:
        redirect: URL to which the browser comes back.
        shown: Has the person open a URL.
        came_back: Waits for code and state.
    """

    redirect: str
    shown: Callable[[str], Awaitable[None]]
    came_back: Callable[[], Awaitable[AuthorizationCodeResult]]


class _Memory:
    """Tokens of client credentials: another one costs a request, so none is kept."""

    def __init__(self) -> None:
        self._tokens: OAuthToken | None = None

    async def get_tokens(self) -> OAuthToken | None:
        return self._tokens

    async def set_tokens(self, tokens: OAuthToken) -> None:
        self._tokens = tokens

    async def get_client_info(self) -> OAuthClientInformationFull | None:
        return None

    async def set_client_info(self, client_info: OAuthClientInformationFull) -> None:
        pass


class _Kept:
    """Tokens of a person who has signed in, and the client that they were given to."""

    def __init__(self, file: TokenFile, client_id: str, issuer: str) -> None:
        self._file, self._client_id, self._issuer = file, client_id, issuer

    def expires_at(self) -> float | None:
        """Of the kept token, on the clock of `time.time`."""
        value: Any = self._file.read().get("expires_at")
        return value if isinstance(value, int | float) else None

    def metadata(self) -> OAuthMetadata | None:
        """Of the authorization server that gave it."""
        found = self._file.read().get("metadata")
        if not found:
            return None
        metadata = OAuthMetadata.model_validate(found)
        return metadata if issuers_match(str(metadata.issuer), self._issuer) else None

    def keep_metadata(self, metadata: OAuthMetadata) -> None:
        """Keep that."""
        said = metadata.model_dump(mode="json", exclude_none=True)
        self._file.write({**self._file.read(), "metadata": said})

    async def get_tokens(self) -> OAuthToken | None:
        found = self._file.read().get("tokens")
        return OAuthToken.model_validate(found) if found else None

    async def set_tokens(self, tokens: OAuthToken) -> None:
        kept = self._file.read()
        kept["tokens"] = tokens.model_dump(mode="json", exclude_none=True)
        kept["expires_at"] = time.time() + tokens.expires_in if tokens.expires_in else None
        self._file.write(kept)

    async def get_client_info(self) -> OAuthClientInformationFull | None:
        if self._client_id:
            return OAuthClientInformationFull(
                redirect_uris=None, client_id=self._client_id, issuer=self._issuer,
                token_endpoint_auth_method="none",
            )  # fmt: skip
        found = self._file.read().get("client")
        return OAuthClientInformationFull.model_validate(found) if found else None

    async def set_client_info(self, client_info: OAuthClientInformationFull) -> None:
        kept = self._file.read()
        kept["client"] = client_info.model_dump(mode="json", exclude_none=True)
        self._file.write(kept)


class _Coded(OAuthClientProvider):
    """The authorization code of one issuer."""

    def __init__(self, url: str, grant: Grant, kept: _Kept, person: Person | None) -> None:
        metadata = OAuthClientMetadata(
            client_name="purple", scope=grant.scope or None,
            redirect_uris=[AnyUrl(person.redirect if person else "http://127.0.0.1/callback")],
            grant_types=["authorization_code", "refresh_token"], token_endpoint_auth_method="none",
        )  # fmt: skip
        shown = person.shown if person is not None else None
        came_back = person.came_back if person is not None else None
        super().__init__(url, metadata, kept, shown, came_back)
        self._kept, self._issuer = kept, grant.issuer

    async def _initialize(self) -> None:
        await super()._initialize()
        # Of an earlier run the SDK would not know when the token expires, nor where it is refreshed:
        # it would send what refreshes it to the server itself.
        self.context.token_expiry_time = self._kept.expires_at()
        self.context.oauth_metadata = self._kept.metadata()
        if self.context.oauth_metadata is None and self.context.current_tokens is not None:
            self.context.current_tokens.refresh_token = None

    async def _handle_token_response(self, response: httpx2.Response) -> None:
        await super()._handle_token_response(response)
        if self.context.oauth_metadata is not None:
            self._kept.keep_metadata(self.context.oauth_metadata)

    def _select_authorization_server(self, advertised: list[str]) -> str:
        ours = (server for server in advertised if issuers_match(server, self._issuer))
        return next(ours, advertised[0])

    def _expected_issuer(self) -> str:
        found = super()._expected_issuer()
        if not issuers_match(found, self._issuer):
            raise OAuthFlowError(f"the server leads to the issuer {found}, not to {self._issuer}")
        return found


class Leave:
    """A token for one server, for all sessions of it.

    Args:
        url: Of the server's endpoint.
        reach: Makes the `Origin` of any URL, under the egress rules of the server.
        grant: How a token is got.
        person: Who signs in; None: nobody can.
        file: Where a person's tokens are kept; None is the user's own place.
    """

    def __init__(
        self, url: str, reach: Callable[[str], Origin], grant: Grant, *,
        person: Person | None = None, file: TokenFile | None = None,
    ) -> None:  # fmt: skip
        self._url, self._reach = url, reach
        self._origins: dict[tuple[str, str, int], Origin] = {}
        self._is_for_person = not grant.client_secret
        self._provider: OAuthClientProvider
        if grant.client_secret:
            self._provider = ClientCredentialsOAuthProvider(
                url, _Memory(), grant.client_id, grant.client_secret, scope=grant.scope or None,
                issuer=grant.issuer,
            )  # fmt: skip
        else:
            kept = _Kept(file or TokenFile(url), grant.client_id, grant.issuer)
            self._provider = _Coded(url, grant, kept, person)

    def close(self) -> None:
        """Close the connections to authorization servers."""
        for origin in self._origins.values():
            origin.close()

    async def token(
        self, challenge: tuple[int, Mapping[str, str]] | None = None, before: str = ""
    ) -> str:
        """The header with a token; "" where there is none and nothing has asked for one.

        Args:
            challenge: Status and headers of the answer that asked for one.
            before: The header that was not good enough.

        Raises:
            OSError: none can be had, or not from there; says what to do.
        """
        probe = httpx2.Request("POST", self._url)
        flow = self._provider.async_auth_flow(probe)
        try:
            asked = await anext(flow)
            while True:
                if asked is not probe:
                    asked = await flow.asend(await self._carry(asked))
                    continue
                token = str(probe.headers.get("authorization", ""))
                # Another session may have got one meanwhile.
                if challenge is None or token != before:
                    return token
                status, headers = challenge
                challenge = None
                asked = await flow.asend(httpx2.Response(status, headers=headers, request=probe))
        except StopAsyncIteration:
            raise OSError("the authorization server gave no token") from None
        except (OAuthFlowError, ValueError) as error:
            if self._is_for_person and "handler" in str(error):
                raise OSError("nobody has signed in; run `purple login` for this server") from None
            raise OSError(f"no token could be had: {str(error)[:300]}") from None
        finally:
            await flow.aclose()

    async def _carry(self, request: httpx2.Request) -> httpx2.Response:
        url = str(request.url)
        where = destination(url)
        if where[0] != "https" and where[1] not in ("127.0.0.1", "localhost", "::1"):
            raise OSError(f"{where[1]} is to be asked for a token without TLS; that is refused")
        origin = self._origins.get(where)
        if origin is None:
            origin = self._origins[where] = self._reach(url)
        own = ("host", "content-length", "connection", "accept-encoding")
        headers = {k: v for k, v in request.headers.items() if k.lower() not in own}
        target = request.url.raw_path.decode("ascii")
        sent = origin.request(request.method, target, headers, request.content)
        async with sent as response:
            body = await response.read(_MOST_BODY_BYTES)
            return httpx2.Response(
                response.status, headers=dict(response.headers), content=body, request=request
            )


class Authorized:
    """An `Origin` whose requests carry a token."""

    def __init__(self, origin: Origin, leave: Leave) -> None:
        self._origin, self._leave = origin, leave

    def holds(self, url: str) -> bool:
        """As `Origin.holds`."""
        return self._origin.holds(url)

    def close(self) -> None:
        """As `Origin.close`."""
        self._origin.close()

    @contextlib.asynccontextmanager
    async def request(
        self, method: str, target: str, headers: Mapping[str, str], body: bytes = b""
    ) -> AsyncGenerator[Response]:
        """As `Origin.request`; where the server wants a (new) token, it is sent again with one."""
        before = await self._leave.token()
        own = {**headers, "Authorization": before} if before else headers
        async with self._origin.request(method, target, own, body) as response:
            if response.status != 401 and not _wants_more(response):
                yield response
                return
            challenge = response.status, response.headers
            await response.read(_MOST_BODY_BYTES)
        own = {**headers, "Authorization": await self._leave.token(challenge, before)}
        async with self._origin.request(method, target, own, body) as response:
            yield response


def _wants_more(response: Response) -> bool:
    """Whether the server asks for a wider scope (RFC 6750, 3.1)."""
    asked = response.headers.get("www-authenticate", "")
    return response.status == 403 and "insufficient_scope" in asked
