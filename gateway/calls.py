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
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Protocol, runtime_checkable

from ..isolation import View
from ..isolation.egress.connections import MOST_KEPT
from ..policies import CanonicalError, Decision, Rules, narrow
from ..policies.rules import ambiguous, judge, stricter
from .audit import AuditLog, spans
from .audit.log import begin_form
from .audit.record import canonical, recorded_arguments, recorded_output
from .call import (
    REFUSAL,
    Approval,
    Call,
    Outcome,
    Progress,
    Ran,
    Refusal,
    Version,
    place_of,
    refused,
    text_result,
)
from .flows import Flows
from .reasons import Reason
from .screens.progress import screened
from .wire.jsonrpc import object_of

__all__ = [
    "CONNECTIONS", "REFUSAL", "Approval", "Approver", "Call", "Calls", "Outcome", "Progress", "Ran",
    "Refusal", "Run", "Stage", "Version", "judge_call", "place_of", "refused", "text_result",
]  # fmt: skip

CONNECTIONS = "purplebox/connections"
_MOST_TOLD = 20
_MOST_FORMS = 256  # of a version; sessions and rules' reasons have no end
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
                end |= _output(version, ran.result)
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

    def note_task(
        self, call_id: str, version: Version, task: str, reason: Reason, result: Mapping[str, Any]
    ) -> None:
        """Record what a task that a call has made gave, after the call has ended.

        Raises:
            OSError: the record cannot be written; the result must not be handed on.
        """
        fields = {"task": task, "task_reason": str(reason), **_output(version, result)}
        self._log.note(call_id, "task", fields)

    def _begin(self, call: Call, decision: Decision, version: Version) -> str:
        policy, audit = version.policy, version.policy.audit
        enforcement = version.engine.enforcement
        arguments = recorded_arguments(
            version.screen.recorded(call.arguments) if audit.arguments == "full"
            else call.arguments, audit.arguments, audit.redact,
        )  # fmt: skip
        traced = spans.identity()
        said = (decision.effect, decision.rule, decision.reason)
        key = (call.tool, call.server, call.client, call.session, *said)
        form = None if traced else version.forms.get(key)
        if form is None:
            fields = {
                "tool": call.tool, "server": call.server, "client": call.client,
                "session": call.session, "policy": policy.name, "policy_version": policy.digest,
                "effect": decision.effect, "rule": decision.rule,
                "decision_reason": decision.reason, "enforcement": enforcement.to_json(), **traced,
            }  # fmt: skip
            form = begin_form(fields)
            if not traced:
                if len(version.forms) >= _MOST_FORMS:
                    version.forms.clear()
                version.forms[key] = form
        call_id = self._log.begin_as(form, canonical(arguments))
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


def _output(version: Version, result: Mapping[str, Any]) -> dict[str, Any]:
    """What the record holds of a result."""
    audit = version.policy.audit
    kept = version.screen.recorded(result) if audit.output == "full" else result
    output = recorded_output(kept, audit.output, audit.redact)
    return {} if output is None else {"output": output}


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
