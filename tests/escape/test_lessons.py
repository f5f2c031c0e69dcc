"""The manifest is whole: each lesson has a test that exists, each attack a lesson."""

from __future__ import annotations

import ast
import tomllib
from pathlib import Path
from typing import Any

from purplebox.isolation.attack import ATTACKS

HERE = Path(__file__).parent
# Network (1-11), files (12-19), kernel surface (20-34), and the two about tests and leftovers.
NUMBERS = {*range(1, 35), 47, 48}


def lessons() -> dict[int, dict[str, Any]]:
    text = (HERE / "lessons.toml").read_text()
    return {int(number): said for number, said in tomllib.loads(text).items()}


def test_every_lesson_has_a_test() -> None:
    assert set(lessons()) == NUMBERS
    assert [
        number for number, said in lessons().items() if not said["attacks"] + said["tests"]
    ] == []


def test_every_test_that_is_named_exists() -> None:
    for said in lessons().values():
        for name in said["tests"]:
            file, _, function = name.partition("::")
            tree = ast.parse((HERE.parent / file).read_text())
            functions = {
                node.name
                for node in tree.body
                if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
            }
            assert function in functions, name


def test_every_attack_is_for_a_lesson_and_the_other_way_round() -> None:
    named = {name for said in lessons().values() for name in said["attacks"]}
    assert {one.name for one in ATTACKS} == named
