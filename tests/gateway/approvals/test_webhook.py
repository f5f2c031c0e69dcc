"""A question over HTTP: signed there and back, answered at once or later, by nobody else."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from http.server import BaseHTTPRequestHandler, HTTPServer
from types import SimpleNamespace
from typing import Any, cast

import pytest

from purplebox.gateway.approvals import Approvals
from purplebox.gateway.approvals.callback import Callbacks
from purplebox.gateway.approvals.webhook import signed
from purplebox.gateway.calls import Approval, Call, Version
from purplebox.gateway.reasons import Reason
from purplebox.isolation.enforcement import Enforcement
from purplebox.policies import Decision, Policy, load_policy

ASSISTANT = load_policy("code-assistant")
ASK = Decision(effect="ask", reason="pushes leave", rule="tools.rules[0]", code="approval_required")
CALL = Call(tool="shell", arguments={"command": "git push", "token": "t0p"}, session="s1")
KEY = b"the key"

Reply = tuple[int, dict[str, str], bytes]


@dataclass
class Receiver:
    """The other side: answers as a test says."""

    url: str = ""
    reply: Callable[[dict[str, Any]], Reply] = lambda _: (204, {}, b"")
    bodies: list[bytes] = field(default_factory=list[bytes])
    headers: list[dict[str, str]] = field(default_factory=list[dict[str, str]])


def decided(
    question: dict[str, Any], decision: str = "once", key: bytes = KEY, **more: Any
) -> Reply:
    said = {"decision": decision, "binding": question["binding"], **more}
    body = json.dumps(said).encode()
    return 200, signed(question["id"], key, body), body


@pytest.fixture
def receiver(monkeypatch: pytest.MonkeyPatch) -> Iterator[Receiver]:
    monkeypatch.setenv("HOOK_KEY", KEY.decode())
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")  # would break it, were it used
    state = Receiver()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            state.bodies.append(body)
            state.headers.append({k.lower(): v for k, v in self.headers.items()})
            status, headers, answer = state.reply(json.loads(body))
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("content-length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, format: str, *args: Any) -> None: ...

    server = HTTPServer(("127.0.0.1", 0), Handler)
    state.url = f"http://127.0.0.1:{server.server_port}/hook"
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    yield state
    server.shutdown()
    server.server_close()
    thread.join()


def under(url: str, *, callback: str | None = None, seconds: float = 240.0) -> Version:
    webhook = {"url": url, "secret": "${secret:HOOK_KEY}", "callback": callback}
    fields = ASSISTANT.model_dump(by_alias=True)
    approvals = {"timeout": seconds, "clients": (), "webhook": webhook}
    policy = Policy.model_validate({**fields, "approvals": approvals})
    engine = SimpleNamespace(enforcement=Enforcement(layers={}))
    return Version(policy=policy, engine=cast(Any, engine))


def ask(version: Version) -> Approval:
    return asyncio.run(Approvals().approve(CALL, ASK, version))


def test_the_question_is_signed_and_holds_no_secret(receiver: Receiver) -> None:
    receiver.reply = lambda question: decided(question, "session")
    approval = ask(under(receiver.url))
    assert (approval.allowed, approval.by) == (True, "webhook")
    (body,), (headers,) = receiver.bodies, receiver.headers
    sent = json.loads(body)
    assert sent["arguments"] == {"command": "git push", "token": "[redacted]"}
    assert b"t0p" not in body
    assert (sent["tool"], sent["reason"], sent["callback"]) == ("shell", "pushes leave", None)
    assert headers["webhook-id"] == sent["id"]
    again = signed(sent["id"], KEY, body)
    if again["webhook-timestamp"] == headers["webhook-timestamp"]:
        assert again["webhook-signature"] == headers["webhook-signature"]


def test_a_signed_no_is_a_no_and_so_is_what_was_not_offered(receiver: Receiver) -> None:
    for decision in ("deny", "always", "yes", ""):
        receiver.reply = partial(decided, decision=decision)
        assert ask(under(receiver.url)).reason is Reason.APPROVAL_DENIED


def test_an_answer_that_is_not_signed_by_the_other_side_is_none(receiver: Receiver) -> None:
    def other_key(question: dict[str, Any]) -> Reply:
        return decided(question, key=b"another")

    def unsigned(question: dict[str, Any]) -> Reply:
        return 200, {}, decided(question)[2]

    def old(question: dict[str, Any]) -> Reply:
        status, headers, body = decided(question)
        return status, {**headers, "webhook-timestamp": str(int(time.time()) - 400)}, body

    def changed(question: dict[str, Any]) -> Reply:
        status, headers, body = decided(question, "deny")
        return status, headers, body.replace(b"deny", b"once")

    def other_id(question: dict[str, Any]) -> Reply:
        body = decided(question)[2]
        return 200, signed("other", KEY, body), body

    def moved(question: dict[str, Any]) -> Reply:
        return 302, {"location": receiver.url}, b""

    def failed(question: dict[str, Any]) -> Reply:
        return 500, *decided(question)[1:]

    def huge(question: dict[str, Any]) -> Reply:
        return decided(question, pad="x" * 100_000)

    for reply in (other_key, unsigned, old, changed, other_id, moved, failed, huge):
        receiver.reply = reply
        assert ask(under(receiver.url)).reason is Reason.APPROVAL_REQUIRED, reply.__name__
    assert len(receiver.bodies) == 8  # no redirect was followed
    receiver.reply = decided
    assert ask(under(receiver.url)).allowed


def test_a_signed_answer_to_another_call_is_void(receiver: Receiver) -> None:
    receiver.reply = lambda question: decided({**question, "binding": "0" * 64})
    assert ask(under(receiver.url)).reason is Reason.APPROVAL_VOID


def test_an_answer_may_come_later_and_once(receiver: Receiver) -> None:
    async def go() -> None:
        receiver.reply = lambda _: (202, {}, b"")
        approvals = Approvals()
        version = under(receiver.url, callback="https://gw.example/approvals/")
        task = asyncio.create_task(approvals.approve(CALL, ASK, version))
        while not receiver.bodies:
            await asyncio.sleep(0.01)
        question = json.loads(receiver.bodies[0])
        assert question["callback"] == f"https://gw.example/approvals/{question['id']}"
        _, headers, body = decided(question)
        _, foreign, _ = decided(question, key=b"another")
        assert not approvals.called_back(question["id"], foreign, body)
        assert not approvals.called_back("00000000", headers, body)
        assert approvals.called_back(question["id"], headers, body)
        assert not approvals.called_back(question["id"], headers, body)
        assert (await task).allowed
        assert not approvals.called_back(question["id"], headers, body)

    asyncio.run(go())


def test_nobody_there_and_no_secret_are_a_no(
    receiver: Receiver, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ask(under("http://127.0.0.1:9/")).reason is Reason.APPROVAL_REQUIRED
    receiver.reply = lambda _: (202, {}, b"")  # and no callback is there to come by
    assert ask(under(receiver.url)).reason is Reason.APPROVAL_REQUIRED
    monkeypatch.delenv("HOOK_KEY")
    assert ask(under(receiver.url)).reason is Reason.APPROVAL_REQUIRED
    said = capsys.readouterr().err
    assert "ConnectError" in said
    assert "set HOOK_KEY" in said
    assert KEY.decode() not in said


@pytest.mark.parametrize(
    "url",
    ["http://example.org/", "http://127.0.0.1.example.org/", "http://localhost@example.org/",
     "ftp://127.0.0.1/", "http://127.0.0.1@example.org/"],
)  # fmt: skip
def test_a_question_goes_over_https_or_to_loopback(url: str) -> None:
    with pytest.raises(ValueError, match="url"):
        under(url)
    for good in ("https://example.org/x", "http://localhost:8/", "http://[::1]:8/x"):
        assert under(good).policy.approvals.webhook is not None


def test_the_gateways_own_address_takes_signed_answers_and_passes_the_rest_on(
    receiver: Receiver,
) -> None:
    passed: list[str] = []

    async def inner(scope: Any, receive: Any, send: Any) -> None:
        passed.append(scope["path"])

    async def go() -> None:
        receiver.reply = lambda _: (202, {}, b"")
        approvals = Approvals()
        application = Callbacks(inner, approvals)

        async def post(
            path: str, headers: dict[str, str], body: bytes, method: str = "POST"
        ) -> int:
            sent: list[Any] = []

            async def receive() -> Any:
                return {"type": "http.request", "body": body}

            async def send(message: Any) -> None:
                sent.append(message)

            pairs = [(k.encode(), v.encode()) for k, v in headers.items()]
            scope = {"type": "http", "path": path, "method": method, "headers": pairs}
            await application(scope, receive, send)
            return int(sent[0]["status"]) if sent else 0

        version = under(receiver.url, callback="https://gw.example/approvals")
        task = asyncio.create_task(approvals.approve(CALL, ASK, version))
        while not receiver.bodies:
            await asyncio.sleep(0.01)
        question = json.loads(receiver.bodies[0])
        path = f"/approvals/{question['id']}"
        _, headers, body = decided(question)
        assert await post("/mcp", headers, body) == 0
        assert passed == ["/mcp"]
        assert await post(path, headers, body, "GET") == 405
        assert await post(path, {}, body) == 403
        assert await post(path, headers, body + b" " * 100_000) == 403
        assert not task.done()
        assert await post(path, headers, body) == 204
        assert (await task).allowed
        assert await post(path, headers, body) == 403

    asyncio.run(go())
