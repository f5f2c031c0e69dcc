"""The command `purple`: statuses, streams, signals, a terminal."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
from pathlib import Path

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
    ],
)
def test_a_mistake_has_its_status_and_sentence(
    workspace: Path, arguments: list[str], status: int, words: str
) -> None:
    run = purple(*arguments, cwd=workspace)
    assert run.returncode == status
    assert words in run.stderr


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
