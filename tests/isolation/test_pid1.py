"""pid 1 by itself, in no namespace: what it executes, restricts and reports, as program and as fork."""

from __future__ import annotations

import errno
import fcntl
import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from purplebox.isolation import CommandNotFound, pid1
from purplebox.isolation.command import Command
from purplebox.isolation.seccomp import compile_filter
from purplebox.policies import load_policy

SOURCES = Path(pid1.__file__).parent
BPF = compile_filter(load_policy("base"))


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_the_bytes_are_what_the_source_assembles_to(machine: str, tmp_path: Path) -> None:
    tools = f"{machine}-linux-gnu-"  # as Debian names them, also the machine's own
    if shutil.which(f"{tools}objcopy") is None:
        pytest.skip(f"needs binutils for {machine}")
    source, made, text = SOURCES / f"pid1_{machine}.S", tmp_path / "o", tmp_path / "bin"
    subprocess.run([f"{tools}as", "-o", made, source], check=True)
    subprocess.run([f"{tools}objcopy", "-O", "binary", "-j", ".text", made, text], check=True)
    assert text.read_bytes() == pid1.code(machine)


START = """
import os, sys
from purplebox.isolation import capabilities, pid1
kind, bpf, *fds = sys.argv[1:]
capabilities.set_no_new_privs()
for target, fd in zip((0, 1, 2, 3, 5, 6, 7), fds):
    os.dup2(int(fd), target)
os.closerange(len(fds) + 1, 1024)
if kind == "fork":
    os.close(5)
    pid1.serve(bytes.fromhex(bpf), restricted=False, groups=len(fds) - 5)
os.execve(kind, ["no-landlock", *(["cgroup"] * (len(fds) - 5))], {})
"""


class Started:
    """A pid 1 that waits for its order, and the pipe that its command writes to."""

    def __init__(
        self, tmp_path: Path, *, forked: bool, bpf: bytes = BPF, groups: Sequence[int] = ()
    ) -> None:
        program = tmp_path / "init"
        if not forked and not program.exists():
            code = pid1.executable()
            if code is None:
                pytest.skip("no assembler source for this machine")
            program.write_bytes(code)
            program.chmod(0o755)
        self.control, theirs = socket.socketpair()
        reader, writer = os.pipe2(os.O_CLOEXEC)
        self.output = os.fdopen(reader, "rb")
        with open("/dev/null", "r+b") as null, open(tmp_path / "filter", "w+b") as file:
            file.write(bpf)
            file.flush()
            # Above what it gives them, as the zygote sees to.
            fds = [
                fcntl.fcntl(fd, fcntl.F_DUPFD, 100)
                for fd in (
                    null.fileno(), writer, null.fileno(), theirs.fileno(), file.fileno(), *groups
                )
            ]  # fmt: skip
        self.process = subprocess.Popen(
            [sys.executable, "-c", START, "fork" if forked else program, bpf.hex(), *map(str, fds)],
            pass_fds=fds,
        )
        theirs.close()
        for fd in (writer, *fds):
            os.close(fd)

    def run(
        self,
        argv: Sequence[str],
        env: Mapping[str, str] | None = None,
        directory: str = "",
        programs: Sequence[str] = (),
    ) -> dict[str, Any]:
        variables = [f"{name}={value}" for name, value in (env or {}).items()]
        command = Command(
            programs=programs or argv[:1], argv=argv, variables=variables, directory=directory
        )
        order = command.order()
        half = len(order) // 2  # as when a socket's buffer is full
        self.control.sendall(pid1.GO + order[:half])
        self.control.sendall(order[half:])
        return self.report()

    def report(self) -> dict[str, Any]:
        said = self.control.recv(4096)
        self.process.wait()
        return pid1.report(said)

    def written(self) -> bytes:
        return self.output.read()


Start = Callable[..., Started]


@pytest.fixture(params=["program", "fork"])
def start(request: pytest.FixtureRequest, tmp_path: Path) -> Generator[Start]:
    made: list[Started] = []

    def make(bpf: bytes = BPF, groups: Sequence[int] = ()) -> Started:
        forked = request.param == "fork"
        made.append(Started(tmp_path, forked=forked, bpf=bpf, groups=groups))
        return made[-1]

    yield make
    for started in made:
        started.control.close()
        started.output.close()
        started.process.wait()


def test_command_environment_and_directory_arrive(tmp_path: Path, start: Start) -> None:
    started = start()
    script = 'echo "$X-$1"; pwd; exit 7'
    argv = ["/bin/sh", "-c", script, "sh", "é \n'"]
    report = started.run(argv, {"X": "=y="}, str(tmp_path))
    assert os.waitstatus_to_exitcode(report["status"]) == 7
    assert started.written().decode() == f"=y=-é \n'\n{tmp_path}\n"


def test_a_long_order_arrives_whole(start: Start) -> None:
    started = start()
    report = started.run(["/bin/sh", "-c", "echo ${#1}", "sh", "x" * 120_000], {"Y": "y" * 120_000})
    assert report["status"] == 0
    assert started.written() == b"120000\n"


def test_as_many_arguments_as_fit_arrive_and_no_more(start: Start) -> None:
    """Pointers to them go behind them, in the same mebibyte."""

    def words(count: int) -> list[str]:
        return ["/bin/sh", "-c", "echo $#", "sh", *["x"] * count]

    fits = ((1 << 20) - 256) // (2 + 8)
    started = start()
    assert started.run(words(fits))["status"] == 0
    assert started.written() == b"%d\n" % fits
    with pytest.raises(CommandNotFound, match="too long") as caught:
        Command(programs=["/bin/sh"], argv=words(fits + 32), variables=(), directory="").order()
    assert caught.value.code == "E2BIG"
    with pytest.raises(CommandNotFound, match="NUL") as caught:
        Command(programs=["/bin/true"], argv=["a\0b"], variables=(), directory="").order()
    assert caught.value.code == "EINVAL"


