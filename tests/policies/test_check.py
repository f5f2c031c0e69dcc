"""What `purple profile check` finds, each beside the policy that is right."""

from __future__ import annotations

from typing import Any

import pytest

from purplebox.isolation.seccomp import hampered
from purplebox.policies import Policy, list_policies, load_policy
from purplebox.policies.check import check

GOOD: dict[str, Any] = {"resources": {"memory_limit": "1G", "processes": 64}}


def policy(**fields: Any) -> Policy:
    return Policy.model_validate({"name": "p", **GOOD, **fields})


def found(**fields: Any) -> set[tuple[str, str]]:
    return {(f.kind, f.key) for f in check(policy(**fields))}


def rules(*rules: dict[str, Any], default: str = "allow") -> dict[str, Any]:
    return {"tools": {"default": default, "rules": rules}}


def network(*allow: Any, **more: Any) -> dict[str, Any]:
    return {"network": {"isolated": False, "allow": allow, **more}}


PUSH = {"tool": "shell", "when": 'args.command.contains("push")'}
DENY: dict[str, Any] = {"tool": "*", "effect": "deny"}


@pytest.mark.parametrize(
    ("wrong", "kind", "key", "right"),
    [
        (rules({**PUSH, "effect": "ask"}, {"tool": "shell", "effect": "deny"}), "shadowed", "tools.rules[0]",
         rules({**PUSH, "effect": "deny"}, {"tool": "shell", "effect": "ask"})),
        (rules({**PUSH, "effect": "ask"}, {**PUSH, "effect": "deny"}), "contradictory", "tools.rules[0]",
         rules({**PUSH, "effect": "ask"}, {**PUSH, "tool": "process_start", "effect": "deny"})),
        (rules({"tool": "re*", "effect": "ask"}, {"tool": "read_*", "when": "size(paths) > 1", "effect": "ask"}),
         "shadowed", "tools.rules[1]",
         rules({"tool": "read_*", "effect": "ask"}, {"tool": "re*", "when": "size(paths) > 1", "effect": "ask"})),
        (rules({**PUSH, "effect": "allow"}), "dead", "tools.rules[0]",
         rules({**PUSH, "effect": "allow"}, default="deny")),
        (rules({"tool": "reed_file", "effect": "deny"}), "dead", "tools.rules[0]",
         rules({"tool": "reed_file", "server": "s", "effect": "deny"})),
        (rules({"tool": "x", "when": "false", "effect": "deny"}), "dead", "tools.rules[0]",
         rules({"tool": "x", "when": "args.a", "effect": "deny"})),
        (rules({"tool": "*", "effect": "allow"}, default="deny"), "too wide", "tools.rules[0]",
         rules({"tool": "read_*", "effect": "allow"}, default="deny")),
        ({"tools": {"arguments": {"read_file": {"path": "read"}}}}, "dead", "tools.arguments.read_file",
         {"tools": {"arguments": {"s__read_file": {"path": "read"}}}}),
        ({"filesystem": {"read": ("~",)}}, "too wide", "filesystem.read[0]",
         {"filesystem": {"read": ("~/datasets",)}}),
        ({"filesystem": {"read": ("~/.ssh/id",)}}, "too wide", "filesystem.read[0]",
         {"filesystem": {"read": ("~/.sshx",)}}),
        ({"filesystem": {"write": ("/home/me",)}}, "too wide", "filesystem.write[0]",
         {"filesystem": {"write": ("/home/me/x",)}}),
        ({"filesystem": {"read": ("sub",)}}, "dead", "filesystem.read[0]",
         {"filesystem": {"workspace": "none", "read": ("sub",)}}),
        ({"filesystem": {"read": ("/a",), "write": ("/a",)}}, "contradictory", "filesystem.read[0]",
         {"filesystem": {"read": ("/a",), "write": ("/b",)}}),
        ({"filesystem": {"hide": ("~/.ssh",)}}, "dead", "filesystem.hide[0]",
         {"filesystem": {"hide": (".ssh",)}}),
        ({"syscalls": {"allow": ("kill",), "deny": ("kill",)}}, "contradictory", "syscalls.deny[0]",
         {"syscalls": {"allow": ("@process",), "deny": ("kill",)}}),
        ({"syscalls": {"default_deny": False}}, "too wide", "syscalls.default_deny",
         {"syscalls": {"default_deny": True}}),
        ({"syscalls": {"allow": ("ptrace",)}}, "too wide", "syscalls.allow[0]",
         {"syscalls": {"allow": ("socket",)}}),
        ({"capabilities": {"keep": ("CAP_NET_ADMIN",)}}, "too wide", "capabilities.keep[0]", {}),
        ({"resources": {"processes": 2}}, "too wide", "resources.memory_limit", {}),
        ({"resources": {"memory_limit": "1G"}}, "too wide", "resources.processes", {}),
        ({"network": {"allow": ({"host": "a.example"},)}}, "contradictory", "network.allow",
         network({"host": "a.example"})),
        (network(), "dead", "network.isolated", network({"host": "a.example"})),
        (network({"host": "**"}), "too wide", "network.allow[0]", network({"host": "**.example"})),
        (network({"host": "a.example", "ports": (443,), "methods": ("GET",)}), "contradictory", "network.allow[0]",
         network({"host": "a.example", "ports": (443,), "methods": ("GET",)}, tls="inspect")),
        (network({"host": "a.example"}, deny=({"host": "*.example"},)), "shadowed", "network.allow[0]",
         network({"host": "**.example"}, deny=({"host": "*.example"},))),
        (network({"host": "**.example"}, {"host": "a.example"}), "shadowed", "network.allow[1]",
         network({"host": "**.example"}, {"host": "a.example", "ports": (22,)})),
        (network({"host": "a.example"}, deny=({"host": "b.example"},)), "dead", "network.deny[0]",
         network({"host": "*.example"}, deny=({"host": "b.example"},))),
        ({"environment": {"pass": ("A",), "set": {"A": "1"}}}, "shadowed", "environment.pass[0]",
         {"environment": {"pass": ("A",), "set": {"B": "1"}}}),
        ({"environment": {"pass": ("GITHUB_TOKEN",)}}, "too wide", "environment.pass[0]",
         {"environment": {"pass": ("LANG",)}}),
    ],
)  # fmt: skip
def test_a_finding_and_the_policy_without_it(
    wrong: dict[str, Any], kind: str, key: str, right: dict[str, Any]
) -> None:
    assert (kind, key) in found(**wrong)
    assert found(**right) == set()


