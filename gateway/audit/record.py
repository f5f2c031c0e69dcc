"""What a record holds of a call's arguments. Pure functions."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from typing import Any, Literal, cast

REDACTED = "[redacted]"
# Made once: `json.dumps` with these would make one for each value.
_encoder = json.JSONEncoder(
    sort_keys=True, separators=(",", ":"), ensure_ascii=True, check_circular=False
)
_MOST_OUTPUT_CHARACTERS, _KEPT_CHARACTERS = 1 << 20, 64 << 10


def canonical(value: Any) -> str:
    """One spelling for one value: sorted keys, no spaces, ASCII only, so that newlines and terminal
    codes in an argument forge nothing in a log."""
    return _encoder.encode(value)


class Form:
    """The spelling of an object of which some members differ from one time to the next.

    Args:
        fields: Those that stay.
        holes: Names of the others.
    """

    def __init__(self, fields: Mapping[str, Any], holes: Sequence[str]) -> None:
        # Nothing that stays can hold these; what differs is never looked through for them.
        marks = {hole: os.urandom(16).hex() for hole in holes}
        text = canonical({**fields, **marks})
        self._parts: list[str] = []
        for hole in sorted(holes):
            before, _, text = text.partition(f'"{marks[hole]}"')
            self._parts += [before, ""]
        self._parts.append(text)

    def filled(self, *values: str) -> str:
        """`canonical` of the whole: the members that differ, each spelled, in the order of their names."""
        parts = self._parts.copy()
        parts[1::2] = values
        return "".join(parts)


def digest(value: Any) -> str:
    """SHA-256 of the canonical spelling, in hexadecimal."""
    return hashlib.sha256(canonical(value).encode()).hexdigest()


def redact(value: Any, names: tuple[str, ...]) -> Any:
    """Replace the values of keys that contain one of `names`, at any depth, whatever their case."""
    if type(value) is str:
        return value
    if isinstance(value, Mapping):
        items = cast(Mapping[str, Any], value).items()
        return {
            key: REDACTED if any(n.lower() in key.lower() for n in names) else redact(item, names)
            for key, item in items
        }
    if isinstance(value, list):
        return [redact(item, names) for item in cast(Sequence[Any], value)]
    return value


def recorded_arguments(
    arguments: Mapping[str, Any], mode: Literal["full", "hash", "none"], names: tuple[str, ...]
) -> Any:
    """What goes into the record: redacted and whole, their digest, or nothing."""
    if mode == "none":
        return None
    return {"sha256": digest(arguments)} if mode == "hash" else redact(arguments, names)


def recorded_output(
    result: Mapping[str, Any], mode: Literal["full", "hash", "none"], names: tuple[str, ...]
) -> Any:
    """What goes into the record of what a call gave: redacted, its digest, or nothing.

    A result whose spelling is over a mebibyte is not kept whole: its digest, size and first part are.
    """
    if mode == "none":
        return None
    if mode == "hash":
        return {"sha256": digest(result)}
    text = canonical(redact(result, names))
    if len(text) <= _MOST_OUTPUT_CHARACTERS:
        return json.loads(text)
    return {"sha256": digest(result), "characters": len(text), "begins": text[:_KEPT_CHARACTERS]}
