"""JSON-RPC frames: bytes to messages and back, with limits; whoever waits for an answer gets one.

The standard library's decoder is used because it keeps what others lose: a lone surrogate stays one
(orjson refuses it), an integer of any size stays an integer (orjson makes a float of it above 64
bits). Measured against a pipe hop of 50 µs, its 5 µs a message do not matter.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from typing import Any, TypeGuard, cast

Message = dict[str, Any]
Id = str | int

MAX_FRAME_BYTES = 64 << 20
MAX_NESTING = 128  # pydantic's parser, which most servers in Python use, drops a frame at 200

PARSE_ERROR, INVALID_REQUEST, METHOD_NOT_FOUND = -32700, -32600, -32601
INVALID_PARAMS, INTERNAL_ERROR = -32602, -32603
# MCP 2026-07-28, "Error codes".
HEADER_MISMATCH, MISSING_CAPABILITY, UNSUPPORTED_VERSION = -32020, -32021, -32022
# Ours, in JSON-RPC's range for servers (-32000 to -32099), outside those that MCP has given away.
SERVER_UNAVAILABLE, REFUSED, TIMED_OUT, OVERLOADED = -32050, -32051, -32052, -32053

_decoder = json.JSONDecoder(parse_constant=lambda name: _no(f"{name} is not JSON"))


class _Twice(ValueError):
    """A member is there twice."""


def _once(pairs: list[tuple[str, Any]]) -> Message:
    members = dict(pairs)
    if len(members) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise _Twice(f"member {twice[:100]!r} is there twice")
    return members


_strict_decoder = json.JSONDecoder(
    parse_constant=lambda name: _no(f"{name} is not JSON"), object_pairs_hook=_once
)
_encoder = json.JSONEncoder(
    ensure_ascii=False, allow_nan=False, check_circular=False, separators=(",", ":")
)
_ascii = json.JSONEncoder(allow_nan=False, check_circular=False, separators=(",", ":"))
_ID = rb'"id"\s*:\s*("(?:[^"\\]|\\.){0,256}"|-?\d{1,18})'
# Where the SDKs put a request's id: among the first members, or last.
_HEAD = re.compile(
    rb'\s*\{\s*(?:"(?:jsonrpc|method)"\s*:\s*"[^"\\]{0,256}"\s*,\s*)*' + _ID + rb"\s*[,}]"
)
_TAIL = re.compile(_ID + rb"\s*\}?\s*$")


class RpcError(Exception):
    """An error to be answered; `error` goes out as it is, unknown fields and all."""

    def __init__(self, code: int, message: str, data: Any = None) -> None:
        super().__init__(message)
        self.error: Message = {"code": code, "message": message}
        if data is not None:
            self.error["data"] = data

    @classmethod
    def of(cls, error: Any) -> RpcError:
        """The error that a peer answered with, verbatim."""
        if not is_object(error) or not isinstance(error.get("message"), str):
            return cls(INTERNAL_ERROR, "The peer's error is not a JSON-RPC error object", error)
        made = cls(0, str(error["message"]))
        made.error = error
        return made

    @property
    def code(self) -> Any:
        """The number; whatever the peer sent where it is none."""
        return self.error.get("code")


class FrameError(Exception):
    """A frame that is no message. `answers` are to be sent back, one for each id that waits."""

    def __init__(self, code: int, text: str, *ids: Any) -> None:
        super().__init__(text)
        self.text = text
        self.ids = ids or (None,)
        self.answers = [error(i, {"code": code, "message": text}) for i in self.ids]


def decode(frame: bytes, *, batches: bool = False, strict: bool = False) -> Message | list[Message]:
    """The message in `frame`.

    Args:
        frame: One JSON text in UTF-8, without its line end.
        strict: Refuse a member that is there twice: parsers differ on which one counts, and what was
            judged must be what runs. For what clients send.
        batches: Whether a list of messages is one, as in revision 2025-03-26 alone; each is checked.

    Raises:
        FrameError: it is none, or nested deeper than `MAX_NESTING`. An id is looked for even in
            what cannot be parsed, so that a caller is not left waiting.
    """
    try:
        text = frame.decode()
        value = _decoder.decode(text)
        # A member that is there twice is a colon more than there are members. So may be one in a
        # text: then the slower decoder looks, which takes each object through `_once`.
        survey = None
        if strict:
            survey = _survey(value)
            if text.count(":") != survey[0]:
                value = _strict_decoder.decode(text)
    except _Twice as problem:
        text = f"Invalid request: {problem}"
        raise FrameError(INVALID_REQUEST, text, salvage_id(frame)) from None
    except (ValueError, RecursionError) as problem:
        what = "nested too deeply" if isinstance(problem, RecursionError) else str(problem)[:200]
        raise FrameError(PARSE_ERROR, f"Parse error: {what}", salvage_id(frame)) from None
    if not is_object(value):
        if is_list(value):
            if batches and value:
                return [checked(item, b"") for item in value]
            waiting = [_id_of(item) for item in value if is_object(item) and "id" in item]
            text = "Invalid request: batches are not part of this protocol revision"
            raise FrameError(INVALID_REQUEST, text, *waiting[:1000])
        raise FrameError(INVALID_REQUEST, "Invalid request: a message is a JSON object")
    return checked(value, frame, survey)


def checked(value: Any, frame: bytes, survey: tuple[int, str] | None = None) -> Message:
    """`value` if it is a message. Raises `FrameError`.

    Args:
        value: As parsed.
        frame: What it was parsed from.
        survey: What `_survey` says of it; None where that has not been asked.
    """
    if not is_object(value):
        raise FrameError(INVALID_REQUEST, "Invalid request: a message is a JSON object")
    message = value
    problem = ""
    if message.get("jsonrpc") != "2.0":
        problem = '"jsonrpc" is not "2.0"'
    elif "id" in message and not is_id(message["id"]) and "method" in message:
        problem = '"id" is neither a string nor an integer'
    elif "method" in message:
        if not isinstance(message["method"], str):
            problem = '"method" is not a string'
        elif "params" in message and type(message["params"]) is not dict:
            problem = '"params" is not an object'
    elif ("result" in message) == ("error" in message):
        problem = "neither a request, a notification nor a response"
    if not problem:
        # A frame cannot be nested deeper than it has opening brackets.
        if frame.count(b"[") + frame.count(b"{") > MAX_NESTING and too_deep(message):
            problem = f"nested deeper than {MAX_NESTING}"
        elif "method" in message and (twin := (survey or _survey(message))[1]):
            problem = f"member {twin!r} is there twice, in different case"
    if problem:
        raise FrameError(INVALID_REQUEST, f"Invalid request: {problem}", _id_of(message))
    return message


def encode(message: Message) -> bytes:
    """One line, with its end. Raises `ValueError` for what is not JSON (a number beyond a double)."""
    try:
        return _encoder.encode(message).encode() + b"\n"
    except UnicodeEncodeError:  # a lone surrogate: only its escape can be written
        return _ascii.encode(message).encode() + b"\n"


def request(id: Id, method: str, params: Mapping[str, Any] | None) -> Message:
    """A request; None leaves `params` out."""
    message: Message = {"jsonrpc": "2.0", "id": id, "method": method}
    if params is not None:
        message["params"] = params
    return message


def notification(method: str, params: Mapping[str, Any] | None) -> Message:
    """A notification; None leaves `params` out."""
    message: Message = {"jsonrpc": "2.0", "method": method}
    if params is not None:
        message["params"] = params
    return message


def result(id: Any, value: Any) -> Message:
    """A response."""
    return {"jsonrpc": "2.0", "id": id, "result": value}


def error(id: Any, value: Message) -> Message:
    """An error response; `id` is None where it could not be read."""
    return {"jsonrpc": "2.0", "id": id, "error": value}


def is_id(value: Any) -> TypeGuard[Id]:
    """Whether `value` may name a request: MCP allows strings and integers."""
    return type(value) is int or type(value) is str


def is_object(value: Any) -> TypeGuard[Message]:
    """Whether `value` is a JSON object."""
    return type(value) is dict


def is_list(value: Any) -> TypeGuard[list[Any]]:
    """Whether `value` is a JSON list."""
    return type(value) is list


def object_of(value: Any) -> Message:
    """`value` where it is an object, else {}."""
    return value if is_object(value) else {}


def list_of(value: Any) -> list[Any]:
    """`value` where it is a list, else []."""
    return value if is_list(value) else []


def salvage_id(frame: bytes) -> Any:
    """The id in a frame that cannot be parsed, or in its beginning; None where none is found."""
    found = _HEAD.match(frame[:4096]) or _TAIL.search(frame[-512:])
    if found is None:
        return None
    try:
        return json.loads(found[1])
    except ValueError:
        return None


def too_deep(value: Any, limit: int = MAX_NESTING) -> bool:
    """Whether objects and lists are nested deeper than `limit` in `value`."""
    level: list[Any] = [value]
    for _ in range(limit + 1):
        inner: list[Any] = []
        for item in level:
            members = item.values() if is_object(item) else item if is_list(item) else ()
            inner += [v for v in members if type(v) in (dict, list)]
        if not inner:
            return False
        level = inner
    return True


def _survey(value: Any) -> tuple[int, str]:
    """How many members there are in all objects of `value`, and a name that one of them holds twice
    but for case; "" where there is none.

    A server written in Go takes either (CVE-2026-27896): what was judged would not be what runs.
    """
    count, twin = 0, ""
    level: list[Any] = [value]
    while level:
        item = level.pop()
        if type(item) is dict:
            members = cast("Message", item)
            size = len(members)
            count += size
            if size > 1 and len(set(map(str.casefold, members))) != size:
                twin = twin or _twice(members)
            level += [v for v in members.values() if type(v) is dict or type(v) is list]
        elif type(item) is list:
            level += [v for v in list_of(item) if type(v) is dict or type(v) is list]
    return count, twin


def _twice(members: Message) -> str:
    seen: set[str] = set()
    for name in members:
        if name.casefold() in seen:
            return name
        seen.add(name.casefold())
    return ""


def _id_of(message: Any) -> Any:
    value = object_of(message).get("id")
    # A fraction is no id here, but who sends one waits for it all the same; 1e999 cannot be said.
    return value if is_id(value) or (type(value) is float and math.isfinite(value)) else None


def _no(text: str) -> Any:
    raise ValueError(text)
