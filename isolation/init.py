"""Pid 1 of a sandbox: locks itself down, waits for one request, serves it, and ends.

Its end is the end of the sandbox: the kernel kills what is left in the pid namespace and only then
makes the pidfd readable. The order of the lock-down is in `_lock_down`, nowhere else.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import json
import os
import resource
import select
import signal
import socket
import struct
from typing import Any, NoReturn

from . import capabilities, landlock, libc, seccomp
from .fileops import OPERATIONS
from .mounts import mount_private
from .plan import HOME, Plan

_WATCH_SECONDS = 0.05
_TIOCSCTTY = 0x540E
_PAGE = os.sysconf("SC_PAGESIZE")


def run_init(control: socket.socket, plan: Plan, *, limit_by_rlimits: bool) -> NoReturn:
    """Be pid 1 for one request on `control`; never returns."""
    try:
        for number in (signal.SIGINT, signal.SIGCHLD):
            signal.signal(number, signal.SIG_DFL)
        if control.recv(16) != b"go":
            os._exit(0)
        _lock_down(plan, limit_by_rlimits=limit_by_rlimits)
        control.send(b'{"ready": true}')
    except BaseException as error:
        _tell(control, {"error": f"{type(error).__name__}: {error}"})
        os._exit(1)
    try:
        _serve(control, plan, watch=limit_by_rlimits)
    except BaseException as error:
        _tell(control, {"failed": f"{type(error).__name__}: {error}"})
    os._exit(0)


def _tell(control: socket.socket, message: dict[str, str]) -> None:
    # Whatever happens, this process must not return into the zygote's code that it was forked from.
    with contextlib.suppress(OSError):
        control.send(json.dumps(message).encode())


def _lock_down(plan: Plan, *, limit_by_rlimits: bool) -> None:
    libc.unshare(
        libc.CLONE_NEWNS
        | libc.CLONE_NEWIPC
        | libc.CLONE_NEWUTS
        | libc.CLONE_NEWNET
        | libc.CLONE_NEWCGROUP
    )
    socket.sethostname("purple")
    _loopback_up()
    mount_private(plan)
    _limit(resource.RLIMIT_CORE, 0)
    if plan.open_files is not None:
        _limit(resource.RLIMIT_NOFILE, plan.open_files)
    if limit_by_rlimits:
        if plan.memory_bytes is not None:
            _limit(resource.RLIMIT_DATA, plan.memory_bytes)
        if plan.processes is not None:
            _limit(resource.RLIMIT_NPROC, plan.processes + 64)  # our own waiting ones count, too
    os.umask(0o022)
    libc.prctl(libc.PR_SET_DUMPABLE, 0)  # /proc/1/{environ,fd,mem} are closed to the payload
    capabilities.drop_all()
    capabilities.set_no_new_privs()
    write = ["/tmp", "/var/tmp", "/dev", "/proc", HOME, *plan.write]
    if plan.workspace is not None and plan.workspace_writable:
        write.append(plan.workspace)
    landlock.restrict_self(["/"], write)
    seccomp.load_filter(plan.bpf)


def _limit(kind: int, value: int) -> None:
    _, hard = resource.getrlimit(kind)
    value = value if hard == resource.RLIM_INFINITY else min(value, hard)
    resource.setrlimit(kind, (value, value))


def _loopback_up() -> None:
    """SIOCSIFFLAGS IFF_UP on lo. netdevice(7)."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        request = ctypes.create_string_buffer(struct.pack("16sh22x", b"lo", 1), 40)
        libc.ioctl(sock.fileno(), 0x8914, request)


def _serve(control: socket.socket, plan: Plan, *, watch: bool) -> None:
    message, fds, _, _ = socket.recv_fds(control, 64, 4, socket.MSG_CMSG_CLOEXEC)
    if not message:
        return
    body, stdin, stdout, stderr = fds
    with os.fdopen(body, "rb") as file:
        file.seek(0)
        request: dict[str, Any] = json.load(file)
    os.chdir(plan.workspace or HOME)
    if "operation" in request:
        _operate(control, request, stdout)
        return
    try:
        if request["cwd"]:
            os.chdir(request["cwd"])
        pid = _spawn(request, plan, (stdin, stdout, stderr))
    except OSError as error:
        name = errno.errorcode.get(error.errno or 0, "EIO")
        what = "cwd" if error.filename == request["cwd"] else "command"
        control.send(json.dumps({"refused": name, "what": what}).encode())
        return
    for fd in (stdin, stdout, stderr):
        os.close(fd)
    _wait(control, pid, plan.memory_bytes if watch else None)


