"""Policies load as printed; what is wrong in one is said with file, line and key."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import pytest

from purplebox.policies import PolicyError, create_policy, decide, list_policies, load_policy
from purplebox.policies.diff import diff

DESIGN = """
name: "my-ai-agent"
syscalls:
  default_deny: true
  allow: ["read", "write", "execve"]
resources:
  memory_limit: "4G"
  cpu_shares: 0.5          # of one core
  timeout: 3600            # seconds
network:
  isolated: true
"""


def write(tmp_path: Path, text: str) -> str:
    path = tmp_path / "policy.yaml"
    path.write_text(text)
    return str(path)


def test_the_first_example_loads_as_it_stands(tmp_path: Path) -> None:
    policy = load_policy(write(tmp_path, DESIGN))
    assert policy.resources.memory_bytes == 4 << 30
    assert policy.resources.cpu_cores == 0.5
    assert policy.resources.wall_seconds == 3600
    assert policy.network.isolated
    assert policy.unsupported() == []


@pytest.mark.parametrize(
    ("text", "line", "key", "words"),
    [
        ("name: a\nresources:\n  memory_limt: 4G\n", 3, "resources.memory_limt", "did you mean memory_limit"),
        ("name: a\nresources:\n  memory_limit: 4Q\n", 3, "resources.memory_limit", "not a size"),
        ("name: a\nresources: {timeout: soon}\n", 2, "resources.timeout", "not a duration"),
        ("name: a\nname: b\n", 2, "name", "twice"),
        ("name: a\nnetwork: {isolated: 'no'}\n", 2, "network.isolated", "boolean"),
        ("", 1, "", "mapping"),
        ("name: [1\n", 2, "", "not YAML"),
        ("name: a\ntools: {rules: [{effect: deny, when: 'args.('}]}\n", 2, "tools.rules[0].when", "CEL"),
    ],
)  # fmt: skip
def test_a_mistake_is_named_with_its_place(
    tmp_path: Path, text: str, line: int, key: str, words: str
) -> None:
    path = write(tmp_path, text)
    with pytest.raises(PolicyError) as caught:
        load_policy(path)
    assert (caught.value.file, caught.value.line, caught.value.key) == (path, line, key)
    assert words in str(caught.value)


def test_what_is_not_enforced_yet_is_named(tmp_path: Path) -> None:
    policy = load_policy(
        write(tmp_path, "name: a\nfilesystem: {workspace: overlay}\ncapabilities: {keep: [KILL]}\n")
    )
    assert [sentence.split()[0] for sentence in policy.unsupported()] == [
        "filesystem.workspace:", "capabilities.keep",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("network", "words"),
    [
        ("allow: [{host: a.test}]", "network.isolated is true"),
        ("isolated: false, allow: [{host: a.test, methods: [GET]}]", "network.allow[0]: requests"),
        ("isolated: false, deny: [{host: a.test, paths: [/x]}]", "network.deny[0]: requests"),
    ],
)
def test_network_keys_that_contradict_each_other_are_refused(
    tmp_path: Path, network: str, words: str
) -> None:
    (sentence,) = load_policy(write(tmp_path, f"name: a\nnetwork: {{{network}}}\n")).unsupported()
    assert words in sentence
    mended = network.replace("isolated: false", "isolated: false, tls: inspect")
    if "isolated" not in network:
        mended = f"isolated: false, {network}"
    assert not load_policy(write(tmp_path, f"name: a\nnetwork: {{{mended}}}\n")).unsupported()


def test_a_missing_profile_names_the_nearest() -> None:
    with pytest.raises(PolicyError, match="did you mean strict"):
        load_policy("strikt")


@pytest.mark.parametrize("name", ["base", "strict", "code-assistant"])
def test_shipped_profiles_load_and_hold(name: str) -> None:
    policy = load_policy(name)
    assert policy.unsupported() == []
    assert policy.network.isolated


def test_a_created_profile_is_found_and_extends(workspace: Path) -> None:
    path = create_policy("mine", scope="project", project=workspace)
    assert path == workspace / ".purple" / "mine.yaml"
    assert load_policy("mine", project=workspace).resources.processes == 1024
    assert [i.name for i in list_policies(workspace) if i.origin == "project"] == ["mine"]
    with pytest.raises(PolicyError, match="exists"):
        create_policy("mine", scope="project", project=workspace)


@pytest.mark.parametrize("scope", ["user", "project"])
def test_a_created_profile_of_a_shipped_name_extends_that_one(
    scope: Literal["user", "project"], workspace: Path
) -> None:
    shipped = {info.name: load_policy(info.name) for info in list_policies()}
    for name in shipped:
        create_policy(name, scope=scope, project=workspace)
    for name, policy in shipped.items():
        made = load_policy(name, project=workspace)
        assert made.filesystem == policy.filesystem
        assert made.resources == policy.resources


@pytest.mark.parametrize("scope", ["user", "project"])
def test_a_profile_with_which_others_break_is_not_kept(
    scope: Literal["user", "project"], workspace: Path
) -> None:
    with pytest.raises(PolicyError, match="not made, for with it code-assistant"):
        create_policy("base", extends="code-assistant", scope=scope, project=workspace)
    assert {info.origin for info in list_policies(workspace)} == {"shipped"}
    # The control.
    create_policy("base", extends="strict", scope=scope, project=workspace)
    assert load_policy("code-assistant", project=workspace).resources.memory_bytes == 1 << 30


def test_what_a_profile_says_of_itself_is_not_said_of_what_extends_it(tmp_path: Path) -> None:
    heir = "name: heir\nextends: code-assistant\nnetwork: {isolated: false}\n"
    assert "reaches no network" in load_policy("code-assistant").description
    assert load_policy(write(tmp_path, heir)).description == ""
    assert load_policy(write(tmp_path, heir + "description: its own\n")).description == "its own"


def test_what_a_profile_requires_is_in_the_place_of_what_its_parent_does(tmp_path: Path) -> None:
    heir = "name: heir\nextends: base\n"
    assert load_policy(write(tmp_path, heir)).require == load_policy("base").require
    heir += "require: [namespaces, mounts, capabilities, seccomp, network]\n"
    less = load_policy(write(tmp_path, heir))
    assert set(load_policy("base").require) - set(less.require) == {"landlock"}
    # Whoever compares the two is told, as of what allows more.
    assert [str(change) for change in diff(load_policy("base"), less)] == [
        "+ no longer requires layer landlock (require)"
    ]


def test_deny_goes_before_ask_before_allow_and_an_erring_rule_denies(tmp_path: Path) -> None:
    policy = load_policy(
        write(
            tmp_path,
            """
name: rules
tools:
  rules:
    - {tool: shell, when: 'args.command.contains("push")', effect: ask, reason: leaves this machine}
    - {tool: shell, when: 'args.command.contains("--force")', effect: deny, reason: never}
""",
        )
    )
    verdicts = {
        command: decide(policy, tool="shell", args={"command": command}).effect
        for command in ("git status", "git push", "git push --force")
    }
    assert verdicts == {"git status": "allow", "git push": "ask", "git push --force": "deny"}
    assert decide(policy, tool="shell", args={}).effect == "deny"
    assert decide(policy, tool="read_file", args={}).effect == "allow"
