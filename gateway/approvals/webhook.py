"""Asking over HTTP: the question is posted, signed; the answer is the response, or comes later.

Theory of operation
    The signature is that of Standard Webhooks (standardwebhooks.com): `webhook-id` (the question's
    id), `webhook-timestamp` and `webhook-signature`, `v1,` and the base64 of an HMAC-SHA256 over
    `id.timestamp.body`. An answer is signed in the same way with the same secret, also in a response:
    over plain HTTP to loopback nothing else says whose it is. An answer is JSON with `decision` and
    the `binding` of the question. A response of 202 or 204 says that the answer will come to the
    gateway's `/approvals/ID`, where the policy names the address at which the other side reaches it.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import hashlib
import hmac
import json
import sys
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, cast

from ...isolation.egress.credentials import read_reference
from .question import Answer, Choice, Question

if TYPE_CHECKING:
    from ...policies.judging import Webhook as Settings

_TOLERANCE_SECONDS = 300.0  # of the specification's reference libraries
_MAX_ANSWER_BYTES = 64 << 10


class Webhook:
    """A way to ask.

    Args:
        settings: Of the policy.
        waiting: Where answers that come later are looked for: question id to what waits.
    """

    who = "webhook"

    def __init__(self, settings: Settings, waiting: dict[str, Waiting]) -> None:
        self._settings, self._waiting = settings, waiting

    async def ask(self, question: Question) -> Answer | None:
        """As `Asker.ask`. Raises `SetupError`: there is no secret; `OSError`: nobody took it."""
        key = await asyncio.to_thread(_key, self._settings.secret)
        waits = Waiting(question, key)
        self._waiting[question.id] = waits
        try:
            async with asyncio.timeout(question.expires_seconds):
                status, headers, body = await self._post(question, key)
                if status in (202, 204) and self._settings.callback is not None:
                    return await waits.answer
                if status == 200:
                    return taken(question, key, headers, body)
            _say(question, f"{self._settings.url} answered {status}")
            return None
        finally:
            del self._waiting[question.id]

    async def _post(self, question: Question, key: bytes) -> tuple[int, Mapping[str, str], bytes]:
        # Beside what it costs to import: few have a webhook.
        import httpx2

        callback = self._settings.callback
        body = json.dumps({
            "type": "approval.requested", "id": question.id, "binding": question.binding,
            "title": question.title, "arguments": question.arguments, **question.facts,
            "choices": list(question.choices),
            "expires_at": int(time.time() + question.expires_seconds),
            "callback": f"{callback.rstrip('/')}/{question.id}" if callback else None,
        }).encode()  # fmt: skip
        headers = {"content-type": "application/json", **signed(question.id, key, body)}
        # A proxy of the environment would turn loopback into another host's.
        direct = self._settings.url.startswith("http:")
        try:
            async with (
                httpx2.AsyncClient(timeout=None, trust_env=not direct) as client,
                client.stream(
                    "POST", self._settings.url, content=body, headers=headers
                ) as response,
            ):
                parts: list[bytes] = []
                async for part in response.aiter_bytes():
                    parts.append(part)
                    if sum(map(len, parts)) > _MAX_ANSWER_BYTES:
                        raise OSError(f"the answer is over {_MAX_ANSWER_BYTES >> 10} KiB")
                return response.status_code, dict(response.headers), b"".join(parts)
        except httpx2.HTTPError as error:
            raise OSError(f"{self._settings.url}: {type(error).__name__}: {error}") from None


class Waiting:
    """A question whose answer may come by a request to the gateway."""

    def __init__(self, question: Question, key: bytes) -> None:
        self._question, self._key = question, key
        self.answer: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()

    def called_back(self, headers: Mapping[str, str], body: bytes) -> bool:
        """Take an answer; False when it is not signed, too old, to another question, or the second."""
        answer = taken(self._question, self._key, headers, body)
        if answer is None or self.answer.done():
            return False
        self.answer.set_result(answer)
        return True


def signed(id: str, key: bytes, body: bytes) -> dict[str, str]:
    """The headers that sign `body`."""
    stamp = str(int(time.time()))
    return {
        "webhook-id": id, "webhook-timestamp": stamp,
        "webhook-signature": "v1," + _mac(id, stamp, key, body),
    }  # fmt: skip


def taken(question: Question, key: bytes, headers: Mapping[str, str], body: bytes) -> Answer | None:
    """The answer in a signed body; None where the signature is not the other side's for this question.

    A signed answer that is no clear yes is a no.
    """
    stamp = headers.get("webhook-timestamp", "")
    fresh = stamp.isascii() and stamp.isdigit() and len(stamp) < 16
    if not fresh or abs(time.time() - int(stamp)) > _TOLERANCE_SECONDS:
        _say(question, "an answer was not taken: its time is not now")
        return None
    right = "v1," + _mac(question.id, stamp, key, body)
    # Several, with a space between them, while a secret is being changed.
    given = headers.get("webhook-signature", "").split(" ")
    if headers.get("webhook-id") != question.id or not any(
        hmac.compare_digest(right.encode(), one.encode()) for one in given
    ):
        _say(question, "an answer was not taken: its signature is not ours")
        return None
    try:
        said: object = json.loads(body)
    except ValueError:
        said = None
    fields = cast("dict[str, object]", said) if isinstance(said, dict) else {}
    choices: dict[object, Choice] = {choice: choice for choice in question.choices}
    decision, binding = fields.get("decision"), fields.get("binding")
    choice = choices.get(decision, "deny") if isinstance(decision, str) else "deny"
    return Answer(choice=choice, by="webhook", binding=str(binding))


def _say(question: Question, text: str) -> None:
    print(f"purple: approval {question.id}: webhook: {text}", file=sys.stderr, flush=True)


def _mac(id: str, stamp: str, key: bytes, body: bytes) -> str:
    data = f"{id}.{stamp}.".encode() + body
    return base64.b64encode(hmac.digest(key, data, hashlib.sha256)).decode()


def _key(reference: str) -> bytes:
    """The secret's bytes: base64 after `whsec_`, as the specification has it, else its own."""
    value = read_reference("approvals.webhook.secret", reference)
    if value.startswith(b"whsec_"):
        try:
            return base64.b64decode(value[6:], validate=True)
        except binascii.Error:
            pass
    return value
