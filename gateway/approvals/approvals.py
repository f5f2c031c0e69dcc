"""Asks a person on every way at once, and takes the first answer.

Theory of operation
    A call whose verdict is `ask` becomes one `Question`, bound to a digest over who asks for what under
    which rule of which version of the policy. Every way (the board behind `purple approvals`, a
    webhook, a callback, the client's own dialog where the policy lets it) is asked at the same time;
    the first answer counts, and the others are closed. No answer in time, an answer to another call,
    a client that goes away and a policy that changes meanwhile are a no. A yes lets this one call run.
    `session` keeps the digest for as long as the process lives: the session is part of the digest, so
    it serves nobody else, and another policy version has other digests. `always` adds the call to the
    policy's file, as the question has shown.
    A model that repeats what was refused must not wear a person down: the same call is not asked
    about again for a minute, and only so many questions may be open or asked a minute.
"""

from __future__ import annotations

import asyncio
import collections
import sys
import time
import uuid
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

from ...policies import PolicyError
from ...policies.amend import Amendment, approve_always
from ..audit import spans
from ..audit.record import redact
from ..call import Approval, Call
from ..reasons import Reason
from .question import Answer, Asker, Choice, Question, binding_of, describe, sandbox_words, title
from .webhook import Waiting, Webhook

if TYPE_CHECKING:
    from ...policies import Decision, Policy, PolicySource
    from ..call import Version

MOST_OPEN, MOST_A_MINUTE = 16, 30  # of one session
QUIET_SECONDS = 60.0
_MOST_STANDING = 4096


