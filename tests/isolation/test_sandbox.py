"""What holds inside a sandbox, each denial beside its control."""

from __future__ import annotations

import asyncio
import os
import shutil
import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeVar

import pytest

from purplebox.isolation import (
    CommandNotFound,
    EnforcementError,
    Engine,
    OperationError,
    Result,
    SetupError,
)
from purplebox.isolation.plan import compile_plan
from purplebox.isolation.system import ETC
from purplebox.policies import Policy, load_policy

T = TypeVar("T")
BASE = load_policy("base")


def in_engine(policy: Policy, workspace: Path, body: Callable[[Engine], Awaitable[T]]) -> T:
    async def go() -> T:
        async with Engine(policy, workspace) as engine:
            return await body(engine)

    return asyncio.run(go())


def shell(workspace: Path, command: str, policy: Policy = BASE) -> Result:
    return in_engine(policy, workspace, lambda engine: engine.run(["sh", "-c", command]))


def with_resources(**limits: object) -> Policy:
    return BASE.model_copy(update={"resources": BASE.resources.model_copy(update=limits)})


def test_status_streams_and_workspace_pass_through(workspace: Path) -> None:
    result = shell(workspace, "pwd; echo no >&2; echo hi > new; exit 7")
    assert (result.exit_code, result.reason) == (7, "exited")
    assert result.stdout.decode() == f"{workspace}\n"
    assert result.stderr == b"no\n"
    owner = workspace.stat()
    made = (workspace / "new").stat()
    assert (made.st_uid, made.st_gid) == (owner.st_uid, owner.st_gid)


def test_payload_holds_no_privilege(workspace: Path) -> None:
    text = shell(workspace, "cat /proc/self/status; cat /proc/self/uid_map").stdout.decode()
    fields = dict(line.split(":\t", 1) for line in text.splitlines() if ":\t" in line)
    for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
        assert int(fields[name], 16) == 0
    assert (fields["NoNewPrivs"], fields["Seccomp"]) == ("1", "2")
    assert text.splitlines()[-1].split()[1] != "0"  # on the host it is not root


def test_a_command_inherits_its_three_streams_and_nothing_else(workspace: Path) -> None:
    look = "n=0; while [ $n -lt 200 ]; do [ -e /proc/self/fd/$n ] && echo $n; n=$((n+1)); done"

    async def several(engine: Engine) -> list[Result]:
        return await asyncio.gather(*(engine.run(["sh", "-c", look]) for _ in range(4)))

    for result in in_engine(BASE, workspace, several):
        assert result.stdout == b"0\n1\n2\n"


def test_only_its_own_processes_are_visible(workspace: Path) -> None:
    listed = shell(workspace, "echo /proc/[0-9]*").stdout.decode().split()
    assert listed == ["/proc/1", "/proc/2"]
    assert b"Permission denied" in shell(workspace, "cat /proc/1/environ").stderr


