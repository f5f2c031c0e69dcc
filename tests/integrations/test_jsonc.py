"""JSON edited in place: nothing else changes."""

from __future__ import annotations

import pytest

from purplebox.integrations.clients import jsonc


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("", '{\n  "a": {\n    "b": 1\n  }\n}\n'),
        ("{}", '{\n  "a": {\n    "b": 1\n  }\n}'),
        ('{"a": {}}', '{"a": {\n    "b": 1\n  }}'),
        ('{"a": {"c": 2}}', '{"a": {"c": 2, "b": 1}}'),
        ('{\r\n\t"a": {\r\n\t\t"c": 2\r\n\t}\r\n}', '{\r\n\t"a": {\r\n\t\t"c": 2,\r\n\t\t"b": 1\r\n\t}\r\n}'),
        ('{"a": {"c": 2, /* , */}, "d": "}"}', '{"a": {"c": 2, "b": 1, /* , */}, "d": "}"}'),
        ('{"a": {"b": 1}} // "b": 2', '{"a": {"b": 1}} // "b": 2'),
        ('{"a": {"b": [1, // x\n2,]}}', '{"a": {"b": 1}}'),
    ],
)  # fmt: skip
def test_json_is_edited_in_place(before: str, after: str) -> None:
    assert jsonc.edit(before, ("a", "b"), 1) == after
    assert jsonc.member(jsonc.loads(after), ("a", "b")) == 1


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ('{"a": {"b": 1}}', '{"a": {}}'),
        ('{"a": {"c": 2, "b": 1}}', '{"a": {"c": 2}}'),
        ('{"a": {"b": 1, "c": 2}}', '{"a": { "c": 2}}'),
        ('{"a": {\n  "b": 1,\n  // of c\n  "c": 2\n}}', '{"a": {\n  // of c\n  "c": 2\n}}'),
        ('{"a": {\n  "c": 2, // of c\n  "b": 1\n}}', '{"a": {\n  "c": 2 // of c\n}}'),
        ('{"a": {\n  "c": 2,\n  "b": 1,\n}}', '{"a": {\n  "c": 2,\n}}'),
        ('{"a": {"c": 2}}', '{"a": {"c": 2}}'),
        ('{"c": {"b": 1}}', '{"c": {"b": 1}}'),
    ],
)
def test_json_members_are_removed_in_place(before: str, after: str) -> None:
    assert jsonc.edit(before, ("a", "b"), None) == after
    jsonc.loads(after)
