"""The sections that say how calls are judged, asked about, counted, looked through and recorded.

How a sandbox is built is in `model`; what is here can change while it runs.
"""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from .section import Bytes, Seconds, Section, Texts

Effect = Literal["allow", "ask", "deny"]
ArgumentKind = Literal["read", "write", "path", "url", "command"]


class ToolRule(Section):
    """A verdict on a tool call: globs on tool and server, a CEL expression on the rest."""

    tool: str = "*"
    server: str = "*"
    when: str = "true"
    effect: Effect
    reason: str = ""


class ApprovedCall(Section):
    """A call that a person has allowed for good: exactly these canonical arguments."""

    tool: str
    server: str = ""
    arguments: dict[str, Any]


class Tools(Section):
    """First deny, then ask, then allow; nothing matched: `default`.

    `approved` are calls about which a person has answered `always`: where the verdict would be `ask`,
    they are allowed. They change no denial.

    `arguments` says of other servers' tools which argument (dotted) is a path, URL or command, so
    that rules see it canonical: `{"github__*": {url: url, "target.path": read}}`.
    """

    default: Effect = "allow"
    rules: tuple[ToolRule, ...] = ()
    arguments: dict[str, dict[str, ArgumentKind]] = {}  # noqa: RUF012 (pydantic copies it)
    approved: tuple[ApprovedCall, ...] = ()


class FlowSource(Section):
    """What a session takes in: `read`, globs on paths; `host`, patterns as in `network`; `tool`, globs
    on a tool's own name and `server__tool`. One text or several, of which any counts."""

    read: Texts = ()
    host: Texts = ()
    tool: Texts = ()

    @field_validator("host")
    @classmethod
    def _patterns(cls, hosts: tuple[str, ...]) -> tuple[str, ...]:
        from .hosts import host_pattern

        for host in hosts:
            host_pattern(host)
        return hosts

    @model_validator(mode="after")
    def _some(self) -> Self:
        if not (self.read or self.host or self.tool):
            raise ValueError("name at least one of `read`, `host` and `tool`")
        return self


class FlowLimit(Section):
    """What calls meet afterwards: `network`, those whose sandbox reaches any host; `tool`, those whose
    name fits a glob."""

    network: Literal["ask", "deny"] | None = None
    tool: dict[str, Literal["ask", "deny"]] = {}  # noqa: RUF012 (pydantic copies it)

    @model_validator(mode="after")
    def _some(self) -> Self:
        if self.network is None and not self.tool:
            raise ValueError("name at least one of `network` and `tool`")
        return self


class FlowRule(Section):
    """Once a session has taken in what `after` names, its calls meet `then`, to its end."""

    after: FlowSource
    then: FlowLimit
    reason: str = ""


class Webhook(Section):
    """Where questions are posted, over https or to loopback.

    `secret` holds one of `${secret:NAME}` (the gateway's environment), `${file:path}` and
    `${command:…}`; it signs what is posted and what is answered. `callback` is the URL of this
    gateway's `/approvals` as the other side reaches it; None: the answer is the response.
    """

    url: str = Field(pattern=r"^(https://|http://(127\.0\.0\.1|localhost|\[::1\])([:/]|$))")
    secret: str = Field(min_length=1)
    callback: str | None = None


class Approvals(Section):
    """Who answers what a rule says `ask` about, and for how long they may think.

    `clients` are globs on `stdio:NAME` and `http:PRINCIPAL`: a client that fits may show the question
    itself (MCP elicitation). The default trusts the program that started the gateway, which runs as
    the same user, and nobody on the network.
    """

    wall_seconds: Seconds = Field(default=300.0, alias="timeout", gt=0, le=86400)
    clients: tuple[str, ...] = ("stdio:*",)
    webhook: Webhook | None = None


class Pins(Section):
    """What a tool server may not change without a person (`purple pins`).

    `first_use: accept` trusts what a server says when it is first seen; `withhold` serves nothing of it
    until a person has accepted it. `kinds` are what is pinned; an empty list pins nothing.
    """

    first_use: Literal["accept", "withhold"] = "accept"
    kinds: tuple[Literal["launch", "instructions", "tools", "prompts", "resources"], ...] = (
        "launch", "instructions", "tools", "prompts", "resources",
    )  # fmt: skip


class Audit(Section):
    """What the record holds of arguments and output."""

    arguments: Literal["full", "hash", "none"] = "full"
    output: Literal["full", "hash", "none"] = "hash"
    redact: tuple[str, ...] = ("password", "token", "secret", "api_key", "authorization")


class Limit(Section):
    """How much may be called: by what the globs name, counted for each combination of `per`.

    Empty `per` counts all together. `calls`, `bytes` (arguments and results) and `time` (running)
    are for a window of `every`; once one is reached, no further call begins until enough has left it.
    """

    tool: str = "*"
    server: str = "*"
    client: str = "*"
    per: tuple[Literal["client", "session", "server", "tool"], ...] = ("client",)
    every: Seconds = 60.0
    calls: int | None = Field(default=None, ge=1)
    concurrent: int | None = Field(default=None, ge=1)
    bytes: Bytes | None = None
    seconds: Seconds | None = Field(default=None, alias="time")

    @model_validator(mode="after")
    def _limits(self) -> Self:
        if (self.calls, self.concurrent, self.bytes, self.seconds) == (None, None, None, None):
            raise ValueError("say what is limited: `calls`, `concurrent`, `bytes` or `time`")
        return self


class Screens(Section):
    """What results and definitions are looked through for.

    The policy's own credentials are redacted always. `wrap` marks text that speaks to the model as
    untrusted; `withhold` hands on nothing of what holds such text.
    """

    characters: Literal["remove", "off"] = "remove"
    secrets: Literal["redact", "flag", "off"] = "redact"
    injection: Literal["flag", "wrap", "withhold", "off"] = "flag"
