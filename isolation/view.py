"""What the sandboxes of a policy see, asked from outside, before a call is judged.

The view shows granted trees and system software at the host's own paths, so that what the host says of
a path there is true inside. It is a look; that it still holds when the call runs is the kernel's.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from .guard import Guard
from .plan import PRIVATE, Plan

if TYPE_CHECKING:
    from ..policies import Grant, Policy
    from ..policies.hosts import Hosts

_MOST_LINKS = 40  # MAXSYMLINKS, path_resolution(7)
_OWN = (*PRIVATE, "/proc", "/dev")  # each sandbox's


@dataclass(frozen=True, kw_only=True)
class Beyond:
    """Something that a call names and its policy does not reach.

    Attributes:
        rule: The policy's key that would have to allow it.
        text: A sentence for the model and the person.
    """

    rule: str
    text: str


class View:
    """The view of one policy over one workspace.

    Args:
        policy: What is allowed.
        plan: The same, compiled for this host.
        guard: What of the workspace is hidden.
    """

    def __init__(self, policy: Policy, plan: Plan, guard: Guard) -> None:
        self._policy, self._plan, self._guard = policy, plan, guard

    @cached_property
    def _hosts(self) -> Hosts:
        from ..policies.hosts import Hosts

        return Hosts(self._policy.network)

    def follow(self, path: str, last: bool = True) -> str:
        """Where `path` leads, symbolic links followed.

        Args:
            path: Absolute, without `.` and `..`.
            last: Whether the last component is followed, too.

        A link that leads out of the view is followed up to where it leaves it. What the view does not
        show is not looked at, and not what the policy hides: the path is then returned as it is, and
        the kernel decides. So is one with over forty links: ELOOP.
        """
        followed, through = self._follow(path, last)
        if not through:
            return followed
        try:
            hidden = self._guard.look().hide
        except ValueError:  # too much is hidden: no sandbox starts, and that is what is said
            return path
        return path if _covers(hidden, through) else followed

    def _follow(self, path: str, last: bool) -> tuple[str, list[str]]:
        waiting = path.split("/")[::-1]
        done = ""
        through: list[str] = []
        while waiting:
            part = waiting.pop()
            if part in ("", "."):
                continue
            if part == "..":
                done = os.path.dirname(done).rstrip("/")
                continue
            here = f"{done}/{part}"
            target = None
            if (last or any(waiting)) and self._plan.shows(here):
                try:
                    target = os.readlink(here)
                except OSError:  # no link, or nothing
                    target = None
            if target is None:
                done = here
                continue
            through.append(here)
            if len(through) > _MOST_LINKS:
                return path, []
            if target.startswith("/"):
                done = ""
            waiting.extend(target.split("/")[::-1])
        return done or "/", through

    def sees(self, path: str) -> bool:
        """Whether the view shows anything at or below `path`, or `path` itself, that is not hidden."""
        plan = self._plan
        roots = [*plan.read, *plan.write, *([plan.workspace] if plan.workspace else [])]
        below = any(_covers([path.rstrip("/")], [root]) for root in roots)
        if not below and not plan.shows(path):
            return False
        try:
            return not _covers(self._guard.look().hide, [path])
        except ValueError:  # too much is hidden; what is not known to be hidden is seen
            return True

    def changeable(self, path: str) -> bool:
        """Whether a command could change the file, or put another in its place.

        `filesystem.protect` does not count: it holds for what is there when a command starts.
        """
        plan = self._plan
        writable = [*plan.write, *([plan.workspace or ""] if plan.workspace_writable else [])]
        return _covers(writable, [os.path.abspath(path), os.path.realpath(path)])

    def beyond(self, grant: Grant) -> Beyond | None:
        """The first path or host of `grant` that the policy does not reach; None where it has all."""
        name, plan = self._policy.name, self._plan
        writable = [*_OWN, *plan.write]
        if plan.workspace is not None and plan.workspace_writable:
            writable.append(plan.workspace)
        for path in grant.write:
            if not _covers(writable, [self.follow(path)]):
                return Beyond(
                    rule="filesystem.write",
                    text=f"{path} may not be written under policy {name}; "
                    "ask the person to grant it if it is needed",
                )
        for path in grant.read:
            led = self.follow(path)
            if not plan.shows(led) and not _covers(_OWN, [led]):
                return Beyond(
                    rule="filesystem.read",
                    text=f"{path} is outside what policy {name} grants; "
                    "ask the person to grant it if it is needed",
                )
        for rule in grant.hosts:
            if why := self._unreachable(rule.host, rule.ports[0]):
                return why
        return None

    def _unreachable(self, host: str, port: int) -> Beyond | None:
        if self._policy.network.isolated:
            text = f"policy {self._policy.name} has no network; ask the person for one that grants {host}"
            return Beyond(rule="network.isolated", text=text)
        from ..policies.addresses import literal_address
        from ..policies.hosts import canonical_name

        try:
            address = literal_address(host)
            verdict = (
                self._hosts.decide_address(address, port)
                if address is not None
                else self._hosts.decide_name(canonical_name(host), port)
            )
        except ValueError as error:
            return Beyond(rule="network.allow", text=str(error))
        if verdict.allowed:
            return None
        return Beyond(rule=verdict.rule or "network.allow", text=verdict.text)


def _covers(roots: Sequence[str], paths: Sequence[str]) -> bool:
    return any(path == root or path.startswith(root + "/") for path in paths for root in roots)
