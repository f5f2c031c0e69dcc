"""The life of a tool call: received → canonical → decided → approved → run → screened → recorded → returned.

Every call takes this path and leaves one record, however it ends; a built-in tool and a tool of a
server behind the gateway differ only in the `Run` that carries it out. Nothing in a call's arguments
can change its sandbox; only the policy can.

Theory of operation
    `Calls.call` judges under one `Version` (policy and engine), which a reload does not change for a
    call in flight. Stages stand around the run: each may refuse before it, in order, and change its
    result after it, in the opposite order. The record is begun before anything runs (what cannot be
    recorded does not run) and ended whatever happens, also when the caller is cancelled.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast, runtime_checkable

from ..isolation import Engine, View
from ..isolation.egress.connections import MOST_KEPT
from ..policies import CanonicalError, Decision, Grant, Place, Policy, Rules, narrow
from ..policies.rules import ambiguous, judge, stricter
from .audit import AuditLog, spans
from .audit.record import recorded_arguments, recorded_output
from .flows import Flows
from .reasons import MEANINGS, Reason
from .screens.known import known_secrets
from .screens.progress import screened
from .screens.screen import Screen
from .wire.jsonrpc import object_of

if TYPE_CHECKING:
    from .approvals.question import Asker
    from .processes import Processes

Progress = Callable[[str], None]
REFUSAL = "purplebox/refusal"  # in a result's `_meta`
CONNECTIONS = "purplebox/connections"
_MOST_TOLD = 20


@dataclass(frozen=True, kw_only=True)
class Version:
    """What a call is judged by and runs under: a policy and the engine that holds it.

    Attributes:
        policy, engine: These.
        secrets: Name and value of what is given to the sandbox beyond the policy and must not come
            back: the environment that a configuration names for a server.
    """

    policy: Policy
    engine: Engine
    secrets: Mapping[str, str] = field(default_factory=dict[str, str], repr=False)

    @cached_property
    def screen(self) -> Screen:
        """What results are looked through with, made once."""
        known = known_secrets(self.policy, os.environ, self.secrets)
        return Screen(self.policy, {**known, **self.engine.credentials})

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


Run = Callable[[Call, Version], Awaitable[Ran]]


class Stage(Protocol):
    """Something that stands around the run of every call."""

    async def before(self, call: Call, decision: Decision, version: Version) -> Refusal | None:
        """Refuse the call, or let it pass (None). Runs only for calls that the rules let pass."""
        ...

    async def after(self, call: Call, ran: Ran, version: Version) -> Ran:
        """Change what is returned and recorded. Called once for each `before` that let it pass, also
        when the run was cancelled or has failed: then what it returns is not used."""
        ...


@runtime_checkable
class Approver(Protocol):
    """Asks a person about a call whose decision is `ask`."""

    async def approve(self, call: Call, decision: Decision, version: Version) -> Approval:
        """The answer; a time-out is a no."""
        ...


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


class Calls:
    """Carries calls out.

    Args:
        log: Where each leaves its record.
        stages: Around each run, in this order before it.
        approver: Asked where a rule says `ask`; None: there is nobody, so the answer is no.
    """

    def __init__(
        self, log: AuditLog, *, stages: Sequence[Stage] = (), approver: Approver | None = None
    ) -> None:
        self._log = log
        self._stages = tuple(stages)
        self._approver = approver
        self.flows = Flows()

    async def call(
        self, call: Call, version: Version, run: Run, *, problem: Refusal | None = None
    ) -> Outcome:
        """Carry one call out; cancelling it ends its sandbox first, then records that.

        Args:
            call: What is asked for.
            version: What it is judged by and runs under.
            run: Does it, once it may.
            problem: What is wrong with the call in itself (unknown tool, arguments against the
                schema); it is recorded and refused without being judged.

        Raises:
            OSError: the record cannot be written; nothing has run.
        """
        if not version.screen.is_ready:
            await version.screen.prepare(dict(call.arguments))  # nothing waits once it is judged
        if problem is not None:
            decision = Decision(effect="deny", reason=problem.reason, rule=problem.rule)
        else:
            marked = self.flows.of(call.client, call.session)
            call, decision = judge_call(call, version.rules, version.engine.view, marked)
        with spans.tool_call(call.tool):
            call = call.but(
                call_id=self._begin(call, decision, version),
                progress=screened(version.screen, call.progress),
            )
            started = time.monotonic()
            end: dict[str, Any] = {"reason": str(Reason.CANCELLED)}
            is_error = True
            try:
                ran = await self._carry_out(call, decision, version, run, problem, end)
                end = {**end, **ran.facts, "reason": str(ran.reason)}
                audit = version.policy.audit
                kept = version.screen.recorded(ran.result) if audit.output == "full" else ran.result
                if (output := recorded_output(kept, audit.output, audit.redact)) is not None:
                    end["output"] = output
                is_error = bool(ran.result.get("isError"))
                return Outcome(
                    call_id=call.call_id, reason=ran.reason, decision=decision, result=ran.result
                )
            except Exception as error:
                end["reason"] = str(Reason.INTERNAL_ERROR)
                end["error"] = version.screen.text(f"{type(error).__name__}: {error}")
                raise
            finally:
                end["wall_seconds"] = round(time.monotonic() - started, 4)
                self._log.end(call.call_id, end)
                spans.ended(end, is_error=is_error)

    def _begin(self, call: Call, decision: Decision, version: Version) -> str:
        policy, audit = version.policy, version.policy.audit
        enforcement = version.engine.enforcement
        call_id = self._log.begin({
            "tool": call.tool, "server": call.server, "client": call.client,
            "session": call.session, "policy": policy.name, "policy_version": policy.digest,
            "effect": decision.effect, "rule": decision.rule, "decision_reason": decision.reason,
            "arguments": recorded_arguments(
                version.screen.recorded(call.arguments) if audit.arguments == "full"
                else call.arguments, audit.arguments, audit.redact,
            ),
            "enforcement": enforcement.to_json(), **spans.identity(),
        })  # fmt: skip
        spans.begun(call_id, policy, decision, enforcement)
        return call_id

    async def _carry_out(
        self, call: Call, decision: Decision, version: Version, run: Run,
        problem: Refusal | None, end: dict[str, Any],
    ) -> Ran:  # fmt: skip
        if problem is None and decision.effect != "allow":
            problem = await self._not_allowed(call, decision, version, end)
        if problem is not None:
            return refused(problem)
        self._mark(call, call.marks, end)
        passed: list[Stage] = []
        for stage in self._stages:
            refusal = await stage.before(call, decision, version)
            if refusal is not None:
                ran = refused(refusal)
                break
            passed.append(stage)
        else:
            try:
                ran = _told(await run(call, version))
            except BaseException as error:
                cancelled = isinstance(error, asyncio.CancelledError)
                reason = Reason.CANCELLED if cancelled else Reason.INTERNAL_ERROR
                ran = Ran(result=text_result("", is_error=True), reason=reason)
                for stage in reversed(passed):
                    await stage.after(call, ran, version)
                raise
            if version.rules.flow and (made := ran.facts.get("connections")):
                out = [c for c in made if c.get("via") != "loopback"]
                hosts = [c.get("name") or c.get("address", "") for c in out if "reason" not in c]
                known = len(out) < MOST_KEPT
                self._mark(call, version.rules.flow.reached(hosts, all_known=known), end)
        for stage in reversed(passed):
            ran = await stage.after(call, ran, version)
        return ran

    def _mark(self, call: Call, marks: Mapping[str, str], end: dict[str, Any]) -> None:
        """Note what a call has taken in, for its session and in its record."""
        if marks:
            self.flows.mark(call.client, call.session, marks, call.call_id)
            end["flow_marks"] = [*end.get("flow_marks", ()), *marks.values()]

    async def _not_allowed(
        self, call: Call, decision: Decision, version: Version, end: dict[str, Any]
    ) -> Refusal | None:
        rule = f"rule {decision.rule} of policy {version.policy.name}"
        if decision.effect == "deny":
            text = f"Denied by {rule}: {decision.reason}"
            return Refusal(reason=Reason(decision.code), rule=decision.rule, text=text)
        if self._approver is None:
            text = (
                "Refused: this needs a person's approval, and nobody can be asked here "
                f"({rule}): {decision.reason}"
            )
            return Refusal(reason=Reason.APPROVAL_REQUIRED, rule=decision.rule, text=text)
        call = call.but(pending=partial(self._log.note, call.call_id, "pending"))
        approval = await self._approver.approve(call, decision, version)
        end["approval"] = {"allowed": approval.allowed, "by": approval.by, **approval.facts}
        if approval.allowed:
            return None
        text = f"Refused: {approval.text or 'a person said no'} ({rule}): {decision.reason}"
        return Refusal(
            reason=approval.reason, rule=decision.rule, text=text,
            retry_seconds=approval.retry_seconds,
        )  # fmt: skip


def judge_call(
    call: Call, rules: Rules, view: View, marked: Mapping[str, str] | None = None
) -> tuple[Call, Decision]:
    """The call with canonical arguments, grant and marks, and what the policy says of it.

    Args:
        call: As asked for.
        rules, view: Of its policy.
        marked: What its session has taken in: `Flows.of`.

    Another server's tool is refused, whatever the rules say, where an argument that the policy
    declares (`tools.arguments`) is not within what the policy grants that server.
    """
    try:
        request = rules.request(
            tool=call.tool, arguments=call.arguments, server=call.server, client=call.client,
            session=call.session,
        )  # fmt: skip
    except CanonicalError as error:
        return call, ambiguous(error)
    request, decision = judge(rules, request, view.follow)
    grant = narrow(request)
    if grant.scope == "server" and decision.effect != "deny" and (far := view.beyond(grant)):
        decision = Decision(effect="deny", reason=far.text, rule=far.rule, code="outside_grant")
    marks: dict[str, str] = {}
    if rules.flow:
        decision = stricter(decision, rules.flow.verdict(request, grant, marked or {}))
        marks = rules.flow.marks(request, grant, view.sees)
    return call.but(arguments=request.arguments, grant=grant, marks=marks), decision


def _told(ran: Ran) -> Ran:
    """With the connections that were refused in `_meta`, for programs; the text is for the model."""
    refused = [
        {key: said[key] for key in ("reason", "rule", "name", "address", "port") if key in said}
        for said in ran.facts.get("connections", ())
        if said.get("reason")
    ]
    if not refused:
        return ran
    meta = {**object_of(ran.result.get("_meta")), CONNECTIONS: refused[:_MOST_TOLD]}
    return replace(ran, result={**ran.result, "_meta": meta})


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
