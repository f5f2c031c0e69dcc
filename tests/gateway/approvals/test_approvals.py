"""First answer wins; everything that is not a timely yes to this very call is a no."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import pytest

from purplebox.gateway.approvals import Answer, Approvals, Board, Callback, Choice, Question
from purplebox.gateway.approvals.approvals import MOST_A_MINUTE, MOST_OPEN, QUIET_SECONDS
from purplebox.gateway.calls import Approval, Call, Version
from purplebox.gateway.reasons import Reason
from purplebox.isolation.enforcement import Enforcement, Layer
from purplebox.policies import Decision, Policy, load_policy

ASSISTANT = load_policy("code-assistant")
ASK = Decision(effect="ask", reason="pushes leave", rule="tools.rules[0]", code="approval_required")
CALL = Call(tool="shell", arguments={"command": "git push"}, client="c", session="s1")


def under(policy: Policy = ASSISTANT, **approvals: Any) -> Version:
    if approvals:
        changed = policy.approvals.model_copy(update=approvals)
        policy = policy.model_copy(update={"approvals": changed})
    layers = {"cgroup": Layer(status="partial", reason="no delegation")}
    engine = SimpleNamespace(enforcement=Enforcement(layers=layers))
    return Version(policy=policy, engine=cast(Any, engine))


class Way:
    """Answers when it is told to; remembers that it was closed."""

    def __init__(self, who: str = "command") -> None:
        self.who = who
        self.asked: list[Question] = []
        self.closed = 0
        self._answers: asyncio.Queue[Answer | None] = asyncio.Queue()

    def answer(self, choice: Choice | None, binding: str | None = None) -> None:
        if choice is None:
            self._answers.put_nowait(None)
        else:
            to = self.asked[-1].binding if binding is None else binding
            self._answers.put_nowait(Answer(choice=choice, by=self.who, binding=to))

    async def ask(self, question: Question) -> Answer | None:
        self.asked.append(question)
        try:
            return await self._answers.get()
        except asyncio.CancelledError:
            self.closed += 1
            raise


async def turns(count: int = 5) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


def always(choice: Choice) -> Approvals:
    return Approvals([Callback(lambda _: choice)])


def test_the_first_answer_counts_and_the_other_ways_are_closed() -> None:
    async def go() -> None:
        choices: tuple[Choice, ...] = ("once", "deny")
        for choice in choices:
            slow, quick = Way("webhook"), Way()
            approvals = Approvals([slow, quick])
            task = asyncio.create_task(approvals.approve(CALL, ASK, under()))
            await turns()
            quick.answer(choice)
            approval = await task
            assert approval.allowed == (choice == "once")
            assert (approval.by, slow.closed) == ("command", 1)
            assert approval.facts["asked"] == ["webhook", "command"]
            assert approval.facts["choice"] == choice

    asyncio.run(go())


def test_of_a_yes_and_a_no_at_once_the_no_counts() -> None:
    async def go() -> None:
        ways = [Way("webhook"), Way()]
        task = asyncio.create_task(Approvals(ways).approve(CALL, ASK, under()))
        await turns()
        ways[0].answer("once")
        ways[1].answer("deny")
        assert not (await task).allowed

    asyncio.run(go())


def test_a_way_that_cannot_ask_or_fails_leaves_the_others(
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail(_: Question) -> None:
        raise ConnectionError("down")

    async def go() -> None:
        quiet, other = Way("webhook"), Way()
        approvals = Approvals([Callback(fail), quiet, other])
        task = asyncio.create_task(approvals.approve(CALL, ASK, under()))
        await turns()
        quiet.answer(None)
        await turns()
        assert not task.done()
        other.answer("once")
        assert (await task).allowed
        nobody = await Approvals([Callback(fail)]).approve(CALL, ASK, under())
        assert nobody.reason is Reason.APPROVAL_REQUIRED
        assert (await Approvals().approve(CALL, ASK, under())).reason is Reason.APPROVAL_REQUIRED

    asyncio.run(go())
    assert "asking by callback: ConnectionError: down" in capsys.readouterr().err


def test_no_answer_in_time_is_a_no() -> None:
    async def go() -> Approval:
        way = Way()
        approval = await Approvals([way]).approve(CALL, ASK, under(wall_seconds=0.02))
        assert way.closed == 1
        return approval

    approval = asyncio.run(go())
    assert (approval.allowed, approval.reason) == (False, Reason.APPROVAL_TIMED_OUT)


def test_an_answer_to_another_call_is_a_no() -> None:
    async def go() -> None:
        way = Way()
        approvals = Approvals([way])
        first = asyncio.create_task(approvals.approve(CALL, ASK, under()))
        await turns()
        way.answer("once")
        assert (await first).allowed
        replayed = way.asked[0].binding
        changed = replace(CALL, arguments={"command": "git push --force"})
        second = asyncio.create_task(approvals.approve(changed, ASK, under()))
        await turns()
        way.answer("once", binding=replayed)
        approval = await second
        assert (approval.allowed, approval.reason) == (False, Reason.APPROVAL_VOID)
        # A yes is good for one call: the same call again is asked again.
        third = asyncio.create_task(approvals.approve(CALL, ASK, under()))
        await turns()
        assert len(way.asked) == 3
        way.answer("deny")
        assert not (await third).allowed

    asyncio.run(go())


def test_a_changed_policy_closes_what_is_open_and_refuses_what_was_judged_before() -> None:
    async def go() -> None:
        old = under()
        way = Way()
        approvals = Approvals([way])
        approvals.policies_in_force({old.policy.digest})
        task = asyncio.create_task(approvals.approve(CALL, ASK, old))
        await turns()
        approvals.policies_in_force({"another"})
        approval = await task
        assert (approval.allowed, approval.reason) == (False, Reason.APPROVAL_VOID)
        assert way.closed == 1
        late = await approvals.approve(CALL, ASK, old)
        assert (late.reason, len(way.asked)) == (Reason.APPROVAL_VOID, 1)

    asyncio.run(go())


def test_for_this_session_means_this_call_this_session_this_policy_version() -> None:
    async def go() -> None:
        way = Way()
        approvals = Approvals([way])
        task = asyncio.create_task(approvals.approve(CALL, ASK, under()))
        await turns()
        way.answer("session")
        assert (await task).allowed
        again = await approvals.approve(CALL, ASK, under())
        assert (again.allowed, again.by, len(way.asked)) == (True, "session", 1)
        other_policy = under(wall_seconds=9.0)
        for call, version in (
            (replace(CALL, session="s2"), under()),
            (replace(CALL, client="d"), under()),
            (replace(CALL, server="x"), under()),
            (replace(CALL, arguments={"command": "git push -f"}), under()),
            (CALL, other_policy),
        ):
            asked = len(way.asked)
            task = asyncio.create_task(approvals.approve(call, ASK, version))
            await turns()
            assert len(way.asked) == asked + 1
            way.answer("deny")
            assert not (await task).allowed

    asyncio.run(go())


def test_what_was_refused_is_not_asked_again_for_a_while() -> None:
    now = 1000.0

    async def go() -> None:
        nonlocal now
        asked: list[Question] = []

        def no(question: Question) -> bool:
            asked.append(question)
            return False

        approvals = Approvals([Callback(no)], clock=lambda: now)
        assert (await approvals.approve(CALL, ASK, under())).retry_seconds is None
        now += QUIET_SECONDS - 1
        again = await approvals.approve(CALL, ASK, under())
        assert (again.allowed, again.retry_seconds, len(asked)) == (False, 1.0, 1)
        now += 1
        await approvals.approve(CALL, ASK, under())
        assert len(asked) == 2

    asyncio.run(go())


def test_questions_are_limited_by_session() -> None:
    now = 1000.0

    async def go() -> None:
        nonlocal now
        approvals = Approvals([Way()], clock=lambda: now)

        def ask(n: int, session: str = "s1") -> asyncio.Task[Approval]:
            call = replace(CALL, arguments={"command": str(n)}, session=session)
            return asyncio.create_task(approvals.approve(call, ASK, under()))

        tasks = [ask(n) for n in range(MOST_OPEN)]
        await turns()
        over = await ask(MOST_OPEN)
        assert (over.reason, over.retry_seconds) == (Reason.RATE_LIMITED, 60.0)
        other = ask(0, "s2")
        await turns()
        assert not other.done()
        for task in (*tasks, other):
            task.cancel()
        await asyncio.gather(*tasks, other, return_exceptions=True)
        yes = always("once")
        yes._clock = lambda: now
        reasons = [
            (await yes.approve(replace(CALL, arguments={"n": n}), ASK, under())).reason
            for n in range(MOST_A_MINUTE + 1)
        ]
        assert reasons.count(Reason.RATE_LIMITED) == 1
        now += 60
        assert (await yes.approve(CALL, ASK, under())).allowed

    asyncio.run(go())


def test_a_client_is_asked_only_where_the_policy_lets_it_answer() -> None:
    async def go() -> None:
        for who, clients, is_asked in (
            ("stdio:claude-code", ("stdio:*",), True),
            ("stdio:agent", ("stdio:claude-*",), False),
            ("http:loopback", ("stdio:*",), False),
            ("http:loopback", ("http:loopback",), True),
            ("stdio:claude-code", (), False),
        ):
            client, board = Way(who), Way()
            approvals = Approvals([board])
            call = replace(CALL, asker=client)
            task = asyncio.create_task(approvals.approve(call, ASK, under(clients=clients)))
            await turns()
            assert bool(client.asked) == is_asked, (who, clients)
            board.answer("deny")
            await task

    asyncio.run(go())
    assert ASSISTANT.approvals.clients == ("stdio:*",)


def test_a_question_says_what_would_run_where_and_why() -> None:
    asked: list[Question] = []

    async def go() -> None:
        call = replace(CALL, arguments={"command": "git push", "password": "hunter2"})
        await Approvals([Callback(asked.append)]).approve(call, ASK, under())

    asyncio.run(go())
    (question,) = asked
    for words in ("git push", "hunter2", "pushes leave", "no network", "cgroup partial"):
        assert words in question.text
    assert question.arguments == {"command": "git push", "password": "[redacted]"}
    assert question.facts["policy_version"] == ASSISTANT.digest
    assert "hunter2" not in str(question.facts)


def test_the_board_takes_one_answer_from_whoever_saw_this_question() -> None:
    async def go() -> None:
        board = Board("serve")
        task = asyncio.create_task(Approvals([board]).approve(CALL, ASK, under()))
        await turns()
        (open_now,) = board.questions()
        id = open_now["id"]
        assert open_now["title"] == "shell"
        assert "another call" in board.answer(id, "once", "0" * 64)
        assert "not offered" in board.answer(id, "always", open_now["binding"])
        assert "no question" in board.answer("ffffffff", "once", open_now["binding"])
        assert board.answer(id, "once", open_now["binding"]) == ""
        assert "no question" in board.answer(id, "deny", open_now["binding"])
        approval = await task
        assert (approval.allowed, approval.by) == (True, "command")
        assert board.questions() == []

    asyncio.run(go())


def test_a_caller_that_goes_away_takes_its_question_down() -> None:
    async def go() -> None:
        board = Board()
        task = asyncio.create_task(Approvals([board]).approve(CALL, ASK, under()))
        await turns()
        assert len(board.questions()) == 1
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert board.questions() == []

    asyncio.run(go())
