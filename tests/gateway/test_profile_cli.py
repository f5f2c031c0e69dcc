"""`purple profile explain | check | diff | delete`."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from purplebox.gateway.cli import main
from purplebox.policies import load_policy

RULES = """\
name: p
extends: base
filesystem: {read: [/usr/share]}
tools:
  rules:
    - {tool: shell, when: 'args.command.contains("push")', effect: ask, reason: pushes leave}
    - {when: "paths.exists(p, glob(p, 'secret/**'))", effect: deny, reason: secret}
  arguments: {s__get: {path: read, to: write, url: url}}
"""


@pytest.fixture
def here(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(workspace)
    (workspace / "p.yaml").write_text(RULES)
    (workspace / "link").symlink_to("secret")
    return workspace


def explained(capsys: pytest.CaptureFixture[str], tool: str, server: str = "", **args: str) -> dict[str, object]:  # fmt: skip
    argv = ["-p", "./p.yaml", "--tool", tool, "--server", server, "--args", json.dumps(args)]
    assert main(["profile", "explain", *argv, "--json"]) == 0
    said: dict[str, object] = json.loads(capsys.readouterr().out)
    return said


def test_a_call_is_explained_without_running(here: Path, capsys: pytest.CaptureFixture[str]) -> None:  # fmt: skip
    said = explained(capsys, "write_file", path="a/../new", content="x")
    assert (said["effect"], said["rule"], said["notes"]) == ("allow", "tools.default", {})
    assert said["grant"] == {"scope": "call", "read": [], "write": [f"{here}/new"], "hosts": []}
    assert not (here / "new").exists()
    said = explained(capsys, "shell", command="git push")
    assert (said["effect"], said["reason"]) == ("ask", "pushes leave")
    assert said["grant"] == {"scope": "policy", "read": [], "write": [], "hosts": []}


def test_a_link_is_explained_by_where_it_leads(here: Path, capsys: pytest.CaptureFixture[str]) -> None:  # fmt: skip
    said = explained(capsys, "read_file", path="link/key")
    assert (said["effect"], said["rule"]) == ("deny", "tools.rules[1]")
    assert said["reason"] == f"secret ({here}/link/key leads to {here}/secret/key)"
    assert "sandbox" not in said


@pytest.mark.parametrize(
    ("args", "effect", "rule"),
    [
        ({"path": "a"}, "allow", "tools.default"),
        ({"path": "/usr/share/x"}, "allow", "tools.default"),
        ({"path": "/tmp/x", "to": "/tmp/y"}, "allow", "tools.default"),
        ({"path": "/srv/x"}, "deny", "filesystem.read"),
        ({"path": "/etc/shadow"}, "deny", "filesystem.read"),
        ({"to": "/usr/share/x"}, "deny", "filesystem.write"),
        ({"to": "sub/x"}, "allow", "tools.default"),
        ({"url": "https://a.example/"}, "deny", "network.isolated"),
        ({"undeclared": "/etc/shadow"}, "allow", "tools.default"),
    ],
)
def test_what_a_server_is_handed_is_within_its_policy(
    here: Path, capsys: pytest.CaptureFixture[str], args: dict[str, str], effect: str, rule: str
) -> None:
    said = explained(capsys, "get", "s", **args)
    assert (said["effect"], said["rule"]) == (effect, rule)
    assert said["code"] == ("allowed" if effect == "allow" else "outside_grant")
    assert explained(capsys, "other", "s", **args)["effect"] == "allow"


def test_flow_is_explained(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flow = "flow: [{after: {read: 'private/**'}, then: {tool: {'write_*': ask}}}]\n"
    (here / "p.yaml").write_text(RULES + flow)
    said = explained(capsys, "read_file", path="private/x")
    assert said["notes"] == {"flow": f"marks its session: read {here}/private/x"}
    said = explained(capsys, "write_file", path="y", content="")
    assert said["notes"] == {"flow": "ask (flow[0]) once a session is marked"}
    assert explained(capsys, "read_file", path="y")["notes"] == {}


def test_the_text_names_verdict_rule_and_sandbox(here: Path, capsys: pytest.CaptureFixture[str]) -> None:  # fmt: skip
    args = ["profile", "explain", "-p", "./p.yaml", "--tool", "read_file", "--args"]
    assert main([*args, '{"path": "/srv/x"}']) == 0
    text = capsys.readouterr().out
    for words in ("verdict  allow", "tools.default of policy p", "writes   nothing", "but      "):
        assert words in text
    assert main([*args, '{"path": "secret/x"}']) == 0
    assert "sandbox  none: it would not run" in capsys.readouterr().out
    for wrong in ("{", "[]", '{"path": "a", "Path": "b"}'):
        assert main([*args, wrong]) == 2


@pytest.mark.parametrize(
    ("tool", "words"),
    [
        ("shel", "there is no built-in tool shel; did you mean shell?"),
        ("zzz", "there is no built-in tool zzz; there are shell, "),
        ("github__push", "--server github --tool push"),
    ],
)
def test_a_tool_that_there_is_not_has_no_verdict(
    tool: str, words: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["profile", "explain", "-p", "./p.yaml", "--tool", tool]) == 2
    said = capsys.readouterr()
    assert (said.out, words in said.err) == ("", True)
    explained(capsys, "push", "github")  # the control: another server's tool may have any name


def test_check_says_what_it_finds(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["profile", "check", "./p.yaml"]) == 0
    wrong = 'name: w\nextends: base\nsyscalls: {deny: [futex], allow: [mount]}\nfilesystem: {read: ["~"]}\n'
    (here / "w.yaml").write_text(wrong)
    assert main(["profile", "check", "./w.yaml"]) == 1
    said = capsys.readouterr().out
    assert "syscalls.deny: futex: without it no shell" in said
    assert "syscalls.allow: mount: no sandbox may make it" in said
    assert "filesystem.read[0]: too wide: ~ " in said


def test_diff_has_the_statuses_of_diff(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["profile", "diff", "base", "base"]) == 0
    assert main(["profile", "diff", "base", "./p.yaml"]) == 1
    assert "+ may read /usr/share (filesystem.read)" in capsys.readouterr().out


def test_only_ones_own_profiles_are_deleted(here: Path, capsys: pytest.CaptureFixture[str]) -> None:  # fmt: skip
    for name, extends in (("mine", "base"), ("heir", "mine")):
        assert main(["profile", "create", name, "--extends", extends]) == 0
    assert main(["profile", "create", "base", "--project"]) == 0
    for name, words in (("strict", "belongs to Purple"), ("mine", "heir.yaml extends it"), ("../x", "no profile name")):  # fmt: skip
        assert main(["profile", "delete", name]) == 2
        assert words in capsys.readouterr().err
    for arguments in (["heir"], ["mine"], ["base", "--project"]):
        assert main(["profile", "delete", *arguments]) == 0
    assert main(["profile", "delete", "mine"]) == 2
    shutil.rmtree(here / ".purple")
    assert load_policy("base", project=here).name == "base"
