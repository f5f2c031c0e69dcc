"""Differences between policies, in words and with their direction."""

from __future__ import annotations

from typing import Any

import pytest

from purplebox.policies import Policy
from purplebox.policies.diff import _KEYS, diff, leaves


def policy(**fields: Any) -> Policy:
    return Policy.model_validate({"name": "p", **fields})


def said(one: dict[str, Any], other: dict[str, Any]) -> list[str]:
    return [str(change) for change in diff(policy(**one), policy(**other))]


A_RULE = {"tool": "shell", "when": "args.x", "effect": "ask"}


@pytest.mark.parametrize(
    ("fields", "forward", "backward"),
    [
        ({"filesystem": {"read": ("~/d",)}}, "+ may read ~/d (filesystem.read)", "- may no longer read ~/d (filesystem.read)"),
        ({"filesystem": {"hide": (".env",)}}, "- no longer sees .env (filesystem.hide)", "+ sees .env, which was hidden (filesystem.hide)"),
        ({"filesystem": {"workspace": "read"}}, "- the workspace: write → read (filesystem.workspace)", "+ the workspace: read → write (filesystem.workspace)"),
        ({"resources": {"memory_limit": "2G"}}, "- memory: no limit → 2 GiB (resources.memory_limit)", "+ memory: 2 GiB → no limit (resources.memory_limit)"),
        ({"resources": {"timeout": 5}}, "- time: no limit → 5 s (resources.timeout)", "+ time: 5 s → no limit (resources.timeout)"),
        ({"network": {"isolated": False}}, "+ network isolated: yes → no (network.isolated)", "- network isolated: no → yes (network.isolated)"),
        ({"network": {"allow": ({"host": "a.example", "ports": (22,)},)}}, "+ may reach a.example:22 (network.allow)", "- may no longer reach a.example:22 (network.allow)"),
        ({"tools": {"rules": (A_RULE,)}}, "- new rule: ask shell when args.x (tools.rules)", "+ gone rule: ask shell when args.x (tools.rules)"),
        ({"tools": {"default": "deny"}}, "- a tool that no rule names: allow → deny (tools.default)", "+ a tool that no rule names: deny → allow (tools.default)"),
        ({"environment": {"set": {"A": "1"}}}, "~ variable A: nothing → 1 (environment.set)", "~ variable A: 1 → nothing (environment.set)"),
        ({"syscalls": {"rules": ({"syscall": "socket", "arg": 0, "op": "eq", "value": "AF_INET"},)}},
         "~ new argument rule: allow socket when argument 0 eq AF_INET (syscalls.rules)",
         "~ gone argument rule: allow socket when argument 0 eq AF_INET (syscalls.rules)"),
    ],
)  # fmt: skip
def test_a_difference_in_both_directions(
    fields: dict[str, Any], forward: str, backward: str
) -> None:
    assert said({}, fields) == [forward]
    assert said(fields, {}) == [backward]
    assert said(fields, fields) == []


SAMPLES: dict[str, Any] = {
    "syscalls.rules": ({"syscall": "socket", "arg": 0, "op": "eq", "value": 1},),
    "network.allow": ({"host": "a.example"},), "network.deny": ({"host": "a.example"},),
    "network.credentials": (
        {"host": "a.example", "header": "A", "value": "${secret:X}", "placeholder_env": "X"},
    ),
    "network.listen": (8000,), "environment.set": {"A": "1"}, "tools.rules": (A_RULE,),
    "tools.arguments": {"a": {"b": "url"}}, "require": (), "devices.gpu": "all",
    "filesystem.workspace": "none", "network.tls": "inspect", "network.loopback": "sandbox", "tools.default": "ask",
    "tools.approved": ({"tool": "shell", "arguments": {"command": "x"}},),
    "audit.arguments": "none", "audit.output": "none",
}  # fmt: skip


@pytest.mark.parametrize("key", sorted(key for key in _KEYS if "." in key))
def test_no_key_changes_unsaid(key: str) -> None:
    section, _, name = key.partition(".")
    default: Any = policy()
    for part in dict(leaves(Policy))[key]:
        default = getattr(default, part)
    value = SAMPLES.get(key)
    if value is None:
        is_list = isinstance(default, tuple)
        value = (not default) if isinstance(default, bool) else ("x",) if is_list else 64
    changes = said({}, {section: {name: value}})
    assert {change.split(" (")[-1] for change in changes} == {f"{key})"}


def test_protection_says_nothing_where_nothing_can_be_written() -> None:
    protected = {"filesystem": {"protect": (".git",)}}
    assert said(protected, {}) == ["+ may change .git, which was protected (filesystem.protect)"]
    assert said(protected, {"filesystem": {"workspace": "read"}}) == [
        "- the workspace: write → read (filesystem.workspace)"
    ]


def test_words_are_for_keys_that_exist() -> None:
    assert set(_KEYS) <= {key for key, _ in leaves(Policy)}