def test_host_files_are_invisible_and_a_granted_one_is_not(workspace: Path, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.mkdir()
    (secret / "key").write_text("s3cret")
    assert b"No such file or directory" in shell(workspace, f"cat {secret}/key").stderr
    filesystem = BASE.filesystem.model_copy(update={"read": (str(secret),)})
    granted = BASE.model_copy(update={"filesystem": filesystem})
    assert shell(workspace, f"cat {secret}/key", granted).stdout == b"s3cret"
    assert b"Read-only file system" in shell(workspace, f"echo x > {secret}/key", granted).stderr


def test_system_is_read_only_and_the_workspace_is_not(workspace: Path) -> None:
    for place in ("/usr/x", "/etc/x", "/x", "/proc/sys/kernel/core_pattern"):
        error = shell(workspace, f"echo x > {place}").stderr.decode()
        assert "Read-only file system" in error or "Permission denied" in error, place
    assert shell(workspace, "echo x > here && echo x > /tmp/there").exit_code == 0


def test_files_of_etc_are_the_hosts_and_its_secrets_are_not_there(workspace: Path) -> None:
    files = [f"/etc/{name}" for name in ETC if os.path.isfile(f"/etc/{name}")]
    written = shell(workspace, f"cat {' '.join(files)}").stdout
    assert written == b"".join(Path(file).read_bytes() for file in files)
    # Python compiles a module anew whenever its time is not the one in its .pyc, as that of /etc's.
    times = shell(workspace, f"stat -L --format %Y {' '.join(files)}").stdout.split()
    assert [int(time) for time in times] == [int(os.stat(file).st_mtime) for file in files]
    # Copies belong to whom the view was built by: what makes them read-only is not their mode alone.
    error = shell(workspace, "chmod u+w /etc/passwd; echo x > /etc/passwd").stderr
    assert error.count(b"Read-only file system") + error.count(b"Permission denied") == 2
    assert b"No such file or directory" in shell(workspace, "cat /etc/shadow").stderr


def test_protected_paths_are_read_only_at_run_time(workspace: Path) -> None:
    (workspace / ".git" / "hooks").mkdir(parents=True)
    (workspace / ".git" / "config").write_text("[core]\n")
    for path in (".git/config", ".git/hooks/pre-commit"):
        assert b"Read-only file system" in shell(workspace, f"echo x > {path}").stderr
    assert shell(workspace, "echo x > .git/description").exit_code == 0


def test_hidden_files_show_nothing(workspace: Path) -> None:
    (workspace / "sub").mkdir()
    for name in (".env", "sub/.env"):
        (workspace / name).write_text("TOKEN=1")
    assistant = load_policy("code-assistant")
    assert shell(workspace, "cat .env sub/.env", assistant).stdout == b""
    assert shell(workspace, "cat .env sub/.env").stdout == b"TOKEN=1TOKEN=1"


CONNECT = """python3 -c '
import errno, socket, sys
s = socket.socket(); s.settimeout(60)
print(errno.errorcode.get(s.connect_ex(("127.0.0.1", {port}))))'"""


def test_the_hosts_loopback_is_unreachable_on_a_live_port(workspace: Path) -> None:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port), 60):
            pass  # the control: it listens
        assert shell(workspace, CONNECT.format(port=port)).stdout == b"ECONNREFUSED\n"
    outside = CONNECT.format(port=80).replace("127.0.0.1", "192.0.2.1")
    assert shell(workspace, outside).stdout == b"ENETUNREACH\n"


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("l.unshare(0x10000000)", "EPERM"),
        ("l.ptrace(0, 0, 0, 0)", "EPERM"),
        ("l.mount(b'x', b'/tmp', b'tmpfs', 0, None)", "EPERM"),
        ("l.syscall(425, 8, 0)", "EPERM"),  # io_uring_setup
        ("l.syscall(435, 0, 0)", "ENOSYS"),  # clone3
        ("l.socket(40, 1, 0)", "EPERM"),  # AF_VSOCK
        ("l.socket(38, 5, 0)", "EPERM"),  # AF_ALG
        ("l.ioctl(0, 0x5412, b'x')", "EPERM"),  # TIOCSTI
        ("l.ioctl(0, ctypes.c_ulong(0x541C | 1 << 32), b'x')", "EPERM"),  # TIOCLINUX, high bits set
        ("l.ioctl(0, 0x5413, b'x' * 8)", "ENOTTY"),  # TIOCGWINSZ: the filter lets it through
        ("l.socket(2, 1, 0)", "ok"),
    ],
)
def test_system_calls(workspace: Path, code: str, expected: str) -> None:
    program = f"import ctypes, errno; l = ctypes.CDLL(None, use_errno=True); r = {code}; print('ok' if r >= 0 else errno.errorcode[ctypes.get_errno()])"  # fmt: skip
    result = in_engine(BASE, workspace, lambda e: e.run(["python3", "-c", program]))
    assert result.stdout.decode().strip() == expected, result.stderr


