"""What the tools tell the model of what a sandbox stopped. Pure."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ...isolation import Limit, Result
    from ...policies import Policy

_NETWORK = re.compile(
    r"Could not resolve host|Temporary failure in name resolution|Network is unreachable|"
    r"Name or service not known|getaddrinfo|EAI_AGAIN|No address associated|Couldn't resolve",
)
_ABSENT = re.compile(
    r"No such file or directory|Permission denied|cannot access|Operation not permitted"
)
_MOST_CONNECTIONS = 10
_READ_ONLY = re.compile(r"Read-only file system")
_OUTSIDE = re.compile(
    r"(?:^|[\s=:'\"(])((?:~|\$HOME|/(?:home|root|etc|var|mnt|srv|run|sys|boot))(?:/[\w.@+-]+)+)"
)


def notes(command: str, result: Result, policy: Policy) -> list[str]:
    """Sentences for the model where a failure looks like the sandbox's doing: what, and the rule.

    A hint from the output's words; the sandbox itself has decided already.
    """
    said: list[str] = []
    text = (result.stdout + b"\n" + result.stderr).decode("utf-8", "replace")
    name = policy.name
    if policy.network.isolated and _NETWORK.search(text):
        said.append(
            f"Stopped: the network is out of reach (rule network.isolated of policy {name}). "
            "Retrying will not help; ask the person for a policy that grants the host."
        )
    if _ABSENT.search(text):
        for path in dict.fromkeys(_OUTSIDE.findall(command)):
            said.append(
                f"Stopped: {path} is outside what policy {name} grants (rule filesystem.read). "
                "The host's file is not visible here; ask the person to grant it if it is needed."
            )
    if _READ_ONLY.search(text):
        said.append(
            f"Stopped: that place is read-only (rules filesystem.write and filesystem.protect of "
            f"policy {name}). Write inside the workspace or /tmp."
        )
    said += connections(result, policy)
    said += moved_aside(result, policy)
    said += [_of_limit(limit, policy) for limit in result.limits]
    return said


_ADVICE = {
    "resources.memory_limit": "Work on less at once.",
    "resources.processes": "Run fewer things at once.",
    "resources.output_limit": "Redirect output to a file and read parts.",
    "resources.open_files": "Close files that are done with.",
    "resources.disk": "Remove what is not needed, or write less.",
    "filesystem.tmp_size": "Remove what is not needed in /tmp and HOME, or write less.",
}


def _of_limit(limit: Limit, policy: Policy) -> str:
    rule = "asked for by the call"
    if "." in limit.key:
        rule = f"rule {limit.key} of policy {policy.name}"
    return f"Limit: {limit.sentence()} ({rule}). {_ADVICE.get(limit.key, '')}".rstrip()


def connections(result: Result, policy: Policy) -> list[str]:
    """A sentence for each connection of a call that was refused or failed, the first ten."""
    refused = [c for c in result.connections if c.reason]
    said = [
        f"Stopped: {c.text} ({c.reason}{f', rule {c.rule}' if c.rule else ''}; policy {policy.name})"
        for c in refused[:_MOST_CONNECTIONS]
    ]
    if more := len(refused) - len(said):
        said.append(f"{more} more connections were stopped; the record has them.")
    return said


def moved_aside(result: Result, policy: Policy) -> list[str]:
    """A sentence for each protected path that a call made."""
    return [
        f"Undone: {sentence}, because it could run outside the sandbox (rule filesystem.protect of "
        f"policy {policy.name}). Ask the person to make it."
        for sentence in result.moved_aside
    ]
