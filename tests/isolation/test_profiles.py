"""The shipped profiles: each does its work, and refuses what it must, beside a control."""

from __future__ import annotations

import asyncio
import http.client
import json
import os
import shutil
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from purplebox import Gateway
from purplebox.isolation import Engine, Result
from purplebox.policies import Policy, list_policies, load_policy
from purplebox.policies.hosts import Hosts
from purplebox.policies.load import _SHIPPED

SHIPPED = [info.name for info in list_policies() if info.origin == "shipped"]


def run(profile: str | Policy, workspace: Path, *commands: str) -> list[Result]:
    policy = load_policy(profile) if isinstance(profile, str) else profile

    async def go() -> list[Result]:
        async with Engine(policy, workspace) as engine:
            return [await engine.run(["bash", "-c", command]) for command in commands]

    return asyncio.run(go())


def done(profile: str, workspace: Path, *commands: str) -> list[str]:
    """What commands print that must succeed."""
    results = run(profile, workspace, *commands)
    for command, result in zip(commands, results, strict=True):
        assert result.exit_code == 0, (command, result.stdout, result.stderr)
    return [result.stdout.decode() for result in results]


def test_the_six_are_shipped_each_with_the_line_that_runs_it() -> None:
    wanted = {"code-assistant", "ml-training", "web-scraper", "ci-build", "llm-inference", "security-scanner"}  # fmt: skip
    assert wanted | {"base", "strict"} <= set(SHIPPED)
    for name in SHIPPED:
        text = (_SHIPPED / f"{name}.yaml").read_text()
        assert f"-p {name} -- " in text, name
        policy = load_policy(name)
        assert policy.name == name
        assert policy.description.endswith("."), name
        assert policy.unsupported() == []


# What no profile lets happen, each with the errno it meets: tests/isolation/test_sandbox.py has the controls.
CALLS = """python3 -c '
import ctypes, errno
libc = ctypes.CDLL(None, use_errno=True)
for name, number, args in (
    ("ptrace", 101, (0, 0, 0, 0)), ("bpf", 321, (0, 0, 0)), ("io_uring_setup", 425, (8, 0)),
    ("init_module", 175, (0, 0, 0)), ("mount", 165, (0, 0, 0, 0, 0)), ("keyctl", 250, (0, 0)),
    ("perf_event_open", 298, (0, 0, 0, 0, 0)), ("userfaultfd", 323, (0,)), ("unshare", 272, (0x10000000,)),
    ("kexec_load", 246, (0, 0, 0, 0)), ("getpid", 39, ())):
    r = libc.syscall(number, *args)
    print(name, "ok" if r >= 0 else errno.errorcode[ctypes.get_errno()])'"""


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="numbers of x86_64")
@pytest.mark.parametrize("profile", ["code-assistant", "ml-training", "llm-inference", "security-scanner"])  # fmt: skip
def test_dangerous_system_calls_are_refused(profile: str, workspace: Path) -> None:
    (said,) = done(profile, workspace, CALLS)
    verdicts = dict(line.split() for line in said.splitlines())
    assert verdicts.pop("getpid") == "ok"
    assert set(verdicts.values()) == {"EPERM"}, verdicts


CONNECT = """python3 -c '
import errno, socket
s = socket.socket(); s.settimeout(60)
print(errno.errorcode.get(s.connect_ex(("127.0.0.1", {port}))))'"""


@pytest.mark.parametrize("profile", ["code-assistant", "ml-training", "llm-inference", "security-scanner"])  # fmt: skip
def test_the_host_is_out_of_reach(profile: str, workspace: Path, tmp_path: Path) -> None:
    (tmp_path / "outside").write_text("x")
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port), 60):
            pass  # the control: it listens
        network, file = run(
            profile, workspace, CONNECT.format(port=port), f"cat {tmp_path}/outside"
        )
    assert network.stdout == b"ECONNREFUSED\n"
    assert b"No such file" in file.stderr