def _spawn(request: dict[str, Any], plan: Plan, fds: tuple[int, int, int]) -> int:
    argv: list[str] = request["argv"]
    environment = {**plan.environment, **request["env"]}
    environment["PWD"] = os.getcwd()
    actions = [(os.POSIX_SPAWN_DUP2, fd, target) for target, fd in enumerate(fds)]
    terminal: int | None = request.get("terminal")
    if terminal is not None:
        os.setsid()
        libc.ioctl(fds[terminal], _TIOCSCTTY, 0)
    program = _find(argv[0], environment["PATH"])
    defaults = [signal.SIGPIPE, signal.SIGXFSZ, signal.SIGINT]  # what Python ignores or handles
    # setsid and setpgroup exclude each other: with a terminal this process is the session leader.
    if terminal is None:
        return os.posix_spawn(
            program, argv, environment, file_actions=actions, setsid=True, setsigdef=defaults
        )
    pid = os.posix_spawn(
        program, argv, environment, file_actions=actions, setpgroup=0, setsigdef=defaults
    )
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTTOU])
    os.tcsetpgrp(fds[terminal], pid)
    return pid


def _find(command: str, path: str) -> str:
    """The executable, as execvp(3) finds it. Raises FileNotFoundError or PermissionError."""
    candidates = [command] if "/" in command else [f"{d}/{command}" for d in path.split(":")]
    refused = errno.ENOENT
    for candidate in candidates:
        if os.path.isfile(candidate):
            if os.access(candidate, os.X_OK):
                return candidate
            refused = errno.EACCES
    raise OSError(refused, os.strerror(refused), command)


def _wait(control: socket.socket, pid: int, memory_bytes: int | None) -> None:
    """Wait for the payload while obeying the gateway; reap whatever is orphaned to us."""
    reader, writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    poll = select.poll()
    poll.register(control, select.POLLIN)
    poll.register(reader, select.POLLIN)
    while True:
        while True:
            try:
                reaped, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                break
            if reaped == pid:
                control.send(json.dumps({"status": status}).encode())
                return
            if reaped == 0:
                break
        for fd, _ in poll.poll(None if memory_bytes is None else _WATCH_SECONDS * 1000):
            if fd == reader:
                os.read(reader, 512)
            elif not (order := control.recv(64)):
                return  # the gateway is gone, and so are we
            else:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(pid, int(order))
        if memory_bytes is not None and _resident_bytes() > memory_bytes:
            control.send(b'{"out_of_memory": true}')
            return


def _resident_bytes() -> int:
    total = 0
    for name in os.listdir("/proc"):
        if name.isdigit() and name != "1":
            try:
                with open(f"/proc/{name}/statm") as file:
                    fields = file.read().split()
                total += (int(fields[1]) - int(fields[2])) * _PAGE
            except (OSError, IndexError):
                continue
    return total


def _operate(control: socket.socket, request: dict[str, Any], stdout: int) -> None:
    """A file operation: done by this process, which holds no more than a payload would."""
    reply: dict[str, Any]
    try:
        reply = {"value": OPERATIONS[request["operation"]](request["arguments"])}
    except OSError as error:
        code = errno.errorcode.get(error.errno or 0, "EIO")
        where = f": {error.filename}" if error.filename else ""
        reply = {"code": code, "message": f"{error.strerror or error}{where}"}
    except (ValueError, KeyError, TypeError) as error:
        reply = {"code": "EINVAL", "message": str(error)}
    with os.fdopen(stdout, "wb") as file:
        file.write(json.dumps(reply).encode())
    control.send(b'{"status": 0}')
