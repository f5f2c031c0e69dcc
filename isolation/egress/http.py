"""What the gate thinks of HTTP requests, whichever version carries them. No I/O.

`Inspector.admit` is asked about every request, on a connection that is kept alive, too. Its answer is
what goes to the server, or why nothing does. `http1` and `http2` carry both out.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from http import HTTPStatus
from typing import Literal, Protocol

from ...policies.hosts import Verdict, Why
from .credentials import Cover, Headers, Search, Secret, Vault
from .target import (
    METHOD_OVERRIDES,
    TARGET_OVERRIDES,
    TargetError,
    readings,
    split_absolute,
    split_authority,
)

_TOKEN = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,64}")
# RFC 9110 section 7.6.1, and what predates it. What a connection is used for is each side's own.
_HOP_BY_HOP = frozenset(
    (b"connection", b"keep-alive", b"proxy-connection", b"proxy-authorization",
     b"proxy-authenticate", b"te", b"upgrade", b"http2-settings")
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Origin:
    """The server that a connection is for.

    Attributes:
        scheme: How it is spoken to.
        host: The name asked for: lower case, A-labels, no last dot; an IPv6 address bare.
        port: The port asked for.
    """

    scheme: Literal["http", "https"]
    host: str
    port: int


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """What the policy says of a method and a path of a host."""

    allowed: bool
    rule: str
    reason: str = ""


class Decide(Protocol):
    """The policy's decision. `path` is decoded and starts with "/"."""

    def __call__(self, origin: Origin, method: str, path: str) -> Judgement: ...


@dataclass(frozen=True, kw_only=True)
class Request:
    """A request's head. `target` is in origin-form, or "*"."""

    method: str
    target: str
    headers: Headers


@dataclass(frozen=True, kw_only=True)
class Admitted:
    """A request that may go out.

    Attributes:
        request: As it goes out: without hop-by-hop headers, with credentials.
        rule: Which rule allowed it.
        websocket: Whether it asks to become a WebSocket.
        search: Looks at its body; None where no credential is anywhere in the policy.
        secrets: What was put in.
    """

    request: Request
    rule: str
    websocket: bool
    search: Search | None
    secrets: tuple[Secret, ...]

    def cover(self) -> Cover | None:
        """For the response; None where no secret went out."""
        return Cover(self.secrets) if self.secrets else None


_UNSEEN = re.compile(r"[^!-~]+")  # RFC 9112 section 4 lets more through, clients do not
_MOST_PHRASE = 400


@dataclass(frozen=True, kw_only=True)
class Refused:
    """Why a request did not go out, for the program that made it, the model and the record."""

    status: int
    reason: Why
    rule: str
    text: str

    @property
    def phrase(self) -> bytes:
        """The reason phrase: all that many programs (pip, urllib, wget, npm) show of a CONNECT that failed."""
        text = _UNSEEN.sub(" ", self.text)[:_MOST_PHRASE]
        return f"{HTTPStatus(self.status).phrase}: {text}".encode()

    def body(self, accept: bytes) -> tuple[bytes, bytes]:
        """Content type and body, JSON where the client asks for it."""
        if b"json" in accept.lower():
            said = {"error": str(self.reason), "rule": self.rule, "message": self.text}
            return b"application/json", json.dumps({"purple": said}).encode() + b"\n"
        return b"text/plain; charset=utf-8", f"purple: {self.text} [{self.reason}]\n".encode()

    def headers(self, accept: bytes) -> tuple[Headers, bytes]:
        """Headers and body of the response."""
        kind, body = self.body(accept)
        return (
            (b"content-type", kind),
            (b"content-length", str(len(body)).encode()),
            (b"cache-control", b"no-store"),
            (b"x-purple-refused", str(self.reason).encode()),
        ), body


@dataclass(frozen=True, kw_only=True)
class Exchange:
    """One request, for the record. Its path is the agent's own: it holds no secret.

    Attributes:
        method, path: As asked; the path without its query, 512 characters at most.
        status: Of the response; 0 where none came.
        rule: That allowed or refused it.
        reason: "" or why it was refused or failed.
        text: The sentence for the person; "" where nothing went wrong.
        credentials: Names of those put in.
        bytes_out, bytes_in: Of the bodies.
    """

    method: str
    path: str
    status: int
    rule: str
    reason: str
    text: str
    credentials: tuple[str, ...]
    bytes_out: int
    bytes_in: int


