"""What `purple profile check` finds, each beside the policy that is right."""

from __future__ import annotations

from typing import Any

import pytest

from purplebox.gateway.tools import TOOLS
from purplebox.isolation.syscalls import allowed_in_vain, hampered
from purplebox.policies import Policy, list_policies, load_policy
from purplebox.policies.check import check
from purplebox.policies.meaning import ARGUMENTS

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
        (rules({"tool": "s__x", "when": "false", "effect": "deny"}), "dead", "tools.rules[0]",
         rules({"tool": "s__x", "when": "args.a", "effect": "deny"})),
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
        ({"network": {"deny": ({"host": "a.example"},)}}, "contradictory", "network.deny",
         network({"host": "*.example"}, deny=({"host": "a.example"},))),
        (network(), "dead", "network.isolated", network({"host": "a.example"})),
        (network({"host": "**"}), "too wide", "network.allow[0]", network({"host": "**.example"})),
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
        ({"filesystem": {"hide": ("*.{pem,key}",)}}, "dead", "filesystem.hide[0]",
         {"filesystem": {"hide": ("*.pem", "*.key")}}),
        ({"filesystem": {"protect": ("a.txt,b.pem",)}}, "dead", "filesystem.protect[0]",
         {"filesystem": {"protect": ("a.txt", "*,v")}}),
        ({"filesystem": {"hide": ("!a.txt",)}}, "dead", "filesystem.hide[0]",
         {"filesystem": {"hide": ("[!a].txt",)}}),
        (rules({"tool": "read_file,write_file", "effect": "deny"}), "dead", "tools.rules[0]",
         rules({"tool": "read_file", "effect": "deny"}, {"tool": "write_file", "effect": "deny"})),
        (rules({"tool": "{shell,move}", "effect": "deny"}), "dead", "tools.rules[0]", rules({"tool": "s*", "effect": "deny"})),
        (rules({"tool": "shell|delete", "effect": "deny"}), "dead", "tools.rules[0]", rules({"tool": "s__*", "effect": "deny"})),
        (rules({"tool": "!shell", "effect": "deny"}), "dead", "tools.rules[0]", rules({"tool": "[!s]*", "effect": "deny"})),
        (rules({**PUSH, "when": 'args.command.contain("x")', "effect": "deny"}), "wrong", "tools.rules[0].when",
         rules({**PUSH, "when": 'args.command.contains("args.comand") && glob("a", "b")', "effect": "deny"})),
        (rules({"tool": "shell", "when": 'args.comand == "x"', "effect": "deny"}), "wrong", "tools.rules[0].when",
         rules({"tool": "s__shell", "when": 'args.comand == "x"', "effect": "deny"})),
        (rules({"tool": "move", "when": 'args["path"] == "x"', "effect": "deny"}), "wrong", "tools.rules[0].when",
         rules({"tool": "move", "when": 'args["source"] == "x"', "effect": "deny"})),
        (network({"host": "https://a.example/"}), "wrong", "network.allow[0]", network({"host": "a.example", "ports": (443,)})),
        (network({"host": "a.example"}, deny=({"host": "*"},)), "wrong", "network.deny[0]",
         network({"host": "*.example"}, deny=({"host": "a.example"},))),
        ({"resources": {"memory_limit": "1M", "processes": 2}}, "wrong", "resources.memory_limit", GOOD),
        ({"require": ("cgroup", "landlock")}, "too wide", "require",
         {"require": ("namespaces", "mounts", "capabilities", "landlock", "seccomp", "network")}),
        ({"require": ("landlock",), "dangerously_without_namespaces": ("view",)}, "too wide", "require",
         {"require": ("landlock", "seccomp", "network"), "dangerously_without_namespaces": ("view",)}),
        ({"resources": {**GOOD["resources"], "timeout": 0.001}}, "wrong", "resources.timeout",
         {"resources": {**GOOD["resources"], "timeout": 1}}),
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
    assert found(**network(here, credentials=(credential,), tls="inspect")) == set()


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"filesystem": {"hide": ("*.{pem,key}",)}}, "write one pattern each: *.pem; *.key"),
        (rules({"tool": "shell|delete", "effect": "deny"}), "write one rule each: shell; delete"),
        (rules({"tool": "reed_file", "effect": "deny"}), "did you mean read_file?"),
        (rules({**PUSH, "when": 'args.command.contain("x")', "effect": "deny"}), "Undefined function 'contain'; did you mean contains"),
        (rules({**PUSH, "when": 'has(args.comand)', "effect": "deny"}), "no argument 'comand' of shell; did you mean command"),
        (network({"host": "a.example:22"}), "write a.example, and ports: [22]"),
    ],
)  # fmt: skip
def test_a_finding_says_what_to_write(fields: dict[str, Any], text: str) -> None:
    assert [text in str(finding) for finding in check(policy(**fields))] == [True]


@pytest.mark.parametrize(
    "section",
    [
        {"allow": ({"host": "a.example"},)},
        {"isolated": False, "allow": ({"host": "a.example", "ports": (443,), "methods": ("GET",)},)},
    ],
)  # fmt: skip
def test_what_a_policy_is_refused_for_is_said_once(section: dict[str, Any]) -> None:
    made = policy(network=section)
    assert (len(made.unsupported()), check(made)) == (1, [])


def test_the_arguments_of_built_in_tools_are_those_of_their_schemas() -> None:
    schemas = {
        name: tuple(tool.definition.to_wire()["inputSchema"].get("properties", {}))
        for name, tool in TOOLS.items()
    }
    assert schemas == ARGUMENTS


@pytest.mark.parametrize(
    ("deny", "words"),
    [("execve", "no program"), ("openat", "no program"), ("@runtime", "no program"), ("futex", "no shell")],
)  # fmt: skip
def test_a_list_that_starts_nothing_is_found(deny: str, words: str) -> None:
    assert words in hampered(policy(syscalls={"deny": (deny,)}))[0]
    assert hampered(policy(syscalls={"deny": ("@debug", "socket")})) == []


def test_a_call_that_is_allowed_in_vain_is_found() -> None:
    (said,) = allowed_in_vain(policy(syscalls={"allow": ("@default", "unshare", "ptrace")}))
    assert said.startswith("syscalls.allow: unshare: no sandbox may make it")


@pytest.mark.parametrize("name", [i.name for i in list_policies() if i.origin == "shipped"])
def test_shipped_profiles_have_no_findings(name: str) -> None:
    meant = {"web-scraper": {("too wide", "network.allow[0]")}}  # any page of any host
    assert {(f.kind, f.key) for f in check(load_policy(name))} == meant.get(name, set())
