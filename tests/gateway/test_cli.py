"""The command `purple`: statuses, streams, signals, a terminal."""

from __future__ import annotations

import json
import os
import pty
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

PURPLE = [sys.executable, "-m", "purplebox.gateway.cli"]


def purple(*arguments: str, cwd: Path, stdin: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*PURPLE, *arguments], cwd=cwd, input=stdin, capture_output=True, text=True, check=False
    )


def test_streams_and_status_pass_through(workspace: Path) -> None:
    run = purple("run", "--", "sh", "-c", "cat; echo err >&2; exit 9", cwd=workspace, stdin="in")
    assert (run.returncode, run.stdout, run.stderr) == (9, "in", "err\n")
    recorded = purple("audit", "tail", "--json", cwd=workspace).stdout.splitlines()
    begin, end = (json.loads(line) for line in recorded)
    assert begin["arguments"]["argv"][0] == "sh"
    assert (end["reason"], end["exit_code"]) == ("completed", 9)


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (["run", "--"], 2, "no command"),
        (["run", "-p", "nope", "--", "true"], 2, "no profile named 'nope'"),
        (["run", "-w", "nowhere", "--", "true"], 2, "nowhere is not a directory"),
        (["run", "--", "nonesuch"], 127, "nonesuch"),
        (["serve", "-w", "nowhere"], 2, "nowhere is not a directory"),
        (["profile", "show", "strikt"], 2, "did you mean strict"),
        (["run", "--", "sh", "-c", "kill -9 $$"], 137, "SIGKILL"),
        (["audit", "verify"], 2, "cannot read"),
        (["audit", "tail", "-n", "-1"], 2, "'-1' is no number of lines"),
        (["serve", "--http", "localhost:99999"], 2, "--http localhost:99999: ports end at 65535"),
        (["serve", "--http", "127.0.0.1:0000099999"], 2, "ports end at 65535"),
        (["wrap", "--http", "127.0.0.1:65536", "--", "true"], 2, "ports end at 65535"),
    ],
)
def test_a_mistake_has_its_status_and_sentence(
    workspace: Path, arguments: list[str], status: int, words: str
) -> None:
    run = purple(*arguments, cwd=workspace)
    assert run.returncode == status
    assert words in run.stderr


def test_the_newest_calls_have_server_and_status(workspace: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    entries: list[dict[str, Any]] = [
        {"event": "begin", "call_id": "a", "tool": "shell", "server": "", "arguments": {}},
        {"event": "end", "call_id": "a", "reason": "completed", "exit_code": 3},
        {"event": "begin", "call_id": "b", "tool": "get", "server": "files", "arguments": {}},
        {"event": "end", "call_id": "b", "reason": "completed", "exit_code": 0},
    ]
    log.write_text("".join(json.dumps(entry) + "\n" for entry in entries))

    def tail(*more: str) -> str:
        return purple("audit", "tail", "--path", str(log), *more, cwd=workspace).stdout

    first, second = tail().splitlines()
    assert "  shell  " in first
    assert "  completed (exit status 3)  " in first
    assert "  files/get  " in second
    assert "  completed  " in second
    assert tail("-n", "1") == second + "\n"
    assert len(tail("-n", "3", "--json").splitlines()) == 3
    assert tail("-n", "9") == tail()
    assert tail("-n", "0") == tail("-n", "0", "--json") == ""


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"mcpServers": {"a": {"command": "x",,}}}', ":1:38: expected the node content"),
        ('{"a": [1,\n "s3cret"', ":2:10: expected ',' or ']'"),
        ("a: \x01", "unacceptable character"),
    ],
)
def test_a_broken_configuration_is_one_line_with_its_place(
    workspace: Path, text: str, words: str
) -> None:
    (workspace / "c.json").write_text(text)
    run = purple("serve", "--config", "c.json", cwd=workspace)
    assert run.returncode == 2
    assert f"c.json{words}" in run.stderr or f"c.json: {words}" in run.stderr
    assert run.stderr.count("\n") == 1
    assert "s3cret" not in run.stderr