def test_a_command_killed_by_a_signal_is_told_with_it(start: Start) -> None:
    report = start().run(["/bin/sh", "-c", "kill -TERM $$"])
    assert os.waitstatus_to_exitcode(report["status"]) == -signal.SIGTERM


def test_cpu_time_of_the_command_is_counted(start: Start) -> None:
    loop = "i=0; while [ $i -lt 100000 ]; do i=$((i+1)); done"
    assert start().run(["/bin/sh", "-c", loop])["cpu_seconds"] > 0.01


def test_what_cannot_execute_is_refused_with_its_errno(tmp_path: Path, start: Start) -> None:
    run = start().run
    assert run([str(tmp_path / "nothing")]) == {"refused": "ENOENT"}
    run = start().run
    assert run(["/bin/true"], directory=str(tmp_path / "nowhere")) == {"refused": "ENOENT"}
    run = start().run
    assert run(["/bin/true"], directory=str(tmp_path))["status"] == 0


def test_the_first_that_can_be_executed_is(tmp_path: Path, start: Start) -> None:
    """As execvp(3) goes through PATH, and as it fails."""
    missing, directory = str(tmp_path / "missing"), str(tmp_path)
    plain = tmp_path / "plain"
    plain.write_text("text")
    below = str(plain / "below")
    run = start().run
    assert (
        run(["true"], programs=[missing, directory, below, "/bin/true", "/bin/false"])["status"]
        == 0
    )
    run = start().run
    status = run(["false"], programs=[missing, "/bin/false", "/bin/true"])["status"]
    assert os.waitstatus_to_exitcode(status) == 1
    run = start().run
    assert run(["x"], programs=[missing, below]) == {"refused": "ENOENT"}
    run = start().run
    assert run(["x"], programs=[missing, str(plain), missing]) == {"refused": "EACCES"}
    plain.write_bytes(b"\x7fELF")
    plain.chmod(0o755)
    run = start().run
    assert run(["x"], programs=[missing, str(plain), "/bin/true"]) == {"refused": "ENOEXEC"}


def test_the_filter_holds_for_the_command(start: Start) -> None:
    started = start()
    assert started.run(["/bin/sh", "-c", "grep Seccomp: /proc/self/status"])["status"] == 0
    assert started.written() == b"Seccomp:\t2\n"


def test_without_its_filter_nothing_is_executed(start: Start) -> None:
    for bad in (b"", b"\xff" * 8):  # EINVAL from seccomp(2)
        started = start(bad)
        assert started.report() == {"error": f"pid 1: {os.strerror(errno.EINVAL)}"}


def test_it_moves_itself_into_each_cgroup_or_executes_nothing(start: Start) -> None:
    readers, writers = zip(*(os.pipe() for _ in range(2)), strict=True)  # in their place
    full = os.open("/dev/full", os.O_WRONLY)
    try:
        started = start(groups=writers)
        script = "ls /proc/self/fd | wc -l"  # 0 to 2, and the directory itself
        assert started.run(["/bin/sh", "-c", script])["status"] == 0
        assert started.written() == b"4\n"
        assert [os.read(reader, 10) for reader in readers] == [b"0", b"0"]
        started = start(groups=(writers[0], full))
        assert started.report() == {"error": f"pid 1: {os.strerror(errno.ENOSPC)}"}
    finally:
        for fd in (*readers, *writers, full):
            os.close(fd)


def test_it_has_no_stack_while_it_waits(tmp_path: Path) -> None:
    """Where the kernel has put it so that all of the range is there: one in some thousand lies too close to
    the end of the address space, and in User Mode Linux each second one."""
    assert any(_waits_without_a_stack(tmp_path) for _ in range(40))


def _waits_without_a_stack(tmp_path: Path) -> bool:
    reader, writer = os.pipe2(os.O_CLOEXEC)
    full = fcntl.fcntl(writer, fcntl.F_GETPIPE_SZ)
    os.write(writer, bytes(full))
    started = Started(tmp_path, forked=False, groups=[writer])

    def status() -> dict[str, str]:
        lines = Path(f"/proc/{started.process.pid}/status").read_text().splitlines()
        return dict(line.split(":\t", 1) for line in lines)

    try:
        while status()["Name"] != "init":
            time.sleep(0.001)
        assert status()["VmStk"].split()[0] != "0"  # it waits for room in the pipe
        os.read(reader, full)
        for _ in range(200):
            if status()["VmStk"].split()[0] == "0":
                return True
            time.sleep(0.005)
        return False
    finally:
        os.close(reader)
        os.close(writer)
        started.control.close()
        started.output.close()
        started.process.wait()


@pytest.mark.parametrize("said", [b"", pid1.GO, pid1.GO + b"half an order"])
def test_it_ends_when_its_socket_is_closed(start: Start, said: bytes) -> None:
    started = start()
    started.control.sendall(said)
    started.control.close()
    # Its report has nobody to go to. The kernel shields pid 1 of a namespace from SIGPIPE.
    assert started.process.wait() in (0, -signal.SIGPIPE)
    assert started.written() == b""


def test_the_command_has_the_limits_that_were_set_before_it_was_let_go(start: Start) -> None:
    started = start()
    resource.prlimit(started.process.pid, resource.RLIMIT_NOFILE, (77, 77))
    assert started.run(["/bin/sh", "-c", "ulimit -n"])["status"] == 0
    assert started.written() == b"77\n"


def test_killed_it_reports_nothing() -> None:
    assert pid1.report(b"") == {}
