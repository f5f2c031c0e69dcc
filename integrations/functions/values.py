"""Arguments and results as JSON, both ways across a sandbox's wall.

Plain JSON goes as itself. What JSON has no word for is `{"$purple": [kind, data]}`. Into the sandbox
goes what the host's own code hands over, so objects may name their class there; out of it come plain
values only: what a sandbox answers constructs nothing but the types listed here.

Standard library only: this file is also run inside the sandbox, by a bare interpreter, at every call.
So it imports what a value needs when there is one: dates, enums and the like are known by name.
"""

from __future__ import annotations

import binascii
import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

MARK = "$purple"
_MAX_DEPTH = 64
if TYPE_CHECKING:
    NameOf = Callable[[type], str]
    Construct = Callable[[str, dict[str, Any] | None], Any]  # None: the class itself


class NotPlain(TypeError):
    """A value that does not go through the wall; the text says where it is and what to do."""


def encode(value: Any, name_of: NameOf | None = None) -> Any:
    """`value` as JSON.

    Args:
        value: None, bool, int, float, str, bytes, list, tuple, set, frozenset, dict, dates and
            times, Decimal, UUID, Path; enums, dataclasses and pydantic models.
        name_of: The name under which a class is known on the other side; classes go, too, then.
            None: enums go as their values, dataclasses and models as dicts.

    Raises:
        NotPlain: it is, or holds, something else.
    """
    return _encode(value, name_of, "value", 0)


def _encode(value: Any, name_of: NameOf | None, where: str, depth: int) -> Any:
    if depth > _MAX_DEPTH:
        raise NotPlain(f"{where.partition('[')[0]} is nested deeper than {_MAX_DEPTH} levels")
    if value is None or type(value) in (bool, int, str):
        return value
    if type(value) is float:
        finite = value - value == 0
        return value if finite else _marked("float", repr(value))

    def inner(item: Any, step: str) -> Any:
        return _encode(item, name_of, where + step, depth + 1)

    kind = cast(Any, type(value))
    if kind is dict:
        mapping: dict[Any, Any] = value
        if all(type(key) is str for key in mapping) and MARK not in mapping:
            return {key: inner(item, f"[{key!r}]") for key, item in mapping.items()}
        pairs = [[inner(k, "(key)"), inner(v, f"[{k!r}]")] for k, v in mapping.items()]
        return _marked("dict", pairs)
    if kind in (list, tuple, set, frozenset):
        listed = [inner(item, f"[{i}]") for i, item in enumerate(value)]
        return listed if kind is list else _marked(kind.__name__, listed)
    if kind in (bytes, bytearray):
        return _marked("bytes", binascii.b2a_base64(value, newline=False).decode())
    known = (kind.__module__, kind.__qualname__)
    if known == ("datetime", "timedelta"):
        return _marked("timedelta", [value.days, value.seconds, value.microseconds])
    if known in (("datetime", "datetime"), ("datetime", "date"), ("datetime", "time")):
        return _marked(kind.__name__, value.isoformat())
    if known in (("decimal", "Decimal"), ("uuid", "UUID")):
        return _marked(kind.__name__, str(value))
    if _is(value, "pathlib", "PurePath"):
        return _marked("Path", str(value))
    if isinstance(value, type) and name_of is not None:
        return _marked("class", name_of(value))
    fields = _fields(value)
    if fields is not None:
        data = {name: inner(item, f".{name}") for name, item in fields.items()}
        return data if name_of is None else _marked("object", [name_of(kind), data])
    if _is(value, "enum", "Enum"):
        held = inner(value.value, "")
        if name_of is None:
            return held
        return _marked("object", [name_of(kind), {"value": held}])
    # str, int and their like with a class of their own (numpy's, …) that are what they extend.
    plain: Any
    for plain in (str, int, float, list, dict, tuple):
        if isinstance(value, plain):
            return _encode(plain(value), name_of, where, depth)
    raise NotPlain(
        f"{where} is a {kind.__module__}.{kind.__qualname__}, which does not go through a sandbox's wall; use JSON's types, bytes, "
        "tuples, sets, dates, Decimal, UUID, Path, enums, dataclasses or pydantic models"
    )


def _is(value: Any, module: str, name: str) -> bool:
    """Whether it is one of that class, which is imported if it is."""
    loaded = sys.modules.get(module)
    return loaded is not None and isinstance(value, getattr(loaded, name))


def _fields(value: Any) -> Mapping[str, Any] | None:
    """Of a dataclass or a pydantic model (known by its methods: pydantic need not be here)."""
    if isinstance(value, type):
        return None
    if hasattr(cast(Any, type(value)), "__dataclass_fields__"):
        declared = import_module("dataclasses").fields(value)
        return {f.name: getattr(value, f.name) for f in declared if f.init}
    kind = cast(Any, type(value))
    fields: Mapping[str, Any] | None = getattr(kind, "model_fields", None)
    if fields is None or not hasattr(kind, "model_validate"):
        return None
    return {name: getattr(value, name) for name in fields}


def _marked(kind: str, data: Any) -> dict[str, Any]:
    return {MARK: [kind, data]}


def decode(value: Any, construct: Construct | None = None) -> Any:
    """Inverse of `encode`.

    Args:
        value: As parsed from JSON.
        construct: Makes the objects whose class has a name; None, as for all that comes out of a
            sandbox, refuses them.

    Raises:
        ValueError: it is not what `encode` makes.
    """
    try:
        return _decode(value, construct, 0)
    except (TypeError, KeyError, ArithmeticError) as error:
        raise ValueError(f"not a value as this version writes it: {error}") from error


def _decode(value: Any, construct: Construct | None, depth: int) -> Any:
    if depth > 4 * _MAX_DEPTH:
        raise ValueError("nested too deep")

    def inner(item: Any) -> Any:
        return _decode(item, construct, depth + 1)

    if isinstance(value, list):
        items: list[Any] = cast(Any, value)
        return [inner(item) for item in items]
    if not isinstance(value, dict):
        return value
    mapping: dict[str, Any] = cast(Any, value)
    if MARK not in mapping:
        return {key: inner(item) for key, item in mapping.items()}
    kind, data = mapping[MARK]
    if kind == "class" and construct is not None:
        return construct(data, None)
    if kind == "object" and construct is not None:
        name, fields = data
        return construct(name, inner(fields))
    if kind == "dict":
        return {inner(key): inner(item) for key, item in data}
    if kind in ("tuple", "set", "frozenset"):
        make: Any = {"tuple": tuple, "set": set, "frozenset": frozenset}[kind]
        return make([inner(item) for item in data])
    if kind == "timedelta":
        days, seconds, microseconds = data
        return import_module("datetime").timedelta(days, seconds, microseconds)
    if kind == "float":
        return float(data)
    if kind == "bytes":
        return binascii.a2b_base64(data, strict_mode=True)
    if kind in ("datetime", "date", "time"):
        return getattr(import_module("datetime"), kind).fromisoformat(data)
    if kind in _BY_TEXT:
        return getattr(import_module(_BY_TEXT[kind]), kind)(data)
    raise ValueError(f"unknown kind {kind!r}")


_BY_TEXT = {"Decimal": "decimal", "UUID": "uuid", "Path": "pathlib"}