def test_a_port_in_use_is_named_and_a_free_one_says_who_can_use_it(workspace: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        for arguments in (["serve"], ["wrap", "--", "true"]):
            http = [arguments[0], "--http", f"127.0.0.1:{port}", *arguments[1:]]
            run = purple(*http, cwd=workspace)
            assert run.returncode == 2
            said = f"purple: cannot listen on 127.0.0.1, port {port}: Address already in use\n"
            assert run.stderr.endswith(said)
    for token, warned in (("", True), ("a-token-of-its-own", False)):
        serve = subprocess.Popen(
            [*PURPLE, "serve", "--http", "127.0.0.1:0"], cwd=workspace, text=True,
            stderr=subprocess.PIPE, env={**os.environ, "PURPLE_HTTP_TOKEN": token},
        )  # fmt: skip
        assert serve.stderr is not None
        said = ""
        while "listening on port" not in said:
            line = serve.stderr.readline()
            assert line, said
            said += line
        serve.terminate()
        serve.communicate(timeout=120)
        assert ("every user of this host can use what is served" in said) == warned


def test_what_the_network_refused_is_said_at_the_end(workspace: Path) -> None:
    (workspace / "p.yaml").write_text(
        "name: p\nextends: base\nnetwork: {isolated: false, allow: [{host: a.test}]}\n"
    )
    look = "import socket, sys\ntry: socket.getaddrinfo(sys.argv[1], 443)\nexcept OSError: pass"

    def run(host: str) -> tuple[int, str]:
        done = purple("run", "-p", "./p.yaml", "--", "python3", "-c", look, host, cwd=workspace)
        return done.returncode, done.stderr

    status, said = run("b.test")
    assert status == 0
    assert said.startswith("purple: Stopped: b.test is not") and "host_not_allowed" in said
    assert "ask the person" in said and said.count("\n") == 1
    assert run("a.test") == (0, "")


def test_time_limit_is_124(workspace: Path) -> None:
    (workspace / "p.yaml").write_text("name: p\nextends: base\nresources: {timeout: 0.5}\n")
    run = purple("run", "-p", "./p.yaml", "--", "sleep", "60", cwd=workspace)
    assert run.returncode == 124


def test_signals_reach_the_command(workspace: Path) -> None:
    script = "trap 'echo got; exit 5' TERM; echo ready; while :; do sleep 0.05; done"
    run = subprocess.Popen(
        [*PURPLE, "run", "--", "sh", "-c", script], cwd=workspace, stdout=subprocess.PIPE, text=True
    )
    assert run.stdout is not None
    with run.stdout:
        assert run.stdout.readline() == "ready\n"
        run.send_signal(signal.SIGTERM)
        assert run.stdout.readline() == "got\n"
    assert run.wait() == 5


def test_a_terminal_is_a_terminal_but_not_the_callers(workspace: Path) -> None:
    master, slave = pty.openpty()
    run = subprocess.Popen(
        [*PURPLE, "run", "--", "sh", "-c", "test -t 0 && test -t 1 && read x && echo got $x"],
        cwd=workspace, stdin=slave, stdout=slave, stderr=slave, start_new_session=True,
    )  # fmt: skip
    os.write(master, b"word\n")
    seen = b""
    while b"got word" not in seen:
        seen += os.read(master, 1024)
    assert run.wait() == 0
    os.close(master)
    os.close(slave)


def test_profiles_are_made_listed_and_shown(workspace: Path) -> None:
    assert purple("profile", "create", "my-agent", cwd=workspace).returncode == 0
    assert "my-agent" in purple("profile", "list", cwd=workspace).stdout
    assert "extends: code-assistant" in purple("profile", "show", "my-agent", cwd=workspace).stdout
    assert purple("profile", "check", "my-agent", cwd=workspace).returncode == 0


def test_doctor_finds_this_host_good(workspace: Path) -> None:
    run = purple("doctor", cwd=workspace)
    assert run.returncode == 0
    assert "landlock" in run.stdout