SETUID = """
import os, stat, sys
def said(do):
    try:
        do()
    except OSError as error:
        return os.strerror(error.errno)
    return "ok"
def made():
    fd = os.open("opened", os.O_CREAT | os.O_RDWR, 0o6755)
    os.write(fd, b"x")
    os.close(fd)
open("file", "w").close(); os.mkdir("directory")
print(said(lambda: os.chmod("file", 0o4755)), said(lambda: os.chmod("file", 0o2755)), sep=",", end=",")
print(said(lambda: os.chmod("directory", 0o2755)), said(lambda: os.chmod("file", 0o711)), sep=",", end=",")
print(said(lambda: os.mknod("node", 0o104755)), said(made), sep=",")
"""


def test_no_file_is_made_setuid(workspace: Path) -> None:
    def modes() -> dict[str, str]:
        return {path.name: oct(path.stat().st_mode)[-4:] for path in workspace.iterdir()}

    policy = BASE.model_copy(
        update={"syscalls": BASE.syscalls.model_copy(update={"default_deny": False})}
    )
    no = "Operation not permitted"
    for held in (BASE, policy):
        result = in_engine(held, workspace, lambda e: e.run(["python3", "-c", SETUID]))
        assert result.stdout.decode().strip() == f"{no},{no},{no},ok,{no},ok", result.stderr
        # What open(2) makes setuid is so as long as nobody has written to it.
        assert modes() == {"file": "0711", "directory": "0755", "opened": "0755"}
        for path in workspace.iterdir():
            path.rmdir() if path.is_dir() else path.unlink()


def test_setgid_directories_stay_where_the_workspace_is_one(workspace: Path) -> None:
    workspace.chmod(0o2755)
    look = "mkdir sub && chmod g+s,g-w sub && stat -c %a sub; touch file; chmod 4755 file; stat -c %a file"
    result = shell(workspace, look)
    assert result.stdout == b"2755\n644\n"
    assert b"Operation not permitted" in result.stderr
    (workspace / "file").chmod(0o4755)  # the control: the file system takes it
    assert (workspace / "file").stat().st_mode & 0o4000


def test_time_memory_and_output_limits(workspace: Path) -> None:
    slow = shell(workspace, "trap '' TERM; sleep 60", with_resources(wall_seconds=0.5))
    assert slow.reason == "timed_out"
    eater = "x = []\nwhile True: x.append(b'a' * (1 << 20))"

    async def eat(engine: Engine) -> Result:
        return await engine.run(["python3", "-c", eater])

    eaten = in_engine(with_resources(memory_bytes=64 << 20), workspace, eat)
    assert eaten.reason == "out_of_memory" or b"MemoryError" in eaten.stderr
    loud = shell(workspace, "head -c 100000000 /dev/zero", with_resources(output_bytes=4096))
    assert (len(loud.stdout), loud.stdout_bytes, loud.truncated) == (4096, 100_000_000, True)


def test_a_fork_bomb_ends_while_another_sandbox_answers(workspace: Path) -> None:
    bomb = "f() { f | f & f; }; f"

    async def both(engine: Engine) -> tuple[Result, Result]:
        task = asyncio.create_task(engine.run(["sh", "-c", bomb], wall_seconds=5))
        await asyncio.sleep(0.3)
        other = await engine.run(["echo", "alive"])
        return await task, other

    bombed, other = in_engine(with_resources(processes=64), workspace, both)
    assert other.stdout == b"alive\n"
    # Without a cgroup it may be the watcher who ends it.
    watched = "resources.processes" in [limit.key for limit in bombed.limits]
    assert bombed.reason in ("timed_out", "exited") or (bombed.reason == "signaled" and watched)


def test_what_a_run_leaves_in_the_background_is_gone(workspace: Path) -> None:
    command = "(setsid sh -c 'while :; do date >> beat; sleep 0.05; done' &); until test -s beat; do sleep 0.05; done"
    assert shell(workspace, command).exit_code == 0
    before = (workspace / "beat").read_text()
    assert before

    async def later() -> str:
        await asyncio.sleep(0.3)
        return (workspace / "beat").read_text()

    assert asyncio.run(later()) == before