def test_a_credential_wants_its_host_and_inspection() -> None:
    credential = {
        "host": "b.example", "header": "Authorization", "value": "${secret:X}", "placeholder_env": "X",
    }  # fmt: skip
    at = "network.credentials[0]"
    assert ("dead", at) in found(**network({"host": "a.example"}, credentials=(credential,)))
    here = {"host": "b.example"}
    assert ("contradictory", at) in found(**network(here, credentials=(credential,)))
    assert found(**network(here, credentials=(credential,), tls="inspect")) == set()


@pytest.mark.parametrize(
    ("deny", "words"),
    [("execve", "no program"), ("openat", "no program"), ("@runtime", "no program"), ("futex", "no shell")],
)  # fmt: skip
def test_a_list_that_starts_nothing_is_found(deny: str, words: str) -> None:
    assert words in hampered(policy(syscalls={"deny": (deny,)}))[0]
    assert hampered(policy(syscalls={"deny": ("@debug", "socket")})) == []


@pytest.mark.parametrize("name", [i.name for i in list_policies() if i.origin == "shipped"])
def test_shipped_profiles_have_no_findings(name: str) -> None:
    meant = {"web-scraper": {("too wide", "network.allow[0]")}}  # any page of any host
    assert {(f.kind, f.key) for f in check(load_policy(name))} == meant.get(name, set())
