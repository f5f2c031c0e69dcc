"""Frames: what is a message, what is answered, what survives."""

from __future__ import annotations

import json
from typing import Any

import pytest

from purplebox.gateway.wire import jsonrpc


def request(**more: Any) -> bytes:
    return json.dumps({"jsonrpc": "2.0", "id": 7, "method": "m", **more}).encode()


@pytest.mark.parametrize(
    ("frame", "code", "ids"),
    [
        (b"not json", -32700, [None]),
        (b'{"jsonrpc":"2.0","id":7,"method":"m","params":{"a":', -32700, [7]),
        (b'{"method":"m","params":{"a":tru},"jsonrpc":"2.0","id":"x"}', -32700, ["x"]),
        (b'{"jsonrpc":"2.0","id":7,"method":"m","params":{"a":NaN}}', -32700, [7]),
        (b'{"jsonrpc":"2.0","id":7,"method":"m","params":{"a":"\xff"}}', -32700, [7]),
        (b'{"jsonrpc":"2.0","id":7,"method":"m","params":' + b"[" * 9999, -32700, [7]),
        (request(params={"a": eval("[" * 90 + "]" * 90), "b": [[]] * 60}), 0, []),
        (request(params={"a": json.loads("[" * 130 + "]" * 130)}), -32600, [7]),
        (request(params=[1]), -32600, [7]),
        (request(method=5), -32600, [7]),
        (request(id=None), -32600, [None]),
        (request(id=1.5), -32600, [1.5]),
        (request(id=True), -32600, [None]),
        (b'{"id":7,"method":"m"}', -32600, [7]),
        (b'{"jsonrpc":"2.0","id":7}', -32600, [7]),
        (b'[{"jsonrpc":"2.0","id":1,"method":"a"},{"jsonrpc":"2.0","id":2,"method":"b"}]', -32600, [1, 2]),
        (b"[]", -32600, [None]),
        (b"5", -32600, [None]),
        (request(params={"name": "read", "Name": "delete"}), -32600, [7]),
        (request(params={"arguments": {"x": {"path": "a", "PATH": "b"}}}), -32600, [7]),
    ],
)  # fmt: skip
def test_what_is_no_message_is_answered_to_whoever_waits(
    frame: bytes, code: int, ids: list[Any]
) -> None:
    if not code:
        assert jsonrpc.decode(frame)
        return
    with pytest.raises(jsonrpc.FrameError) as caught:
        jsonrpc.decode(frame)
    assert [answer["error"]["code"] for answer in caught.value.answers] == [code] * len(ids)
    assert [answer["id"] for answer in caught.value.answers] == ids


@pytest.mark.parametrize(
    "value",
    ["\ud800 alone", 2**64, -(10**400), 0.1, "é\u2028\u0000", {"": None}, [[], {}], 1e308, "🟣"],
)
def test_what_others_lose_survives(value: Any) -> None:
    frame = request(params={"v": value})
    message = jsonrpc.decode(frame)
    assert isinstance(message, dict)
    again = jsonrpc.encode(message)
    assert again.count(b"\n") == 1
    assert json.loads(again)["params"]["v"] == value


def test_a_batch_is_a_message_list_in_the_one_revision_that_has_them() -> None:
    batch = b"[" + request() + b"," + request(id=8) + b"]"
    messages = jsonrpc.decode(batch, batches=True)
    assert [m["id"] for m in messages if isinstance(m, dict)] == [7, 8]


def test_a_number_beyond_a_double_is_refused_when_written() -> None:
    message = jsonrpc.decode(request(params={"v": 1}).replace(b'"v": 1', b'"v": 1e999'))
    assert isinstance(message, dict)
    with pytest.raises(ValueError):
        jsonrpc.encode(message)


@pytest.mark.parametrize("frame", [
    b'{"jsonrpc":"2.0","id":7,"method":"tools/call","params":{"name":"a","arguments":{"x":1,"x":2}}}',
    b'{"jsonrpc":"2.0","id":7,"method":"a","method":"b"}',
])  # fmt: skip
def test_a_member_that_is_there_twice_is_refused_in_what_clients_send(frame: bytes) -> None:
    with pytest.raises(jsonrpc.FrameError) as caught:
        jsonrpc.decode(frame, strict=True)
    assert caught.value.answers[0]["error"]["code"] == jsonrpc.INVALID_REQUEST
    assert caught.value.ids == (7,)
    jsonrpc.decode(frame)  # the control: a server's own is passed on as its parser would have it