def test_cancelling_kills(workspace: Path) -> None:
    async def body(engine: Engine) -> float:
        task = asyncio.create_task(engine.run(["sh", "-c", "echo > started; sleep 60"]))
        while not (workspace / "started").exists():
            await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return (await engine.run(["echo", "next"])).wall_seconds

    assert in_engine(BASE, workspace, body) < 30


def test_operations_are_decided_by_the_kernel(workspace: Path, tmp_path: Path) -> None:
    (tmp_path / "outside").write_text("no")
    (workspace / "link").symlink_to(tmp_path / "outside")

    async def body(engine: Engine) -> object:
        for path, code in (
            ("link", "ENOENT"), ("../outside", "ENOENT"), ("/proc/1/environ", "EACCES"),
        ):  # fmt: skip
            with pytest.raises(OperationError) as caught:
                await engine.call("read_file", {"path": path})
            assert caught.value.code == code, path
        await engine.call("write_file", {"path": "a/b.txt", "content": "x\n" * 3})
        edit = {"path": "a/b.txt", "old_text": "x", "new_text": "y", "replace_all": True}
        await engine.call("edit_file", edit)
        return (await engine.call("read_file", {"path": "a/b.txt"})).value["content"]

    assert in_engine(BASE, workspace, body) == "y\ny\ny\n"
    assert (workspace / "a" / "b.txt").read_text() == "y\ny\ny\n"


def test_bad_commands_and_directories_are_named(workspace: Path) -> None:
    async def body(engine: Engine) -> None:
        (workspace / "plain").write_text("")
        for argv, code in ((["nonesuch"], "ENOENT"), (["./plain"], "EACCES")):
            with pytest.raises(CommandNotFound) as caught:
                await engine.run(argv)
            assert caught.value.code == code
        with pytest.raises(CommandNotFound, match="cwd 'nowhere'"):
            await engine.run(["true"], cwd="nowhere")
        assert (await engine.run(["true"])).exit_code == 0

    in_engine(BASE, workspace, body)


def test_path_is_searched_where_the_command_is(workspace: Path) -> None:
    """As execvp(3) does, but inside: what the host has and the sandbox does not see is passed over."""
    hidden = Path(tempfile.mkdtemp())
    try:
        for place in (hidden, workspace / "first", workspace / "second"):
            place.mkdir(exist_ok=True)
            place.chmod(0o755)
            program = place / "which-one"
            program.write_text(f"#!/bin/sh\necho {place.name}\n")
            program.chmod(0o755)
        (workspace / "first" / "which-one").chmod(0o644)

        async def body(engine: Engine) -> None:
            def path(*places: Path) -> dict[str, str]:
                return {"PATH": ":".join(map(str, places))}

            first, second = workspace / "first", workspace / "second"
            for env in (path(hidden, first, second), path(second, hidden)):
                result = await engine.run(["which-one"], env=env)
                assert result.stdout == b"second\n"
            for env, code in ((path(hidden), "ENOENT"), (path(hidden, first), "EACCES")):
                with pytest.raises(CommandNotFound) as caught:
                    await engine.run(["which-one"], env=env)
                assert caught.value.code == code
            (first / "which-one").chmod(0o755)
            result = await engine.run(["which-one"], env=path(hidden, first, second))
            assert result.stdout == b"first\n"
            result = await engine.run(["which-one"], env={"PATH": ":/bin"}, cwd="first")
            assert result.stdout == b"first\n"  # an empty place is where it runs
            (workspace / "real" / "deep").mkdir(parents=True)
            (workspace / "link").symlink_to("real/deep")
            shutil.copy(first / "which-one", workspace / "real")
            found = await engine.run(["link/../which-one"])
            asked = await engine.run(["sh", "-c", "link/../which-one"])
            assert found.stdout == asked.stdout == b"first\n"  # real's, and not the workspace's
            for name, code in (("", "ENOENT"), ("..", "EACCES"), ("first/which-one/", "ENOENT")):
                with pytest.raises(CommandNotFound) as caught:
                    await engine.run([name])
                assert caught.value.code == code

        in_engine(BASE, workspace, body)
    finally:
        shutil.rmtree(hidden)


