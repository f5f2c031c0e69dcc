"""docs/policies.md: every key of the model has its row, and every row a key."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import pytest
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from purplebox.policies import Policy, list_policies

PAGE = (Path(__file__).parents[1] / "docs" / "policies.md").read_text()
ROWS = dict(re.findall(r"^\| `([^`]+)` \| (.*?) \|", PAGE, re.MULTILINE))
# What has the same entries as its elder is told once.
SAME = ("network.deny[]", "syscalls.rules[].also[]")


def models(kind: Any) -> Iterator[type[BaseModel]]:
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        yield kind
    for inner in get_args(kind):
        yield from models(inner)


def fields(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    for name, field in model.model_fields.items():
        key, kind = f"{prefix}{field.alias or name}", field.annotation
        inner = list(models(kind))
        section = isinstance(kind, type) and issubclass(kind, BaseModel)
        if not section:
            yield key, field
        for found in inner:
            several = get_origin(kind) in (tuple, dict)
            yield from fields(found, f"{key}[]." if several else f"{key}.")


KEYS = {key: field for key, field in fields(Policy) if not key.startswith(SAME)}


@pytest.mark.parametrize("key", KEYS)
def test_every_key_has_its_row(key: str) -> None:
    assert key in ROWS, f"say what {key} means in docs/policies.md"


def test_every_row_has_its_key() -> None:
    rows = {key for key in ROWS if "." in key or key in Policy.model_fields}
    assert rows <= set(KEYS)


def choices(kind: Any) -> Iterator[str]:
    if get_origin(kind) is Literal:
        yield from map(str, get_args(kind))
    elif get_origin(kind) in (Union, UnionType, Annotated, tuple):
        for inner in get_args(kind):
            if inner is not NoneType:
                yield from choices(inner)


@pytest.mark.parametrize("key", KEYS)
def test_every_choice_and_default_is_named(key: str) -> None:
    row = next(line for line in PAGE.splitlines() if line.startswith(f"| `{key}` |"))
    field = KEYS[key]
    for choice in choices(field.annotation):
        assert f"`{choice}`" in row, f"{key}: {choice}"
    if field.is_required():
        assert ROWS[key] == "required", key
    elif isinstance(field.default, bool):
        assert ROWS[key] == f"`{str(field.default).lower()}`"
    elif isinstance(field.default, str) and field.default:
        assert ROWS[key] == f"`{field.default}`"


def test_every_shipped_profile_is_listed() -> None:
    for info in list_policies():
        assert f"`{info.name}`" in PAGE
