"""Python functions in a sandbox: how they get there, and what comes back."""

from __future__ import annotations

import asyncio
import datetime
import decimal
import enum
import functools
import importlib
import json
import os
import pathlib
import sqlite3
import sys
import textwrap
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pydantic
import pytest

from purplebox import Gateway
from purplebox.gateway.calls import Call, Outcome
from purplebox.gateway.reasons import Reason
from purplebox.integrations.functions import (
    NotPlain,
    NotShippable,
    Shipment,
    in_sandbox,
    value_of,
)
from purplebox.integrations.functions.values import MARK, decode, encode
from purplebox.policies import Policy, load_policy

LIMIT = 3
LIVE = sqlite3.connect(":memory:")


class Color(enum.Enum):
    RED = "red"


@dataclass
class Point:
    x: int
    y: int = 0


class Order(pydantic.BaseModel):
    id: int
    when: datetime.date


def outcome(
    function: Callable[..., Any], arguments: dict[str, Any], workspace: Path,
    policy: Policy | str = "code-assistant",
) -> Outcome:  # fmt: skip
    run = in_sandbox(Shipment(function), lambda _: ((), arguments))

    async def go() -> Outcome:
        async with Gateway(policy, workspace, audit_log=workspace.parent / "log") as gateway:
            call = Call(tool=function.__name__, server="test", arguments={})
            return await gateway.calls.call(call, gateway.version, run)

    return asyncio.run(go())


def value(function: Callable[..., Any], arguments: dict[str, Any], workspace: Path) -> Any:
    got = outcome(function, arguments, workspace)
    assert got.reason is Reason.COMPLETED, got.text
    return value_of(got.result)


VALUES: list[Any] = [
    None, True, 1, -(10**30), 1.5, "é\ud800", [1, [2]], {"a": {"b": []}}, {1: 2, (3, 4): 5},
    (1, "x"), {1, 2}, frozenset({3}), b"\0\xff", datetime.datetime(2026, 1, 2, 3, 4, 5, 6),
    datetime.datetime(2026, 1, 2, tzinfo=datetime.UTC), datetime.date(2026, 1, 2),
    datetime.time(3, 4), datetime.timedelta(days=-1, microseconds=5), decimal.Decimal("1.10"),
    uuid.UUID(int=5), pathlib.Path("/a/b"), {MARK: ["bytes", "eA=="]}, float("inf"),
]  # fmt: skip


@pytest.mark.parametrize("what", VALUES, ids=repr)
def test_a_value_comes_back_as_it_was(what: Any) -> None:
    text = json.dumps(encode(what), allow_nan=False)
    back = decode(json.loads(text))
    assert back == what
    assert type(back) is type(what)


def test_only_plain_values_come_out() -> None:
    assert decode(encode([Point(1), Color.RED, Order(id=1, when=datetime.date(2026, 1, 2))])) == [
        {"x": 1, "y": 0}, "red", {"id": 1, "when": datetime.date(2026, 1, 2)},
    ]  # fmt: skip
    with pytest.raises(NotPlain, match=r"value\['c'\] is a sqlite3.Connection"):
        encode({"c": LIVE})
    named = encode(Point(1), lambda kind: kind.__name__)
    assert decode(named, lambda name, fields: (name, fields)) == ("Point", {"x": 1, "y": 0})
    with pytest.raises(ValueError, match="unknown kind 'object'"):
        decode(named)
    loop: list[Any] = []
    loop.append(loop)
    with pytest.raises(NotPlain, match="deeper than"):
        encode(loop)


def helper(n: int) -> int:
    return n if n == 0 else helper(n - 1)


def everything(point: Point, order: Order, color: Color, extra: bytes = b"x") -> dict[str, Any]:
    assert isinstance(point, Point)
    assert isinstance(order, Order)
    assert color is Color.RED
    print("this is not the answer")
    return {
        "sum": point.x + point.y + LIMIT + helper(2), "when": order.when, "extra": extra,
        "pid": os.getpid(), "json": json.dumps([1]), "file": pathlib.Path("a"),
    }  # fmt: skip


def test_a_function_runs_in_the_sandbox_with_what_it_refers_to(workspace: Path) -> None:
    arguments = {
        "point": Point(1, 2), "order": Order(id=1, when=datetime.date(2026, 1, 2)),
        "color": Color.RED,
    }  # fmt: skip
    got = value(everything, arguments, workspace)
    assert got.pop("pid") < 20  # of a pid namespace of its own
    assert got == {
        "sum": 6, "when": datetime.date(2026, 1, 2), "extra": b"x", "json": "[1]",
        "file": pathlib.Path("a"),
    }  # fmt: skip


def take(path: str) -> str:
    return Path(path).read_text()


def test_it_holds_what_the_policy_grants_and_no_more(workspace: Path, tmp_path: Path) -> None:
    outside, inside = tmp_path / "secret", workspace / "open"
    outside.write_text("secret")
    inside.write_text("open")
    assert take(str(outside)) == "secret"  # the control
    assert value(take, {"path": str(inside)}, workspace) == "open"
    got = outcome(take, {"path": str(outside)}, workspace)
    assert got.reason is Reason.OPERATION_FAILED
    assert got.text.startswith("take failed: FileNotFoundError: [Errno 2]")


