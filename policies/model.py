"""A policy as values. Every key that a file may hold is a field here; any other is an error."""

from __future__ import annotations

import hashlib
import json
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from .judging import Approvals, Audit, FlowRule, Limit, Pins, Screens, Tools
from .section import Bytes, Cores, Seconds, Section

LayerName = Literal[
    "namespaces", "mounts", "capabilities", "landlock", "seccomp", "cgroup", "network"
]
ALWAYS: tuple[LayerName, ...] = (
    "namespaces", "mounts", "capabilities", "landlock", "seccomp", "network",
)  # fmt: skip


# Each record names its policy's version, twice a call. Not a cached property: `model_copy` would
# hand the old value on to the changed copy.
_digests: dict[int, tuple[Policy, str]] = {}


class Filesystem(Section):
    """What of the host is visible. System software always is, read-only."""

    workspace: Literal["none", "read", "write", "overlay"] = "write"
    read: tuple[str, ...] = ()
    write: tuple[str, ...] = ()
    hide: tuple[str, ...] = ()
    protect: tuple[str, ...] = ()
    tmp_bytes: Bytes = Field(default=512 << 20, alias="tmp_size")


class ArgumentTest(Section):
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


class Syscalls(Section):
    """Names and @groups; `allow` adds to @runtime."""

    default_deny: bool = True
    allow: tuple[str, ...] = ()
    deny: tuple[str, ...] = ()
    rules: tuple[SyscallRule, ...] = ()


class Capabilities(Section):
    """Capabilities that the payload keeps."""

    keep: tuple[str, ...] = ()


class Resources(Section):
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


class HostRule(Section):
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


class Credential(Section):
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


class Network(Section):
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


class Devices(Section):
    """Device nodes beyond /dev/null and its like.

    `gpu`: `all` are those that there are, be it none; an index is that of `isolation.devices`, and one
    that no GPU has is refused.
    """

    gpu: Literal["none", "all"] | tuple[int, ...] = "none"


class Environment(Section):
    """Variables: `pass` from the caller by name, `set` by value."""

    pass_: tuple[str, ...] = Field(default=(), alias="pass")
    set: dict[str, str] = {}  # noqa: RUF012 (pydantic copies it)


class Policy(Section):
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
    require: tuple[LayerName, ...] = ALWAYS
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
