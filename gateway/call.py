"""One tool call in values: what is asked for, what it is judged by, and how it may end."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from ..isolation import Engine
from ..policies import Decision, Grant, Place, Policy, Rules
from .audit.record import Form
from .reasons import MEANINGS, Reason
from .screens.known import known_secrets
from .screens.screen import Screen

if TYPE_CHECKING:
    from .approvals.question import Asker
    from .processes import Processes

Progress = Callable[[str], None]
REFUSAL = "purplebox/refusal"  # in a result's `_meta`


@dataclass(frozen=True, kw_only=True)
class Version:
    """What a call is judged by and runs under: a policy and the engine that holds it.

    Attributes:
        policy, engine: These.
        secrets: Name and value of what is given to the sandbox beyond the policy and must not come
            back: the environment that a configuration names for a server. A name says whether its
            value is secret.
        read: The same for what references stood for: secret whatever the name.
    """

    policy: Policy
    engine: Engine
    secrets: Mapping[str, str] = field(default_factory=dict[str, str], repr=False)
    read: Mapping[str, str] = field(default_factory=dict[str, str], repr=False)

    @cached_property
    def forms(self) -> dict[tuple[str, ...], Form]:
        """The beginnings of records, as far as calls have them in common."""
        return {}

    @cached_property
    def screen(self) -> Screen:
        """What results are looked through with, made once."""
        known = known_secrets(self.policy, os.environ, self.secrets)
        return Screen(self.policy, {**known, **self.read, **self.engine.credentials})

    @cached_property
    def rules(self) -> Rules:
        """The policy's rules, compiled once; paths of calls begin in the engine's workspace."""
        return Rules(self.policy, place_of(self.policy, self.engine.workspace))


def place_of(policy: Policy, workspace: Path | None) -> Place:
    """Where relative paths of a call begin under `policy`, for a sandbox with this workspace."""
    if workspace is None or policy.filesystem.workspace == "none":
        return Place(home=str(Path.home()))
    resolved, spelled = str(workspace.resolve()), str(workspace.absolute())
    aliases = (spelled,) if spelled != resolved else ()
    return Place(workspace=resolved, home=str(Path.home()), aliases=aliases)


@dataclass(frozen=True, kw_only=True)
class Call:
    """One tool call as it was asked for.

    Attributes:
        tool: The server's own name for it, without the gateway's prefix.
        arguments: As judged: canonical.
        server: Name of the server behind the gateway; "" for the built-in tools.
        client: Who asks: the client's name, or its principal over HTTP; "" when unknown.
        session: Of that client; "" when there is none.
        call_id: The record's; "" until it has been begun.
        progress: Called with running output as it comes; None when nobody wants it.
        asker: Reaches the person at the client that made the call; None where there is no way.
        grant: What of the policy it needs; None before it has been judged.
        marks: Flow rules that it sets off, with what it takes in.
        processes: Those in the background; None where the call does not come through a `Gateway`.
        pending: Records that the call waits for a person, and by which question; None until the
            call has been begun.
    """

    tool: str
    arguments: Mapping[str, Any]
    server: str = ""
    client: str = ""
    session: str = ""
    call_id: str = ""
    progress: Progress | None = None
    asker: Asker | None = None
    grant: Grant | None = None
    marks: Mapping[str, str] = field(default_factory=dict[str, str])
    processes: Processes | None = None
    pending: Callable[[Mapping[str, Any]], None] | None = None

    def but(self, **changes: Any) -> Call:
        """As `dataclasses.replace`, at a quarter of its cost: it is paid for by every call."""
        made = object.__new__(Call)
        vars(made).update(vars(self), **changes)
        return made


@dataclass(frozen=True, kw_only=True)
class Refusal:
    """Why a call does not run.

    Attributes:
        reason: Stable code.
        rule: Key of the policy that says so.
        text: For the model: what, by which rule, what to do.
        person: For the person, where that differs; "" where it does not.
        retry_seconds: When to try again; None when that will not help.
    """

    reason: Reason
    rule: str
    text: str
    person: str = ""
    retry_seconds: float | None = None


@dataclass(frozen=True, kw_only=True)
class Ran:
    """What carrying a call out gave.

    Attributes:
        result: CallToolResult in wire form.
        reason: COMPLETED, or why it ended otherwise.
        facts: For the record: exit status, resources used, connections, what degraded.
    """

    result: dict[str, Any]
    reason: Reason = Reason.COMPLETED
    facts: Mapping[str, Any] = field(default_factory=dict[str, Any])


@dataclass(frozen=True, kw_only=True)
class Approval:
    """A person's answer, or that there was none.

    Attributes:
        allowed: Whether the call may run, now and once.
        by: How the answer came.
        text: Why not, for the model.
        reason: The code of the refusal.
        facts: For the record: the question's id, what was chosen, how long it took.
        retry_seconds: When to ask again; None when that will not help.
    """

    allowed: bool
    by: str
    text: str = ""
    reason: Reason = Reason.APPROVAL_DENIED
    facts: Mapping[str, Any] = field(default_factory=dict[str, Any])
    retry_seconds: float | None = None


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a call ended. `result` goes back to the client: CallToolResult in wire form."""

    call_id: str
    reason: Reason
    decision: Decision
    result: dict[str, Any]

    @property
    def is_error(self) -> bool:
        """MCP's isError: the model should see that it did not work."""
        return bool(self.result.get("isError"))

    @property
    def content(self) -> dict[str, Any] | None:
        """The structured content; None where there is none."""
        return cast("dict[str, Any] | None", self.result.get("structuredContent"))

    @property
    def text(self) -> str:
        """All text blocks, a line break between them."""
        blocks: list[dict[str, Any]] = self.result.get("content", [])
        return "\n".join(str(b.get("text", "")) for b in blocks if b.get("type") == "text")


def text_result(
    text: str, content: dict[str, Any] | None = None, *, is_error: bool = False
) -> dict[str, Any]:
    """A CallToolResult in wire form."""
    result: dict[str, Any] = {"content": [{"type": "text", "text": text}], "isError": is_error}
    if content is not None:
        result["structuredContent"] = content
    return result


def refused(refusal: Refusal) -> Ran:
    """What a refusal gives, for client and record."""
    facts: dict[str, Any] = {"refused_by": refusal.rule}
    told: dict[str, Any] = {
        "reason": str(refusal.reason), "rule": refusal.rule,
        "person": refusal.person or MEANINGS[refusal.reason][1],
    }  # fmt: skip
    if refusal.retry_seconds is not None:
        facts["retry_seconds"] = told["retry_seconds"] = refusal.retry_seconds
    result = text_result(refusal.text, is_error=True)
    result["_meta"] = {REFUSAL: told}
    return Ran(result=result, reason=refusal.reason, facts=facts)