async def later(n: int) -> int:
    await asyncio.sleep(0)
    return n + 1


def test_an_async_function_runs_too(workspace: Path) -> None:
    assert value(later, {"n": 1}, workspace) == 2


def length(text: str) -> int:
    return len(text)


def test_a_long_argument_goes_by_stdin(workspace: Path) -> None:
    assert value(length, {"text": "x" * 500_000}, workspace) == 500_000


def test_a_function_made_by_a_function_takes_its_values_along(workspace: Path) -> None:
    factor, cell = 7, helper

    def multiply(n: int) -> int:
        return n * factor + cell(0)

    with pytest.raises(NotShippable, match="by another name"):
        Shipment(multiply)

    def times(n: int) -> int:
        return n * factor if n else times(1)

    assert value(times, {"n": 0}, workspace) == 7
    live = LIVE

    def query(n: int) -> int:
        return live.total_changes

    with pytest.raises(NotShippable, match=r"refers to live, a live object \(sqlite3.Connection\)"):
        Shipment(query)


def uses_live() -> int:
    return LIVE.total_changes


def test_a_module_goes_by_import_where_its_source_is_not_whole(
    workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (workspace / "my_tools.py").write_text(
        textwrap.dedent("""
        import functools, sqlite3
        DB = sqlite3.connect(":memory:")
        def twice(function):
            @functools.wraps(function)
            def wrapper(*args, **kwargs):
                return 2 * function(*args, **kwargs)
            return wrapper
        def changes(n):
            return DB.total_changes + n
        @twice
        def doubled(n):
            return n
        """)
    )
    monkeypatch.syspath_prepend(str(workspace))
    my_tools: Any = importlib.import_module("my_tools")

    assert value(my_tools.changes, {"n": 2}, workspace) == 2
    assert value(my_tools.doubled, {"n": 2}, workspace) == 4
    monkeypatch.delitem(sys.modules, "my_tools")


def outside_module(workspace: Path) -> Any:
    """A module that the sandbox cannot see, with a function that needs it whole."""
    away = workspace.parent / "away"
    away.mkdir()
    (away / "away_tools.py").write_text(
        "import sqlite3\nDB = sqlite3.connect(':memory:')\ndef f():\n    return DB.total_changes\n"
    )
    sys.path.insert(0, str(away))
    try:
        return importlib.import_module("away_tools").f
    finally:
        sys.path.remove(str(away))


def test_a_module_out_of_sight_is_named(workspace: Path) -> None:
    got = outcome(outside_module(workspace), {}, workspace)
    assert got.reason is Reason.OPERATION_FAILED
    assert "could not be loaded in its sandbox: ModuleNotFoundError: No module named" in got.text
    assert "filesystem.read" in got.text


@pytest.mark.parametrize(
    ("what", "why"),
    [
        (len, "not a function written with def"),
        (functools.partial(helper, 1), "it is a partial"),
        (lambda: 1, "it is a lambda"),
    ],
)
def test_what_cannot_travel_is_refused_with_the_reason(what: Any, why: str) -> None:
    if what is len:  # importable, so it can
        Shipment(what)
        return
    with pytest.raises(NotShippable, match=why):
        Shipment(what)


def raises(n: int) -> int:
    raise ValueError(f"not {n}")


def exits() -> None:
    os._exit(3)


def returns_live() -> Any:
    return object()


def floods() -> str:
    return "x" * (2 << 20)


def forever() -> None:
    while True:
        pass


def asks_the_network() -> None:
    import urllib.request

    urllib.request.urlopen("http://example.com")


def test_each_way_to_fail_says_which(workspace: Path) -> None:
    short = load_policy("code-assistant")
    short = short.model_copy(
        update={"resources": short.resources.model_copy(update={"wall_seconds": 1.0})}
    )
    cases: list[tuple[Callable[..., Any], dict[str, Any], Reason, str]] = [
        (raises, {"n": 5}, Reason.OPERATION_FAILED, "raises failed: ValueError: not 5 (at: raise"),
        (exits, {}, Reason.OPERATION_FAILED, "exits was ended (exit status 3)"),
        (returns_live, {}, Reason.OPERATION_FAILED, "has no plain result"),
        (floods, {}, Reason.OPERATION_FAILED, "more than may leave its sandbox"),
        (raises, {"n": LIVE}, Reason.INVALID_ARGUMENTS, "sqlite3.Connection"),
        (forever, {}, Reason.TIMED_OUT, "rule resources.timeout"),
        (asks_the_network, {}, Reason.OPERATION_FAILED, "rule network.isolated"),
    ]
    for function, arguments, reason, text in cases:
        got = outcome(function, arguments, workspace, short)
        assert (got.reason, text in got.text) == (reason, True), got.text
        assert got.is_error
