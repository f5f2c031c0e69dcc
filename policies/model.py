"""A policy as values. Every key that a file may hold is a field here; any other is an error."""

from __future__ import annotations

import hashlib
import json
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator, model_validator

from .units import parse_bytes, parse_cores, parse_seconds

Bytes = Annotated[int, BeforeValidator(parse_bytes)]
Cores = Annotated[float, BeforeValidator(parse_cores)]
Seconds = Annotated[float, BeforeValidator(parse_seconds)]
Texts = Annotated[tuple[str, ...], BeforeValidator(lambda v: (v,) if isinstance(v, str) else v)]
Effect = Literal["allow", "ask", "deny"]
ArgumentKind = Literal["read", "write", "path", "url", "command"]
LayerName = Literal[
    "namespaces", "mounts", "capabilities", "landlock", "seccomp", "cgroup", "network"
]
_ALWAYS: tuple[LayerName, ...] = (
    "namespaces", "mounts", "capabilities", "landlock", "seccomp", "network",
)  # fmt: skip


# Each record names its policy's version, twice a call. Not a cached property: `model_copy` would
# hand the old value on to the changed copy.
_digests: dict[int, tuple[Policy, str]] = {}


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, populate_by_name=True)


class Filesystem(_Section):
    """What of the host is visible. System software always is, read-only."""

    workspace: Literal["none", "read", "write", "overlay"] = "write"
    read: tuple[str, ...] = ()
    write: tuple[str, ...] = ()
    hide: tuple[str, ...] = ()
    protect: tuple[str, ...] = ()
    tmp_bytes: Bytes = Field(default=512 << 20, alias="tmp_size")


class ArgumentTest(_Section):
    """A comparison of an argument of a system call, as many bits of it as the kernel reads, unsigned.

    `masked_eq` holds when all bits of `value` are set.
    """

    arg: int = Field(ge=0, le=5)
    op: Literal["eq", "ne", "lt", "le", "gt", "ge", "masked_eq"]
    value: int | str


class SyscallRule(ArgumentTest):
    """A verdict on a system call by its arguments: the test and those in `also` have to hold all."""

    syscall: str
    also: tuple[ArgumentTest, ...] = ()
    action: Literal["allow", "deny"] = "allow"


class Syscalls(_Section):
    """Names and @groups; `allow` adds to @runtime."""

    default_deny: bool = True
    allow: tuple[str, ...] = ()
    deny: tuple[str, ...] = ()
    rules: tuple[SyscallRule, ...] = ()


class Capabilities(_Section):
    """Capabilities that the payload keeps."""

    keep: tuple[str, ...] = ()


class Resources(_Section):
    """Limits; None is no limit. What happens at each is in the result.

    At `memory_limit` and `timeout` everything in the sandbox is killed. Beyond `processes`,
    `open_files` and `disk` the system call that asks for more fails. Beyond `cpu_shares` (cores) and
    `io` (bytes a second, each way, of the disks below the workspace and other grants) it is slowed
    down. Output beyond `output_limit` is thrown away. `disk` bounds what is held in /tmp, HOME and
    the other private places together, and the size of each file made anywhere. `background` is how
    many processes (`process_start`) a session may have at once; 0 takes those tools away.
    """

    memory_bytes: Bytes | None = Field(default=None, alias="memory_limit")
    cpu_cores: Cores | None = Field(default=None, alias="cpu_shares", gt=0)
    processes: int | None = Field(default=None, ge=1)
    wall_seconds: Seconds | None = Field(default=None, alias="timeout")
    open_files: int | None = Field(default=None, ge=16)
    output_bytes: Bytes = Field(default=1 << 20, alias="output_limit")
    disk_bytes: Bytes | None = Field(default=None, alias="disk")
    io_bytes_per_second: Bytes | None = Field(default=None, alias="io")
    background: int = Field(default=4, ge=0, le=64)


class HostRule(_Section):
    """A host pattern, narrowed by port, method and path. What is left out narrows nothing, but that
    an allow rule without `ports` means 80 and 443; an empty list is an error.

    `host` is a name, `*.NAME` (one label), `**.NAME` (any depth), `**` (any name), an address or a
    range. `addresses` are where the name may lead; without it, to public addresses only.
    """

    host: str = Field(min_length=1)
    ports: tuple[Annotated[int, Field(ge=1, le=65535)], ...] = Field(default=(), min_length=1)
    methods: tuple[str, ...] = Field(default=(), min_length=1)
    paths: tuple[str, ...] = Field(default=(), min_length=1)
    addresses: tuple[str, ...] = Field(default=(), min_length=1)


