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
        ({"flow": ({"after": {"read": ("keys/**", "**/.env"), "tool": ("mail__*",)}, "then": {"network": "deny", "tool": {"github__*": "ask"}}},)},
         "- new flow rule: after reading keys/**, **/.env or calling mail__*: deny what reaches a host, ask github__* (flow)",
         "+ gone flow rule: after reading keys/**, **/.env or calling mail__*: deny what reaches a host, ask github__* (flow)"),
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


def network(*allow: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"network": {"isolated": False, "allow": allow, **more}}


PYPI: dict[str, Any] = {"host": "pypi.org", "ports": (443,)}
GET = {**PYPI, "methods": ("GET",)}


@pytest.mark.parametrize(
    ("one", "other", "forward", "backward"),
    [
        (network(GET), network(PYPI), ["+ may reach pypi.org:443"], ["- may no longer reach pypi.org:443, only pypi.org:443 GET"]),
        (network(GET), network({**PYPI, "methods": ("POST",)}), ["+ may reach pypi.org:443 POST", "- may no longer reach pypi.org:443 GET"],
         ["+ may reach pypi.org:443 GET", "- may no longer reach pypi.org:443 POST"]),
        (network({**PYPI, "paths": ("/a/**",)}), network({**PYPI, "paths": ("/a/b", "/a")}),
         ["- may no longer reach pypi.org:443 /a/**, only pypi.org:443 /a/b /a"], ["+ may reach pypi.org:443 /a/**"]),
        (network({"host": "pypi.org"}), network({"host": "pypi.org", "ports": (80, 443)}), [], []),
        (network(PYPI), network({"host": "pypi.org"}), ["+ may reach pypi.org:80"], ["- may no longer reach pypi.org:80"]),
        (network(PYPI, {"host": "pypi.org", "ports": (80,)}), network({"host": "pypi.org"}), [], []),
        (network(PYPI), network({**PYPI, "addresses": ("151.101.0.0/16",)}),
         ["- may no longer reach pypi.org:443, only pypi.org:443 at 151.101.0.0/16"], ["+ may reach pypi.org:443"]),
        (network(PYPI), network(PYPI, {**PYPI, "addresses": ("10.0.0.0/8",)}),
         ["+ may reach pypi.org:443 at 10.0.0.0/8"], ["- may no longer reach pypi.org:443 at 10.0.0.0/8"]),
        (network({**PYPI, "addresses": ("10.0.0.0/8",)}), network({**PYPI, "addresses": ("10.1.0.0/16", "10.2.3.4")}),
         ["- may no longer reach pypi.org:443 at 10.0.0.0/8, only pypi.org:443 at 10.1.0.0/16, 10.2.3.4"], ["+ may reach pypi.org:443 at 10.0.0.0/8"]),
        (network({"host": "**.pypi.org"}), network({"host": "**.pypi.org"}, {"host": "a.pypi.org"}), [], []),
        (network({"host": "10.0.0.0/8"}), network({"host": "10.1.2.3"}), ["- may no longer reach 10.0.0.0/8, only 10.1.2.3"], ["+ may reach 10.0.0.0/8"]),
        (network({"host": "**"}), network({"host": "**"}, {"host": "10.1.2.3"}), ["+ may reach 10.1.2.3"], ["- may no longer reach 10.1.2.3"]),
    ],
)  # fmt: skip
def test_what_is_reachable_is_compared(
    one: dict[str, Any], other: dict[str, Any], forward: list[str], backward: list[str]
) -> None:
    assert said(one, other) == [f"{line} (network.allow)" for line in forward]
    assert said(other, one) == [f"{line} (network.allow)" for line in backward]


def test_addresses_take_the_place_of_public_ones() -> None:
    there = {**PYPI, "addresses": ("10.0.0.0/8",)}
    assert said(network(PYPI), network(there)) == [
        "+ may reach pypi.org:443 at 10.0.0.0/8 (network.allow)",
        "- may no longer reach pypi.org:443 at public addresses (network.allow)",
    ]


def test_denials_are_compared_the_other_way() -> None:
    one, other = (network(PYPI, deny=(rule,)) for rule in (GET, {"host": "pypi.org"}))
    assert said(one, other) == ["- may no longer reach pypi.org (network.deny)"]
    assert said(other, one) == [
        "+ pypi.org is no longer denied, only pypi.org:443 GET is (network.deny)"
    ]


def test_limits_are_compared_number_by_number() -> None:
    one = {"limits": ({"per": ("client",), "calls": 120, "concurrent": 8},)}
    other: dict[str, Any] = {
        "limits": (
            {"per": ("client",), "calls": 200, "concurrent": 8},
            {"per": ("client",), "calls": 300},
            {"tool": "shell", "per": (), "every": "1h", "bytes": "1M", "time": "20m"},
        )
    }
    assert said(one, other) == [
        "+ calls for each client in 60 s: 120 → 200 (limits)",
        "- arguments and results of shell all together in 3600 s: no limit → 1 MiB (limits)",
        "- running time of shell all together in 3600 s: no limit → 1200 s (limits)",
    ]
    assert said(one, one) == []


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