OnExchange = Callable[[Exchange], None]


class Inspector:
    """Judges the requests of one connection.

    Args:
        origin: The server that the connection is for.
        decide: The policy.
        vault: Its credentials.
        on_exchange: Told of each request when it is over, refused ones too.
    """

    def __init__(
        self, origin: Origin, decide: Decide, vault: Vault, on_exchange: OnExchange
    ) -> None:
        self.origin = origin
        self.on_exchange = on_exchange
        self._decide = decide
        self._vault = vault
        self._mine = vault.of_host(origin.host)

    def admit(self, request: Request, authorities: Sequence[bytes]) -> Admitted | Refused:
        """Decide on a request.

        Args:
            request: As it came; its target may be in absolute-form. Headers include Host.
            authorities: Every name of the server that it holds: Host headers, `:authority`.
        """
        try:
            return self._admit(request, authorities)
        except TargetError as error:
            return self._refused(400, Why.REQUEST_INVALID, "http", f"Refused: {error}.")

    def _admit(self, request: Request, authorities: Sequence[bytes]) -> Admitted | Refused:
        origin, method, target = self.origin, request.method, request.target
        if not _TOKEN.fullmatch(method) or method in ("TRACE", "CONNECT"):
            # TRACE sends back what it gets, credentials among it.
            return self._refused(
                405, Why.REQUEST_NOT_ALLOWED, "http", f"The method {method[:64]!r} is refused."
            )
        names = [text.decode("latin-1") for text in authorities]
        if "://" in target.partition("?")[0] and not target.startswith("/"):
            scheme, authority, target = split_absolute(target)
            if scheme != origin.scheme:
                names.append("")
            names.append(authority)
        default = 443 if origin.scheme == "https" else 80
        # A port that is not said is the one that was connected to: some clients leave it out.
        said = {split_authority(name, origin.port) for name in names if name}
        said = {(h, origin.port if p == default else p) for h, p in said}
        if not names or "" in names or said != {(origin.host, origin.port)}:
            return self._refused(
                421, Why.NAME_MISMATCH, "http",
                f"Refused: this connection is to {origin.host}, the request names "
                f"{', '.join(repr(n[:80]) for n in names) or 'no host'}.",
            )  # fmt: skip
        for name, value in request.headers:
            if re.search(rb"[\r\n\0]", name + value):
                raise TargetError("a header holds a line break or a NUL")
        rule = "*" if target == "*" and method == "OPTIONS" else ""
        found = Judgement(allowed=True, rule="http")
        for asked_method, path in self._readings(request, target, star=rule == "*"):
            found = self._decide(origin, asked_method, path)
            if not found.allowed:
                return self._refused(
                    403, Why.REQUEST_NOT_ALLOWED, found.rule,
                    f"{asked_method} {path[:200]} of {origin.host} is not allowed by rule "
                    f"{found.rule}{': ' + found.reason if found.reason else ''}. Retrying will not "
                    "help; ask the person to allow this method and path in network.allow.",
                )  # fmt: skip
        lost = self._vault.misplaced_in_head(target, request.headers, self._mine)
        if lost:
            return self.misplaced(lost)
        return self._prepared(replace(request, target=target), found.rule)

    def _readings(self, request: Request, target: str, *, star: bool) -> list[tuple[str, str]]:
        """Every method and path for which a server may take the request."""
        methods, targets = {request.method}, {"/" if star else target}
        for name, value in request.headers:
            lower = name.lower()
            if lower in METHOD_OVERRIDES:
                methods.add(value.decode("latin-1").strip().upper())
            elif lower in TARGET_OVERRIDES:
                other = value.decode("latin-1").strip()
                targets.add(split_absolute(other)[2] if "://" in other else other)
        paths = {path for text in targets for path in readings(text)}
        return [(method, path) for method in sorted(methods) for path in sorted(paths)]

    def _prepared(self, request: Request, rule: str) -> Admitted:
        listed = {
            token.strip().lower()
            for name, value in request.headers
            if name.lower() == b"connection"
            for token in value.split(b",")
        }
        upgrades = [v.strip().lower() for n, v in request.headers if n.lower() == b"upgrade"]
        # Any other protocol (h2c above all) would be one that nobody here looks into.
        websocket = b"upgrade" in listed and upgrades == [b"websocket"]
        trailers = any(n.lower() == b"te" and b"trailers" in v.lower() for n, v in request.headers)
        # Host and framing are not a Connection header's to take away.
        gone = _HOP_BY_HOP | (listed - {b"host", b"content-length", b"transfer-encoding", b"close"})
        headers = [(n, v) for n, v in request.headers if n.lower() not in gone]
        if trailers:
            headers.append((b"te", b"trailers"))
        target = request.target
        for secret in self._mine:
            if secret.header:
                headers = _with_header(headers, secret)
            else:
                target = secret.in_query(target)
        if self._mine:
            # Compressed, an answer could not be searched for the secret.
            headers = [(n, v) for n, v in headers if n.lower() != b"accept-encoding"]
            headers.append((b"accept-encoding", b"identity"))
        return Admitted(
            request=Request(method=request.method, target=target, headers=tuple(headers)),
            rule=rule,
            websocket=websocket,
            search=Search(self._vault) if self._vault else None,
            secrets=self._mine,
        )

    def misplaced(self, name: str) -> Refused:
        """The refusal of a request in which the placeholder of credential `name` was found."""
        return self._refused(
            403, Why.CREDENTIAL_MISUSED, f"network.credentials.{name}",
            f"Refused: the request to {self.origin.host} holds the placeholder of credential {name} "
            "where the policy does not put it. It is no secret, but what it stands for must not go "
            "there.",
        )  # fmt: skip

    def unreachable(self, error: OSError) -> Refused:
        """The answer where the server was not dialled: 403 where the policy says so."""
        verdict = getattr(error, "verdict", None)
        if not isinstance(verdict, Verdict):
            return self.failed(str(error))
        failed = verdict.reason in (Why.UNRESOLVED, Why.UPSTREAM_FAILED)
        return self._refused(502 if failed else 403, verdict.reason, verdict.rule, verdict.text)

    def failed(self, text: str, *, status: int = 502) -> Refused:
        """The answer where the server cannot be reached or does not speak HTTP."""
        return self._refused(status, Why.UPSTREAM_FAILED, "", text)

    def malformed(self, text: str, *, status: int = 400) -> Refused:
        """The answer to what is no request, or one that could be read in two ways."""
        return self._refused(status, Why.REQUEST_INVALID, "http", f"Refused: {text}.")

    def report(self, reason: Why, text: str) -> None:
        """Record a connection that ended before its first request."""
        self.over(None, self._refused(0, reason, "network.tls", text), 0, 0, 0)

    def _refused(self, status: int, reason: Why, rule: str, text: str) -> Refused:
        return Refused(status=status, reason=reason, rule=rule, text=text)

    def over(
        self, request: Request | None, answer: Admitted | Refused, status: int, out: int, back: int,
        failure: str = "",
    ) -> None:  # fmt: skip
        """Tell of a request that is over."""
        reason, text = failure, ""
        names: tuple[str, ...] = ()
        if isinstance(answer, Refused):
            reason, text = str(answer.reason), answer.text
        else:
            names = tuple(s.name for s in answer.secrets)
        self.on_exchange(
            Exchange(
                method=request.method[:64] if request else "",
                path=request.target.partition("?")[0][:512] if request else "",
                status=status, rule=answer.rule, reason=reason, text=text, credentials=names,
                bytes_out=out, bytes_in=back,
            )
        )  # fmt: skip


def _with_header(headers: list[tuple[bytes, bytes]], secret: Secret) -> list[tuple[bytes, bytes]]:
    wanted = secret.header.encode()
    sent = next((v for n, v in headers if n.lower() == wanted), None)
    name = next((n for n, _ in headers if n.lower() == wanted), wanted.title())
    rest = [(n, v) for n, v in headers if n.lower() != wanted]
    return [*rest, (name, secret.in_header(sent))]


def forwarded(headers: Headers, cover: Cover | None) -> list[tuple[bytes, bytes]]:
    """A response's headers as they go to the client."""
    listed = {
        token.strip().lower()
        for name, value in headers
        if name.lower() == b"connection"
        for token in value.split(b",")
    }
    gone = (_HOP_BY_HOP | listed) - {b"content-length", b"transfer-encoding"}
    kept = [(n, v) for n, v in headers if n.lower() not in gone]
    # HTTP/3 is UDP, of which none leaves; and another port would be another connection.
    kept = [(n, v) for n, v in kept if n.lower() != b"alt-svc"]
    return [(n, cover.whole(v)) for n, v in kept] if cover else kept