class Credential(_Section):
    """A secret that the gateway puts in, into a header or a query parameter of requests to `host`.

    `value` holds one of `${secret:NAME}` (the gateway's environment), `${file:path}` and
    `${command:…}`. The sandbox sees a placeholder, in its variable `placeholder_env`.
    """

    host: str = Field(min_length=1)
    header: str | None = Field(default=None, pattern=r"^[A-Za-z0-9!#$%&'*+.^_`|~-]+$")
    query: str | None = Field(default=None, pattern=r"^[A-Za-z0-9._~-]+$")
    value: str = Field(min_length=1)
    placeholder_env: str = Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")

    @model_validator(mode="after")
    def _one_place(self) -> Self:
        if (self.header is None) == (self.query is None):
            raise ValueError("name one of `header` and `query`")
        return self


class Network(_Section):
    """Isolated is loopback only. Otherwise `allow` is what can be reached: nothing, when empty.

    `loopback` is whose: with `session`, ports of a session's background processes are on the localhost
    of its other sandboxes; with `sandbox`, each has its own alone.
    """

    isolated: bool = True
    loopback: Literal["session", "sandbox"] = "session"
    allow: tuple[HostRule, ...] = ()
    deny: tuple[HostRule, ...] = ()
    tls: Literal["pass", "inspect"] = "pass"
    bytes_out: Bytes | None = None
    listen: tuple[Annotated[int, Field(ge=1024, le=65535)], ...] = ()
    credentials: tuple[Credential, ...] = ()

    def contradictions(self) -> list[str]:
        """Sentences about keys that cannot mean what they say together; such a policy is refused."""
        said: list[str] = []
        if self.isolated and (self.allow or self.listen or self.credentials):
            said.append(
                "network.isolated is true, so network.allow, listen and credentials grant nothing; "
                "set network.isolated: false or remove them"
            )
        if self.tls == "pass":
            looking = [
                f"network.{key}[{i}]"
                for key, rules in (("allow", self.allow), ("deny", self.deny))
                for i, rule in enumerate(rules)
                if rule.methods or rule.paths
            ]
            if self.credentials:
                looking.append("network.credentials")
            if looking:
                said.append(
                    f"{', '.join(looking)}: requests inside TLS can be seen with network.tls: inspect "
                    "only; set it, or remove methods, paths and credentials"
                )
        return said


class Devices(_Section):
    """Device nodes beyond /dev/null and its like.

    `gpu`: `all` are those that there are, be it none; an index is that of `isolation.devices`, and one
    that no GPU has is refused.
    """

    gpu: Literal["none", "all"] | tuple[int, ...] = "none"


class Environment(_Section):
    """Variables: `pass` from the caller by name, `set` by value."""

    pass_: tuple[str, ...] = Field(default=(), alias="pass")
    set: dict[str, str] = {}


class ToolRule(_Section):
    """A verdict on a tool call: globs on tool and server, a CEL expression on the rest."""

    tool: str = "*"
    server: str = "*"
    when: str = "true"
    effect: Effect
    reason: str = ""


class ApprovedCall(_Section):
    """A call that a person has allowed for good: exactly these canonical arguments."""

    tool: str
    server: str = ""
    arguments: dict[str, Any]


class Tools(_Section):
    """First deny, then ask, then allow; nothing matched: `default`.

    `approved` are calls about which a person has answered `always`: where the verdict would be `ask`,
    they are allowed. They change no denial.

    `arguments` says of other servers' tools which argument (dotted) is a path, URL or command, so
    that rules see it canonical: `{"github__*": {url: url, "target.path": read}}`.
    """

    default: Effect = "allow"
    rules: tuple[ToolRule, ...] = ()
    arguments: dict[str, dict[str, ArgumentKind]] = {}
    approved: tuple[ApprovedCall, ...] = ()


class FlowSource(_Section):
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


class FlowLimit(_Section):
    """What calls meet afterwards: `network`, those whose sandbox reaches any host; `tool`, those whose
    name fits a glob."""

    network: Literal["ask", "deny"] | None = None
    tool: dict[str, Literal["ask", "deny"]] = {}

    @model_validator(mode="after")
    def _some(self) -> Self:
        if self.network is None and not self.tool:
            raise ValueError("name at least one of `network` and `tool`")
        return self


class FlowRule(_Section):
    """Once a session has taken in what `after` names, its calls meet `then`, to its end."""

    after: FlowSource
    then: FlowLimit
    reason: str = ""