def test_code_assistant_edits_builds_and_tests(workspace: Path) -> None:
    (workspace / ".env").write_text("TOKEN=1")
    (workspace / "test_x.py").write_text("import unittest\nclass T(unittest.TestCase):\n def test(self): self.assertEqual(1, 1)\n")  # fmt: skip
    subprocess.run(["git", "init", "-q", workspace], check=True)  # as a person has it
    git = "git -c user.name=a -c user.email=a@b"
    commit = (
        f"git add test_x.py && {git} commit -qm one && sed -i s/T/U/ test_x.py && git diff --stat"
    )
    changed, _, _ = done(
        "code-assistant", workspace, commit, "python3 -m unittest -q test_x", "grep -rn unittest ."
    )
    assert "1 file changed" in changed
    hidden, hook, kept = run(
        "code-assistant", workspace, "cat .env", "echo x > .git/hooks/pre-commit", "cat test_x.py"
    )
    assert (hidden.stdout, hidden.exit_code) == (b"", 0)
    assert b"Read-only file system" in hook.stderr
    assert b"class U" in kept.stdout


def test_code_assistant_commits_as_whom_the_environment_names(
    workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    subprocess.run(["git", "init", "-q", workspace], check=True)
    for name in load_policy("code-assistant").environment.pass_:
        monkeypatch.delenv(name, raising=False)
    commit = "git commit -q --allow-empty -m one && git log --format='%an %ce'"
    (nobody,) = run("code-assistant", workspace, commit)
    assert nobody.exit_code == 128 and b"Please tell me who you are" in nobody.stderr
    for name, value in (("NAME", "A Person"), ("EMAIL", "a@example.org")):
        monkeypatch.setenv(f"GIT_AUTHOR_{name}", value)
        monkeypatch.setenv(f"GIT_COMMITTER_{name}", value)
    assert done("code-assistant", workspace, commit) == ["A Person a@example.org\n"]


TRAINING = """
import array, multiprocessing as mp, pathlib, pickle, random
from multiprocessing import shared_memory

def work(arguments):  # a worker reads a batch that lies in shared memory, and gives back a gradient
    name, start, weight = arguments
    memory = shared_memory.SharedMemory(name)
    batch = memoryview(memory.buf).cast("d")[start : start + 256]
    gradient = sum(2 * (weight * x - 3 * x) * x for x in batch) / len(batch)
    batch.release(); memory.close()
    return gradient

if __name__ == "__main__":
    memory = shared_memory.SharedMemory(create=True, size=8 * 4096)
    data = memoryview(memory.buf).cast("d")
    data[:] = array.array("d", [random.random() for _ in range(4096)])
    weight = 0.0
    with mp.Pool(4) as pool:
        for step in range(30):
            starts = [(memory.name, 256 * i, weight) for i in range(16)]
            weight -= 0.5 * sum(pool.map(work, starts)) / 16
            pathlib.Path("checkpoint.pkl").write_bytes(pickle.dumps({"step": step, "weight": weight}))
    data.release(); memory.close(); memory.unlink()
    print(round(weight, 2))
"""


def test_ml_training_trains_with_workers_and_leaves_a_checkpoint(workspace: Path) -> None:
    (workspace / "train.py").write_text(TRAINING)
    assert done("ml-training", workspace, "python3 -W ignore train.py") == ["3.0\n"]
    assert (workspace / "checkpoint.pkl").stat().st_size > 0
    policy = load_policy("ml-training")
    assert policy.resources.memory_bytes == 32 << 30
    assert policy.resources.cpu_cores == pytest.approx(0.9 * len(os.sched_getaffinity(0)), abs=0.01)


SERVING = """
import http.server, json, mmap, sys

class Handler(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        prompt = json.loads(self.rfile.read(int(self.headers["content-length"])))["prompt"]
        body = json.dumps({"text": prompt + weights[:5].decode()}).encode()
        self.send_response(200); self.send_header("content-length", str(len(body))); self.end_headers()
        self.wfile.write(body)
    def log_message(self, *_): pass

with open("weights", "rb") as file:
    weights = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
server = http.server.ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Handler)
print("ready", flush=True)
server.serve_forever()
"""


def test_llm_inference_serves_a_model_that_it_cannot_change(
    workspace: Path, free_port: Callable[[], int]
) -> None:
    (workspace / "serve.py").write_text(SERVING)
    (workspace / "weights").write_bytes(b"world" * 100_000)
    policy = load_policy("llm-inference")
    assert policy.network.listen == (8000,)
    port = free_port()
    network = policy.network.model_copy(update={"listen": (port,)})
    policy = policy.model_copy(update={"network": network})

    def ask() -> str:
        client = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
        client.request("POST", "/v1/completions", json.dumps({"prompt": "hello "}))
        answer: str = json.loads(client.getresponse().read())["text"]
        client.close()
        return answer

    async def serve() -> str:
        ready = asyncio.Event()

        def heard(name: str, data: bytes) -> None:
            ready.set()

        async with Engine(policy, workspace) as engine:
            argv = ["python3", "serve.py", str(port)]
            server = asyncio.create_task(engine.run(argv, on_output=heard))
            await ready.wait()
            answer = await asyncio.to_thread(ask)
            server.cancel()
            await asyncio.gather(server, return_exceptions=True)
        return answer

    assert asyncio.run(serve()) == "hello world"
    (denied,) = run("llm-inference", workspace, "echo x >> weights")
    assert b"Read-only file system" in denied.stderr
    assert run("base", workspace, "echo x >> weights")[0].exit_code == 0


needs_compiler = pytest.mark.skipif(
    not (shutil.which("gcc") and shutil.which("make")), reason="gcc and make are not installed"
)


@needs_compiler
def test_ci_build_compiles_links_tests_and_packs(workspace: Path) -> None:
    (workspace / "a.c").write_text('#include <stdio.h>\nint main(void) { puts("built"); }\n')
    (workspace / "Makefile").write_text("all: a\n\t./a > out\na: a.c\n\t$(CC) -O1 -o a a.c\n")
    (workspace / "pkg.py").write_text("X = 1\n")
    said = done(
        "ci-build", workspace,
        "make -sj4 && cat out && test $CI = true",
        "python3 -m venv --without-pip env && env/bin/python -c 'import pkg; print(pkg.X)'",
        "tar czf dist.tgz a pkg.py && tar tzf dist.tgz | wc -l",
        "set -m; (trap '' TERM; sleep 0.1) & wait; echo $?",
    )  # fmt: skip
    assert said == ["built\n", "1\n", "2\n", "0\n"]


def test_ci_build_reaches_registries_and_no_place_to_publish(workspace: Path) -> None:
    hosts = Hosts(load_policy("ci-build").network)
    for name in ("pypi.org", "files.pythonhosted.org", "registry.npmjs.org", "github.com", "raw.githubusercontent.com"):  # fmt: skip
        assert hosts.decide_name(name, 443).allowed, name
        assert not hosts.decide_name(name, 80).allowed
    for name in ("upload.pypi.org", "example.org", "evil.github.com", "api.github.com", "localhost"):  # fmt: skip
        assert not hosts.decide_name(name, 443).allowed, name
    look = "python3 -c 'import socket; socket.getaddrinfo(\"example.org\", 443)'"
    (refused,) = run("ci-build", workspace, look)
    assert b"gaierror" in refused.stderr


def test_security_scanner_sees_all_changes_nothing_and_records_all(workspace: Path) -> None:
    (workspace / "secrets").mkdir()
    for name in (".env", "secrets/key", "a.py"):
        (workspace / name).write_text("password = hunter2\n")
    (found,) = done("security-scanner", workspace, "grep -rl hunter2 . | sort")
    assert found.split() == ["./.env", "./a.py", "./secrets/key"]
    (denied,) = run("security-scanner", workspace, "rm a.py || echo x > a.py")
    assert b"Read-only file system" in denied.stderr
    log = workspace.parent / "log"
    with Gateway("security-scanner", workspace, audit_log=log).sync() as gateway:
        arguments: dict[str, Any] = {"path": ".env", "pattern": "hunter2"}
        assert not gateway.call("search_text", arguments).is_error
        for tool, arguments in (
            ("write_file", {"path": "x", "content": ""}), ("delete", {"path": "a.py"}),
            ("move", {"source": "a.py", "destination": "b"}),
            ("edit_file", {"path": "a.py", "old_text": "p", "new_text": "q"}),
        ):  # fmt: skip
            outcome = gateway.call(tool, arguments)
            assert (outcome.reason, outcome.decision.reason) == ("policy_denied", "a scan changes nothing")  # fmt: skip
    record = log.read_text()
    assert record.count('"output":') == 5
    assert "password = hunter2" in record


def test_strict_writes_nowhere_but_its_own_tmp(workspace: Path) -> None:
    engine_less = load_policy("strict").model_copy(update={"require": load_policy("base").require})
    (workspace / "s.py").write_text("open('/tmp/x', 'w').write('1'); print(open('/tmp/x').read())")
    fine, denied = run(engine_less, workspace, "python3 s.py", "echo x > y")
    assert fine.stdout == b"1\n"
    assert b"Read-only file system" in denied.stderr
