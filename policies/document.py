"""A policy's YAML, and where in it a mistake is. Pure."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import yaml
from pydantic import BaseModel, ValidationError

from .errors import PolicyError
from .model import Policy

Lines = dict[tuple[str | int, ...], int]


def parse(data: bytes, path: Path) -> tuple[dict[str, Any], Lines]:
    """The keys of a policy's text and the line of each. Raises `PolicyError`, which names `path`."""
    try:
        text = data.decode("utf-8")
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        if not isinstance(node, yaml.MappingNode):
            message = "a policy is a mapping that starts with `name:`"
            raise PolicyError(message, file=str(path), line=1)
        lines: Lines = {}
        _mark(node, (), lines, path)
        return cast(dict[str, Any], yaml.safe_load(text)), lines
    except UnicodeDecodeError:
        raise PolicyError("cannot be read: not UTF-8", file=str(path)) from None
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 0
        raise PolicyError(f"not YAML: {error.problem}", file=str(path), line=line) from None
    except yaml.YAMLError as error:
        raise PolicyError(f"not YAML: {error}", file=str(path)) from None


def _mark(node: yaml.Node, key: tuple[str | int, ...], lines: Lines, path: Path) -> None:
    lines.setdefault(key, node.start_mark.line + 1)
    if isinstance(node, yaml.MappingNode):
        for name_node, value in node.value:
            inner = (*key, str(name_node.value))
            if inner in lines:
                raise PolicyError(
                    "this key is given twice; keep one", file=str(path),
                    line=name_node.start_mark.line + 1, key=_dotted(inner),
                )  # fmt: skip
            lines[inner] = name_node.start_mark.line + 1
            _mark(value, inner, lines, path)
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            _mark(value, (*key, index), lines, path)


def check(fields: dict[str, Any], lines: Lines, path: Path) -> None:
    """Check one file by itself, so that an error has this file's line."""
    try:
        Policy.model_validate(tuples(fields))
    except ValidationError as error:
        raise explain(error, lines, path) from None


def tuples(value: Any) -> Any:
    """YAML's lists as the tuples that a frozen, strict model takes."""
    if isinstance(value, dict):
        return {key: tuples(item) for key, item in cast(dict[str, Any], value).items()}
    if isinstance(value, list):
        return tuple(tuples(item) for item in cast(Sequence[Any], value))
    return value


def explain(error: ValidationError, lines: Lines, path: Path) -> PolicyError:
    """The first of what is wrong, with its place and what is near."""
    first = error.errors()[0]
    parts = list(first["loc"])
    while len(parts) > 1 and tuple(parts) not in lines:
        parts.pop()
    key = tuple(parts)
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "extra_forbidden":
        known = _known(key[:-1])
        near = difflib.get_close_matches(str(parts[-1]), known, 1)
        message = "unknown key" + (
            f"; did you mean {near[0]}?" if near else f"; known: {', '.join(known)}"
        )
    line = lines.get(key, lines.get(key[:-1], 1))
    return PolicyError(message, file=str(path), line=line, key=_dotted(key))


def _known(key: tuple[str | int, ...]) -> list[str]:
    model: type[BaseModel] = Policy
    for part in key:
        if isinstance(part, int):
            continue
        for name, field in model.model_fields.items():
            if part in (name, field.alias):
                inner = [field.annotation, *getattr(field.annotation, "__args__", ())]
                for kind in inner:
                    if isinstance(kind, type) and issubclass(kind, BaseModel):
                        model = kind
    return sorted(field.alias or name for name, field in model.model_fields.items())


def _dotted(key: tuple[str | int, ...]) -> str:
    text = ""
    for part in key:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text