class Webhook(_Section):
    """Where questions are posted, over https or to loopback.

    `secret` holds one of `${secret:NAME}` (the gateway's environment), `${file:path}` and
    `${command:…}`; it signs what is posted and what is answered. `callback` is the URL of this
    gateway's `/approvals` as the other side reaches it; None: the answer is the response.
    """

    url: str = Field(pattern=r"^(https://|http://(127\.0\.0\.1|localhost|\[::1\])([:/]|$))")
    secret: str = Field(min_length=1)
    callback: str | None = None


class Approvals(_Section):
    """Who answers what a rule says `ask` about, and for how long they may think.

    `clients` are globs on `stdio:NAME` and `http:PRINCIPAL`: a client that fits may show the question
    itself (MCP elicitation). The default trusts the program that started the gateway, which runs as
    the same user, and nobody on the network.
    """

    wall_seconds: Seconds = Field(default=300.0, alias="timeout", gt=0, le=86400)
    clients: tuple[str, ...] = ("stdio:*",)
    webhook: Webhook | None = None


class Pins(_Section):
    """What a tool server may not change without a person (`purple pins`).

    `first_use: accept` trusts what a server says when it is first seen; `withhold` serves nothing of it
    until a person has accepted it. `kinds` are what is pinned; an empty list pins nothing.
    """

    first_use: Literal["accept", "withhold"] = "accept"
    kinds: tuple[Literal["launch", "instructions", "tools", "prompts", "resources"], ...] = (
        "launch", "instructions", "tools", "prompts", "resources",
    )  # fmt: skip


class Audit(_Section):
    """What the record holds of arguments and output."""

    arguments: Literal["full", "hash", "none"] = "full"
    output: Literal["full", "hash", "none"] = "hash"
    redact: tuple[str, ...] = ("password", "token", "secret", "api_key", "authorization")


class Limit(_Section):
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


class Screens(_Section):
    """What results and definitions are looked through for.

    The policy's own credentials are redacted always. `wrap` marks text that speaks to the model as
    untrusted; `withhold` hands on nothing of what holds such text.
    """

    characters: Literal["remove", "off"] = "remove"
    secrets: Literal["redact", "flag", "off"] = "redact"
    injection: Literal["flag", "wrap", "withhold", "off"] = "flag"


class Policy(_Section):
    """One policy, whole and merged."""

    name: str = Field(min_length=1)
    description: str = ""
    extends: str | None = None
    # `root` is root of the sandbox's own user namespace, with the caller's subordinate ids, where it has
    # any (isolation/subordinate.py); else one id that is not root's, as for `agent`.
    user: Literal["agent", "root"] = "agent"
    filesystem: Filesystem = Filesystem()
    syscalls: Syscalls = Syscalls()
    capabilities: Capabilities = Capabilities()
    resources: Resources = Resources()
    network: Network = Network()
    devices: Devices = Devices()
    environment: Environment = Environment()
    tools: Tools = Tools()
    approvals: Approvals = Approvals()
    pins: Pins = Pins()
    flow: tuple[FlowRule, ...] = ()
    audit: Audit = Audit()
    screens: Screens = Screens()
    limits: tuple[Limit, ...] = ()
    require: tuple[LayerName, ...] = _ALWAYS
    # What may be lost where the kernel lets nobody have namespaces; nothing runs there without all that
    # the policy needs of it (isolation/fallback.py).
    dangerously_without_namespaces: tuple[
        Literal["view", "root", "hide", "protect", "attributes"], ...
    ] = ()

    @property
    def digest(self) -> str:
        """SHA-256 of the canonical JSON: the policy's version, in hexadecimal."""
        known = _digests.get(id(self))
        if known is not None and known[0] is self:
            return known[1]
        text = json.dumps(self.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))
        value = hashlib.sha256(text.encode()).hexdigest()
        if len(_digests) >= 64:
            _digests.clear()
        _digests[id(self)] = self, value
        return value

    def unsupported(self) -> list[str]:
        """Keys that this version reads but cannot hold; a policy with one is refused, not bent."""
        found = (
            (self.filesystem.workspace == "overlay", "filesystem.workspace: overlay"),
            (bool(self.capabilities.keep), "capabilities.keep"),
        )
        said = [
            f"{key} is not enforced by this version; remove it" for present, key in found if present
        ]
        if self.user == "root" and self.filesystem.workspace == "write" and self.filesystem.protect:
            said.append(
                "user: root can give what filesystem.protect names to ids over which the gateway has no "
                "power; set filesystem.workspace: read, and name what may be written in filesystem.write"
            )
        return [*said, *self.network.contradictions()]
