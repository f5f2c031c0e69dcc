"""What a policy, narrowed to a grant, lets a call do: in plain words. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from .narrow import WHOLE, Grant

if TYPE_CHECKING:
    from .model import HostRule, Policy

_WORKSPACE = {
    "none": "", "read": "the workspace, read-only", "write": "the workspace",
    "overlay": "the workspace, changes staged",
}  # fmt: skip
_HELD = {
    "call": "this call's own: the kernel holds it to what its arguments name",
    "policy": "all of the policy: what the call will touch is not in its arguments",
    "server": "the server's, which outlives the call and has all of its policy; of the arguments, "
    "what the policy declares is checked before they are forwarded",
}


def sandbox_words(policy: Policy, grant: Grant = WHOLE) -> dict[str, str]:
    """Label to words, in the order in which they are shown: what a call's sandbox holds."""
    files = policy.filesystem
    whole = grant.scope != "call"
    write = [*files.write] if whole else [*grant.write]
    read = [*files.read] if whole else [*grant.read]
    if whole and files.workspace in ("write", "overlay"):
        write.insert(0, _WORKSPACE[files.workspace])
    elif whole and files.workspace == "read":
        read.insert(0, _WORKSPACE["read"])
    said = {"held": _HELD[grant.scope], "reads": _list(read, "nothing but system software" if whole else "nothing")}  # fmt: skip
    said["writes"] = _list(write, "nothing but its private /tmp" if whole else "nothing")
    if files.hide and (whole or read or write):
        said["hidden"] = _list(files.hide, "")
    said["reaches"] = _network(policy, grant)
    if grant.scope == "server":
        named = [*grant.read, *grant.write, *map(host_words, grant.hosts)]
        said["checked"] = _list(named, "no argument is declared")
    said["limits"] = _limits(policy)
    return said


def host_words(rule: HostRule) -> str:
    """A host rule in a few words: `api.example:443 GET /v1/**`."""
    host = f"[{rule.host}]" if ":" in rule.host and "/" not in rule.host else rule.host
    ports = "" if not rule.ports else ":" + ",".join(map(str, rule.ports))
    return " ".join([host + ports, *rule.methods, *rule.paths])


def bytes_words(number: int) -> str:
    """`1.5 GiB`."""
    for unit, size in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if number >= size:
            return f"{number / size:g} {unit}"
    return f"{number} bytes"


def _network(policy: Policy, grant: Grant) -> str:
    network = policy.network
    if network.isolated:
        return "no network"
    if grant.scope == "call":
        return _list(map(host_words, grant.hosts), "no network")
    said = _list(map(host_words, network.allow), "no host")
    if network.deny:
        said += f"; never {_list(map(host_words, network.deny), '')}"
    return said


def _limits(policy: Policy) -> str:
    limits = policy.resources
    said: list[str] = []
    if limits.memory_bytes is not None:
        said.append(f"{bytes_words(limits.memory_bytes)} of memory")
    if limits.cpu_cores is not None:
        said.append(f"{limits.cpu_cores:g} CPU")
    if limits.processes is not None:
        said.append(f"{limits.processes} processes")
    if limits.wall_seconds is not None:
        said.append(f"{limits.wall_seconds:g} s")
    if limits.disk_bytes is not None:
        said.append(f"{bytes_words(limits.disk_bytes)} of disk")
    return _list(said, "none")


def _list(items: Iterable[str], nothing: str) -> str:
    return ", ".join(items) or nothing
