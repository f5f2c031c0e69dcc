"""What the tools tell the model of what a sandbox stopped. Paths are looked at as the view has them."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

from ...policies import Grant

if TYPE_CHECKING:
    from ...isolation import Limit, Result
    from ...policies import Policy
    from ..call import Version

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
_AT_HOME = re.compile(r"~|\$HOME")
_BETWEEN = re.compile(r"""[\s'"`;|&<>(){}=,@]+""")  # words of a command line, roughly
_MOST_WORDS = 200


def notes(command: str, result: Result, version: Version, cwd: str = "") -> list[str]:
    """Sentences for the model where a failure looks like the sandbox's doing: what, and the rule.

    A hint from the words of command and output; the sandbox itself has decided already.

    Args:
        command: What has run, or a sentence that names the paths.
        result: What came of it.
        version: It ran under this.
        cwd: Where it began; relative to the workspace, or absolute.
    """
    said: list[str] = []
    policy = version.policy
    text = (result.stdout + b"\n" + result.stderr).decode("utf-8", "replace")
    name = policy.name
    if policy.network.isolated and _NETWORK.search(text):
        said.append(
            f"Stopped: the network is out of reach (rule network.isolated of policy {name}). "
            "Retrying will not help; ask the person for a policy that grants the host."
        )
    if _ABSENT.search(text):
        for path in dict.fromkeys(_OUTSIDE.findall(command)):
            said += _absent(path, version)
    if _READ_ONLY.search(text):
        said.append(
            f"Stopped: that place is read-only (rules filesystem.write and filesystem.protect of "
            f"policy {name}). Write inside the workspace or /tmp."
        )
    said += _hidden(command, version, cwd)
    said += connections(result, policy)
    said += moved_aside(result, policy)
    said += [_of_limit(limit, policy) for limit in result.limits]
    return said


def _absent(path: str, version: Version) -> Iterator[str]:
    """Why a path that a command named was not there; nothing where that is not the policy's doing."""
    policy, view = version.policy, version.engine.view
    there = os.path.normpath(_AT_HOME.sub(lambda _: os.path.expanduser("~"), path, count=1))
    at_home = _AT_HOME.match(path) is not None  # HOME inside is the sandbox's own
    if at_home and is_hidden(there, version):
        yield f"Hidden: {path}. {hidden_by(policy)}"
    elif at_home and view.sees(there):
        yield f"HOME is another directory here: what policy {policy.name} grants of {path} is {there}; use that path."  # fmt: skip
    elif at_home or view.beyond(Grant(read=(there,))) is not None:
        yield (
            f"Stopped: {path} is outside what policy {policy.name} grants (rule filesystem.read). "
            "The host's file is not visible here; ask the person to grant it if it is needed."
        )


def _hidden(command: str, version: Version, cwd: str) -> Iterator[str]:
    """A sentence for each path in a command that is there on the host and hidden."""
    workspace = version.engine.workspace
    if workspace is None or not version.policy.filesystem.hide:
        return
    begin = os.path.join(workspace.resolve(), cwd)
    for word in dict.fromkeys(_BETWEEN.split(command)[:_MOST_WORDS]):
        path = os.path.normpath(os.path.join(begin, word))
        if word and os.path.lexists(path) and is_hidden(path, version):
            yield f"Hidden: {word}. {hidden_by(version.policy)}"


def is_hidden(path: str, version: Version) -> bool:
    """Whether `filesystem.hide` covers an absolute path of the workspace."""
    view, workspace = version.engine.view, version.engine.workspace
    if workspace is None or not f"{path}/".startswith(f"{workspace.resolve()}/"):
        return False
    led = view.follow(path)
    return view.beyond(Grant(read=(led,))) is None and not (view.sees(path) and view.sees(led))


def hidden_by(policy: Policy) -> str:
    """What that means, in a sentence."""
    return (
        f"Policy {policy.name} hides it (rule filesystem.hide): what is in it is not visible here, "
        "and it reads as empty or as no regular file."
    )


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