def test_a_workspace_that_is_missing_or_too_wide_is_refused(tmp_path: Path) -> None:
    async def nothing(_: Engine) -> None: ...

    for path, words in ((tmp_path / "nowhere", "not a directory"), (Path("/usr"), "too wide")):
        with pytest.raises(SetupError, match=words):
            in_engine(BASE, path, nothing)


def test_a_system_call_list_that_means_nothing_is_refused_and_its_keeper_ends(
    workspace: Path,
) -> None:
    """It is compiled while a keeper and a zygote build the view already."""

    async def nothing(_: Engine) -> None: ...

    calls = BASE.syscalls.model_copy(update={"deny": ("nonesuch",)})
    bad = BASE.model_copy(update={"syscalls": calls})
    in_engine(BASE, workspace, nothing)  # the control; and the fork server has one ready
    before = sorted(os.listdir("/proc/self/fd"))
    with pytest.raises(SetupError, match="unknown system call nonesuch"):
        in_engine(bad, workspace, nothing)
    assert sorted(os.listdir("/proc/self/fd")) == before
    with pytest.raises(SetupError, match="unknown system call nonesuch"):
        compile_plan(bad, workspace)  # as `purple profile check` asks


def test_less_than_required_is_refused(workspace: Path) -> None:
    async def status(engine: Engine) -> str:
        return engine.enforcement.layers["cgroup"].status

    have = in_engine(BASE, workspace, status)
    strict = BASE.model_copy(update={"require": (*BASE.require, "cgroup")})
    if have == "full":
        assert in_engine(strict, workspace, status) == "full"
    else:
        with pytest.raises(EnforcementError, match="layer cgroup is partial"):
            in_engine(strict, workspace, status)


def test_the_smallest_system_call_list_runs_python(workspace: Path, tmp_path: Path) -> None:
    path = tmp_path / "p.yaml"
    path.write_text(
        'name: "my-ai-agent"\nsyscalls:\n  default_deny: true\n  allow: ["read", "write", "execve"]\n'
        'resources:\n  memory_limit: "4G"\n  cpu_shares: 0.5\n  timeout: 3600\nnetwork:\n  isolated: true\n'
    )
    run = in_engine(
        load_policy(str(path)), workspace, lambda e: e.run(["python3", "-c", "print(6*7)"])
    )
    assert run.stdout == b"42\n", run.stderr


SERVE = """python3 -c '
import socket
a = socket.socket(); a.bind(("127.0.0.1", 8000)); a.listen()
b = socket.create_connection(("127.0.0.1", 8000)); c, _ = a.accept(); c.close(); b.recv(1); b.close()
print("served")'"""


def test_a_port_is_free_again_for_the_next_sandbox(workspace: Path) -> None:
    async def body(engine: Engine) -> list[bytes]:
        # More than are kept ready, so that network namespaces come round again.
        return [(await engine.run(["sh", "-c", SERVE])).stdout for _ in range(8)]

    assert in_engine(BASE, workspace, body) == [b"served\n"] * 8


def test_nothing_is_left_behind(workspace: Path) -> None:
    def own_children() -> set[str]:
        found: set[str] = set()
        for pid in filter(str.isdigit, os.listdir("/proc")):
            try:
                stat = Path(f"/proc/{pid}/stat").read_text()
            except OSError:
                continue
            if stat.rsplit(")", 1)[1].split()[1] == str(os.getpid()):
                found.add(pid)
        return found

    keepers: set[int] = set()

    def cgroups() -> set[str]:
        names = tuple(f"/purple-{pid}" for pid in keepers)  # not those of other programs' gateways
        return {d for d, _, _ in os.walk("/sys/fs/cgroup") if d.endswith(names)}

    shell(workspace, "true")  # what is started once for all engines is there
    before = own_children(), len(os.listdir("/proc/self/fd"))

    async def many(engine: Engine) -> None:
        keepers.add(engine._link._keeper)
        await asyncio.gather(*(engine.run(["true"]) for _ in range(20)))

    in_engine(BASE, workspace, many)
    assert (own_children(), len(os.listdir("/proc/self/fd"))) == before
    assert cgroups() == set()
