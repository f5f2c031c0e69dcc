"""Lint of one policy: what in it has no effect, contradicts itself, or grants more than it seems. Pure.

What `Policy.unsupported` refuses is not said again. Of the rest a finding is no error, but what is
"wrong": the policy can be used, and means what `docs/policies.md` says. Only what is sure is said;
expressions (`when`) are compared by their text.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Literal

from .hosts import WEB_PORTS
from .meaning import (
    expression_without_meaning,
    files_without_meaning,
    hosts_without_meaning,
    tools_without_meaning,
)
from .model import ALWAYS
from .request import BUILT_IN
from .words import bytes_words

if TYPE_CHECKING:
    from .judging import ToolRule
    from .model import HostRule, Policy

Kind = Literal["wrong", "shadowed", "dead", "contradictory", "too wide"]
_Found = tuple[Kind, str, str]  # kind, key, text
_ORDER = ("deny", "ask", "allow")
_TOO_WIDE = ("/", "/etc", "/home", "/root", "/var", "/run", "/proc", "/sys", "/dev", "~")
_SECRETS = ("~/.ssh", "~/.aws", "~/.gnupg", "~/.config", "~/.kube", "~/.docker", "~/.netrc", "~/.npmrc", "~/.pypirc")  # fmt: skip
_SECRET_WORDS = ("TOKEN", "SECRET", "PASSWORD", "API_KEY", "APIKEY", "CREDENTIAL", "PRIVATE_KEY")
_LEAST_MEMORY_BYTES = 4 << 20  # Python needs more
_LEAST_WALL_SECONDS = 0.005  # a shell needs as much
_STRONG_CALLS = ("@debug", "ptrace", "process_vm_readv", "process_vm_writev", "perf_event_open")


@dataclass(frozen=True, kw_only=True)
class Finding:
    """Something that its author will not have meant.

    Attributes:
        kind: What is wrong with it; "wrong" is what no call gets past.
        key: Of the policy: "tools.rules[2]".
        text: What, and what to do.
    """

    kind: Kind
    key: str
    text: str

    def __str__(self) -> str:
        return f"{self.key}: {self.kind}: {self.text}"


def check(policy: Policy) -> list[Finding]:
    """Everything that is found, in the order of the sections."""
    parts = (
        _filesystem, _syscalls, _capabilities, _resources, _network, _environment, _tools, _flow,
        _require,
    )  # fmt: skip
    return [Finding(kind=k, key=key, text=t) for part in parts for k, key, t in part(policy)]


def _filesystem(policy: Policy) -> Iterator[_Found]:
    files = policy.filesystem
    inside = {"read": ("read", "write", "overlay"), "write": ("write", "overlay")}
    for name, paths in (("read", files.read), ("write", files.write)):
        for index, path in enumerate(paths):
            key = f"filesystem.{name}[{index}]"
            plain = path.rstrip("/") or "/"
            if plain in _TOO_WIDE or str(PurePosixPath(plain).parent) == "/home":
                yield (
                    "too wide",
                    key,
                    f"{path} is nearly everything; name the directory that is needed",
                )
            elif any(plain == s or plain.startswith(s + "/") for s in _SECRETS):
                yield (
                    "too wide",
                    key,
                    f"{path} holds credentials; a sandbox that sees them can use them",
                )
            elif not path.startswith(("/", "~")) and files.workspace in inside[name]:
                yield "dead", key, f"{path} is in the workspace, which is granted already"
            if name == "read" and path in files.write:
                yield (
                    "contradictory",
                    key,
                    f"{path} is granted to be written, too; which holds; remove one",
                )
    for name, patterns in (("hide", files.hide), ("protect", files.protect)):
        for index, pattern in enumerate(patterns):
            key = f"filesystem.{name}[{index}]"
            if pattern.startswith(("/", "~", "../")):
                yield (
                    "dead",
                    key,
                    f"{pattern}: patterns are relative to the workspace; what lies outside is invisible unless it is granted",
                )
            elif files.workspace == "none":
                yield "dead", key, "there is no workspace"
            elif text := files_without_meaning(pattern):
                yield "dead", key, text


def _syscalls(policy: Policy) -> Iterator[_Found]:
    calls = policy.syscalls
    for index, name in enumerate(calls.deny):
        if name in calls.allow:
            yield (
                "contradictory",
                f"syscalls.deny[{index}]",
                f"{name} is allowed, too; the denial holds; remove one",
            )
    if not calls.default_deny:
        yield (
            "too wide",
            "syscalls.default_deny",
            'every call but the listed is allowed, also those that Linux will gain; prefer true with allow: ["@default"]',
        )
        for index, name in enumerate(calls.allow):
            yield (
                "dead",
                f"syscalls.allow[{index}]",
                f"{name}: with default_deny: false all is allowed that is not denied",
            )
    for index, name in enumerate(calls.allow):
        if name in _STRONG_CALLS and name not in calls.deny:
            yield (
                "too wide",
                f"syscalls.allow[{index}]",
                f"{name} reads and changes other processes of the sandbox; grant it to debuggers only",
            )


def _capabilities(policy: Policy) -> Iterator[_Found]:
    for index, name in enumerate(policy.capabilities.keep):
        yield (
            "too wide",
            f"capabilities.keep[{index}]",
            f"{name}: no ordinary tool needs a capability",
        )


def _resources(policy: Policy) -> Iterator[_Found]:
    memory, wall = policy.resources.memory_bytes, policy.resources.wall_seconds
    if memory is not None and memory < _LEAST_MEMORY_BYTES:
        text = f"{bytes_words(memory)}: file tools and language runtimes do not start; write 64M or more"
        yield "wrong", "resources.memory_limit", text
    if wall is not None and wall < _LEAST_WALL_SECONDS:
        text = f"{wall:g} s: all is ended before it has begun; write seconds, as in 10 or 2m"
        yield "wrong", "resources.timeout", text
    for name, value, what in (
        ("memory_limit", policy.resources.memory_bytes, "memory"),
        ("processes", policy.resources.processes, "processes"),
    ):
        if value is None:
            yield (
                "too wide",
                f"resources.{name}",
                f"there is no limit; one call can take all of the machine's {what}",
            )


def _network(policy: Policy) -> Iterator[_Found]:
    network = policy.network
    if network.isolated:
        if network.deny:
            yield (
                "contradictory",
                "network.deny",
                "the network is isolated, so nothing of it holds; set isolated: false or remove it",
            )
        return
    if wrong := list(hosts_without_meaning(network)):
        for key, text in wrong:
            yield "wrong", key, text
        return
    if not network.allow and not network.listen:
        yield (
            "dead",
            "network.isolated",
            "nothing is allowed, so nothing can be reached; set isolated: true",
        )
    for index, rule in enumerate(network.allow):
        key = f"network.allow[{index}]"
        if rule.host in ("**", "0.0.0.0/0", "::/0"):
            yield "too wide", key, "every host; what the sandbox reads can be sent anywhere"
        for at, denial in enumerate(network.deny):
            if _holds(denial, rule, denial.ports):
                yield "shadowed", key, f"network.deny[{at}] denies all of it"
        for at, earlier in enumerate(network.allow[:index]):
            if earlier.addresses == rule.addresses and _holds(
                earlier, rule, earlier.ports or WEB_PORTS
            ):
                yield "shadowed", key, f"network.allow[{at}] allows all of it already"
    for index, denial in enumerate(network.deny):
        if not any(may_touch(denial.host, rule.host) for rule in network.allow):
            yield "dead", f"network.deny[{index}]", f"{denial.host} is not allowed by any rule"
    for index, credential in enumerate(network.credentials):
        if not any(may_touch(credential.host, rule.host) for rule in network.allow):
            yield (
                "dead",
                f"network.credentials[{index}]",
                f"{credential.host} is not allowed by any rule",
            )


def _holds(rule: HostRule, other: HostRule, ports: Sequence[int]) -> bool:
    """Whether `rule` surely says something of all that the allow rule `other` does.

    Args:
        ports: That `rule` means; () for all.
    """
    whole = not rule.methods and not rule.paths
    named = not ports or set(other.ports or WEB_PORTS) <= set(ports)
    return whole and named and covers_host(rule.host, other.host)


def covers_host(pattern: str, other: str) -> bool:
    """Whether `pattern` surely matches all that `other` does."""
    if pattern in ("**", other):
        return True
    stars, _, rest = pattern.partition(".")
    if stars == "**":
        return other.endswith("." + rest)
    return stars == "*" and other.partition(".")[2] == rest and other.partition(".")[0] != "**"


def may_touch(one: str, other: str) -> bool:
    """Whether the patterns may have a host in common; addresses and ranges always may."""
    if any("/" in host or ":" in host or host[-1:].isdigit() for host in (one, other)):
        return True
    plain = [host.lstrip("*").lstrip(".") for host in (one, other)]
    return "" in plain or any(
        a == b or a.endswith("." + b) for a, b in ((plain[0], plain[1]), (plain[1], plain[0]))
    )


def _environment(policy: Policy) -> Iterator[_Found]:
    environment = policy.environment
    for index, name in enumerate(environment.pass_):
        key = f"environment.pass[{index}]"
        if name in environment.set:
            yield "shadowed", key, f"environment.set gives {name} a value of its own"
        if any(word in name.upper() for word in _SECRET_WORDS):
            yield (
                "too wide",
                key,
                f"{name} looks like a secret, which all in the sandbox can read; for HTTP use network.credentials",
            )


def _tools(policy: Policy) -> Iterator[_Found]:
    tools = policy.tools
    for index, rule in enumerate(tools.rules):
        key = f"tools.rules[{index}]"
        if rule.when.strip() == "false":
            yield "dead", key, "its condition is never true"
            continue
        if text := tools_without_meaning(rule, policy):
            yield "dead", key, text
        for text in expression_without_meaning(rule):
            yield "wrong", f"{key}.when", text
        weaker = [
            other.effect
            for other in tools.rules
            if _ORDER.index(other.effect) > _ORDER.index(rule.effect)
        ]
        if rule.effect == tools.default and all(effect == rule.effect for effect in weaker):
            yield (
                "dead",
                key,
                f"the default is {rule.effect} anyway, and no rule that it could go before says otherwise",
            )
            continue
        if (found := _shadow(tools.rules, index)) is not None:
            yield found[0], key, found[1]
        if rule.effect == "allow" and _always(rule) and (rule.tool, rule.server) == ("*", "*"):
            yield (
                "too wide",
                key,
                f"every tool is allowed, so the default ({tools.default}) never counts",
            )
    for pattern in tools.arguments:
        if pattern in BUILT_IN:
            yield (
                "dead",
                f"tools.arguments.{pattern}",
                "arguments of built-in tools are known; this is for other servers' tools (server__tool)",
            )


def _flow(policy: Policy) -> Iterator[_Found]:
    for index, rule in enumerate(policy.flow):
        if policy.network.isolated:
            if rule.then.network is not None and not rule.then.tool:
                yield "dead", f"flow[{index}].then", "there is no network; name tools to be held"
        elif policy.filesystem.workspace != "none" and any(
            not pattern.startswith(("/", "~")) and pattern not in policy.filesystem.hide
            for pattern in rule.after.read
        ):
            yield (
                "too wide",
                f"flow[{index}].after.read",
                "a command sees that and the network at once, and no rule stands between; hide it from "
                "commands (filesystem.hide)",
            )


def _require(policy: Policy) -> Iterator[_Found]:
    # Who accepts to be without namespaces does not require what they hold: isolation/fallback.py.
    lost = ("namespaces", "mounts", "capabilities") if policy.dangerously_without_namespaces else ()
    if left := [name for name in ALWAYS if name not in (*policy.require, *lost)]:
        yield (
            "too wide",
            "require",
            f"without {', '.join(left)}, commands also run where a host cannot hold them to that; name all "
            "that is to hold, for this takes the place of what is extended",
        )


def _always(rule: ToolRule) -> bool:
    return rule.when.strip() == "true"


def _shadow(rules: Sequence[ToolRule], index: int) -> tuple[Kind, str] | None:
    """What decides before `rules[index]` whenever that could."""
    rule = rules[index]
    for at, other in enumerate(rules):
        stricter = _ORDER.index(other.effect) < _ORDER.index(rule.effect)
        earlier = other.effect == rule.effect and at < index
        if at == index or not (stricter or earlier):
            continue
        if not (_covers(other.tool, rule.tool) and _covers(other.server, rule.server)):
            continue
        same = other.when.strip() == rule.when.strip()
        if same and stricter and other.tool == rule.tool:
            text = (
                f"tools.rules[{at}] says {other.effect} of the same calls, which holds; remove one"
            )
            return "contradictory", text
        if same or _always(other):
            return "shadowed", f"tools.rules[{at}] always decides before it"
    return None


def _covers(glob: str, other: str) -> bool:
    """Whether `glob` surely matches all that `other`, a name or a glob, does."""
    if glob in ("*", other):
        return True
    if not any(mark in other for mark in "*?["):
        return fnmatchcase(other, glob)
    prefix = glob[:-1]
    return glob.endswith("*") and not any(m in prefix for m in "*?[") and other.startswith(prefix)