class Approvals:
    """The `Approver` of a gateway.

    Args:
        ways: Asked about every call, besides the policy's webhook and the client that made it.
        source: The policy's file, to which `always` adds; None: that is not offered.
        clock: Seconds that only grow.
    """

    def __init__(
        self, ways: Sequence[Asker] = (), *, source: PolicySource | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:  # fmt: skip
        self._ways = tuple(ways)
        self._source = source
        self._waiting: dict[str, Waiting] = {}
        self._clock = clock
        self._standing: collections.OrderedDict[str, None] = collections.OrderedDict()
        self._refused: collections.OrderedDict[str, float] = collections.OrderedDict()
        self._asked: dict[str, collections.deque[float]] = {}
        self._open: dict[str, _Open] = {}
        self._in_force: frozenset[str] | None = None

    async def approve(self, call: Call, decision: Decision, version: Version) -> Approval:
        """As `Approver.approve`."""
        policy = version.policy
        binding = binding_of(call, decision, policy.digest)
        facts: dict[str, Any] = {"binding": binding}
        if self._is_retired(policy.digest):
            return _void(facts)
        if binding in self._standing:
            return Approval(allowed=True, by="session", facts=facts)
        if refusal := self._too_soon(call, binding, facts):
            return refusal
        ways = self._ways_of(call, policy)
        if not ways:
            return _nobody(facts)
        amendment = self._amendment(call, decision, policy)
        question = _question(call, decision, version, binding, amendment)
        facts |= {"question": question.id, "asked": [way.who for way in ways]}
        if call.pending is not None:
            call.pending(facts)
        spans.event("purple.approval.asked", {"purple.approval.question": question.id})
        started = self._clock()
        answer = await self._answer(question, call.session, policy.digest, ways)
        facts["waited_seconds"] = round(self._clock() - started, 3)
        approval = self._taken(question, answer, facts, amendment)
        spans.event(
            "purple.approval.answered",
            {"purple.approval.allowed": approval.allowed, "purple.approval.by": approval.by},
        )
        return approval

    def policies_in_force(self, digests: Collection[str]) -> None:
        """Say which policy versions are in force: questions and calls under any other are a no."""
        self._in_force = frozenset(digests)
        for item in list(self._open.values()):
            if self._is_retired(item.version) and not item.retired.done():
                item.retired.set_result(None)

    def called_back(self, id: str, headers: Mapping[str, str], body: bytes) -> bool:
        """Take a webhook's answer that came by a request of its own; False: it was not taken.

        Args:
            id: Of the question.
            headers: Names in lower case.
            body: As it came.
        """
        waiting = self._waiting.get(id)
        return waiting is not None and waiting.called_back(headers, body)

    def _amendment(self, call: Call, decision: Decision, policy: Policy) -> Amendment | None:
        """What `always` would write; None where that is not to be had."""
        if self._source is None or not decision.rule.startswith("tools."):
            return None
        if redact(dict(call.arguments), policy.audit.redact) != call.arguments:
            return None  # no secret goes into a policy
        try:
            return approve_always(self._source, call.tool, call.server, call.arguments)
        except PolicyError:
            return None

    def _is_retired(self, version: str) -> bool:
        return self._in_force is not None and version not in self._in_force

    def _too_soon(self, call: Call, binding: str, facts: dict[str, Any]) -> Approval | None:
        now = self._clock()
        last = self._refused.get(binding)
        if last is not None and now - last < QUIET_SECONDS:
            return Approval(
                allowed=False, by="recent answer", facts=facts,
                text="a person has just said no to this very call; do something else",
                retry_seconds=round(QUIET_SECONDS - (now - last), 1),
            )  # fmt: skip
        mine = self._asked.setdefault(call.session, collections.deque())
        while mine and now - mine[0] >= 60.0:
            mine.popleft()
        is_open = sum(item.session == call.session for item in self._open.values())
        if is_open >= MOST_OPEN or len(mine) >= MOST_A_MINUTE:
            return Approval(
                allowed=False, by="limit", reason=Reason.RATE_LIMITED, facts=facts,
                text="too many questions wait for a person, or were asked within a minute",
                retry_seconds=round(60.0 - (now - mine[0]), 1) if mine else 60.0,
            )  # fmt: skip
        mine.append(now)
        for session in [s for s, t in self._asked.items() if not t or now - t[-1] >= 60.0]:
            del self._asked[session]
        return None

    def _ways_of(self, call: Call, policy: Policy) -> list[Asker]:
        ways = list(self._ways)
        if policy.approvals.webhook is not None:
            ways.append(Webhook(policy.approvals.webhook, self._waiting))
        asker = call.asker
        if asker is not None and any(
            fnmatchcase(asker.who, glob) for glob in policy.approvals.clients
        ):
            ways.append(asker)
        return ways

    async def _answer(
        self, question: Question, session: str, version: str, ways: Sequence[Asker]
    ) -> Answer | Reason:
        """The first answer; a reason where there is none."""
        loop = asyncio.get_running_loop()
        item = _Open(session=session, version=version, retired=loop.create_future())
        self._open[question.id] = item
        asking = {loop.create_task(_ask(way, question)) for way in ways}
        deadline = loop.time() + question.expires_seconds
        try:
            while asking:
                waiting: set[asyncio.Future[Any]] = {*asking, item.retired}
                done, _ = await asyncio.wait(
                    waiting, timeout=max(0.0, deadline - loop.time()),
                    return_when=asyncio.FIRST_COMPLETED,
                )  # fmt: skip
                if item.retired.done():
                    return Reason.APPROVAL_VOID
                if not done:
                    return Reason.APPROVAL_TIMED_OUT
                answers = [answer for task in asking & done if (answer := task.result())]
                if answers:
                    # Two at once: a no is as good as first.
                    return min(answers, key=lambda answer: answer.choice != "deny")
                asking -= done
            return Reason.APPROVAL_REQUIRED
        finally:
            del self._open[question.id]
            item.retired.cancel()
            for task in asking:
                task.cancel()
            await asyncio.gather(*asking, return_exceptions=True)

    def _taken(
        self, question: Question, answer: Answer | Reason, facts: dict[str, Any],
        amendment: Amendment | None,
    ) -> Approval:  # fmt: skip
        if answer is Reason.APPROVAL_TIMED_OUT:
            return Approval(
                allowed=False, by="time-out", reason=answer, facts=facts,
                text=f"nobody answered within {question.expires_seconds:g} s",
            )  # fmt: skip
        if answer is Reason.APPROVAL_VOID:
            return _void(facts)
        if isinstance(answer, Reason):
            return _nobody(facts)
        facts["choice"] = answer.choice
        by = answer.by
        if answer.binding != question.binding:
            return replace(_void(facts), by=by, text="the answer was given to another call")
        if answer.choice == "deny" or answer.choice not in question.choices:
            _keep(self._refused, question.binding, self._clock())
            return Approval(allowed=False, by=by, facts=facts)
        if answer.choice in ("session", "always"):
            _keep(self._standing, question.binding, None)
        if answer.choice == "always" and amendment is not None:
            try:
                amendment.write()
                facts["written"] = str(amendment.path)
            except PolicyError as error:
                facts["not_written"] = str(error)
                print(f"purple: approval {question.id}: {error}", file=sys.stderr, flush=True)
        return Approval(allowed=True, by=by, facts=facts)


@dataclass(kw_only=True)
class _Open:
    session: str
    version: str
    retired: asyncio.Future[None]


class Callback:
    """A way that asks a function: for programs that have a person of their own.

    Args:
        function: Given the question, gives the choice.
    """

    who = "callback"

    def __init__(self, function: Callable[[Question], Any]) -> None:
        self._function = function

    async def ask(self, question: Question) -> Answer:
        """As `Asker.ask`; `True` is `once`, and what is no choice is a no."""
        found = self._function(question)
        if asyncio.iscoroutine(found):
            found = await found
        choices: dict[object, Choice] = {True: "once", **{c: c for c in question.choices}}
        choice = choices.get(found, "deny") if isinstance(found, str | bool) else "deny"
        return Answer(choice=choice, by=self.who, binding=question.binding)


async def _ask(way: Asker, question: Question) -> Answer | None:
    try:
        return await way.ask(question)
    except Exception as error:  # one way's trouble is not another's
        problem = f"{type(error).__name__}: {error}"[:500]
        print(f"purple: approval {question.id}: asking by {way.who}: {problem}", file=sys.stderr)
        return None


def _question(
    call: Call, decision: Decision, version: Version, binding: str, amendment: Amendment | None
) -> Question:
    policy = version.policy
    choices: list[Choice] = ["once", "deny"]
    if amendment is not None:
        choices.insert(1, "always")
    if call.session:
        choices.insert(1, "session")
    written = ""
    if amendment is not None:
        lines = (
            amendment.after if amendment.before is None else f"tools.approved: {amendment.added}"
        )
        written = f"in {amendment.path}:\n{lines.rstrip()}"
    hidden = redact(dict(call.arguments), policy.audit.redact)
    return Question(
        id=uuid.uuid4().hex[:8], binding=binding, title=title(call),
        text=describe(call, decision, policy, version.engine.enforcement, written),
        arguments=hidden, choices=tuple(choices), expires_seconds=policy.approvals.wall_seconds,
        facts={
            "tool": call.tool, "server": call.server, "client": call.client,
            "session": call.session, "rule": decision.rule, "reason": decision.reason,
            "policy": policy.name, "policy_version": policy.digest,
            "sandbox": sandbox_words(policy, call.grant),
        },
    )  # fmt: skip


def _void(facts: dict[str, Any]) -> Approval:
    return Approval(
        allowed=False, by="policy change", reason=Reason.APPROVAL_VOID, facts=facts,
        text="the policy has changed since the call was judged; make it again",
    )  # fmt: skip


def _nobody(facts: dict[str, Any]) -> Approval:
    return Approval(
        allowed=False, by="nobody", reason=Reason.APPROVAL_REQUIRED, facts=facts,
        text="this needs a person's approval, and nobody can be asked here",
    )  # fmt: skip


def _keep(kept: collections.OrderedDict[str, Any], key: str, value: Any) -> None:
    kept[key] = value
    kept.move_to_end(key)
    if len(kept) > _MOST_STANDING:
        kept.popitem(last=False)
