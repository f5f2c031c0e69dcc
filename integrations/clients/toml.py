"""TOML edited in place, for Codex: tomlkit keeps comments, order and spacing."""

from __future__ import annotations

from collections.abc import MutableMapping, Sequence
from typing import Any, cast


class TomlError(ValueError):
    """The text is no TOML, or something on the way is no table; `line` is 1-based."""

    def __init__(self, message: str, line: int) -> None:
        super().__init__(message)
        self.line = line


def loads(text: str) -> Any:
    """The tables of `text` as plain values. Raises `TomlError`."""
    return _document(text).unwrap()


def edit(text: str, path: Sequence[str], value: Any | None) -> str:
    """Set the key at `path` to `value`, or remove it (None); tables on the way are made.

    Raises:
        TomlError: not TOML, or something on the way is no table.
    """
    import tomlkit

    document = _document(text)
    table: MutableMapping[str, Any] = document
    for key in path[:-1]:
        if key not in table:
            if value is None:
                return text
            table[key] = tomlkit.table(is_super_table=True)
        inner: Any = table[key]
        if not isinstance(inner, MutableMapping):
            raise TomlError(f"{key} is no table", 1)
        table = cast("MutableMapping[str, Any]", inner)
    last = path[-1]
    old = table.get(last)
    if value is None:
        if last not in table:
            return text
        del table[last]
    elif old is not None and getattr(old, "unwrap", lambda: old)() == value:
        return text
    else:
        table[last] = value
    return tomlkit.dumps(document)


def _document(text: str) -> Any:
    import tomlkit
    from tomlkit.exceptions import ParseError, TOMLKitError

    try:
        return tomlkit.parse(text)
    except ParseError as error:
        raise TomlError(str(error), error.line) from None
    except TOMLKitError as error:
        raise TomlError(str(error), 1) from None
