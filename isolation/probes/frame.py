"""How an attack runs: whether anything holds it, what it is aimed at, and what it says."""

from __future__ import annotations

import ctypes
import errno
import json
import os
import platform
import sys
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

NOT_IN_A_SANDBOX = 99
LIBC = ctypes.CDLL(None, use_errno=True)
X86 = platform.machine() == "x86_64"
target: dict[str, Any] = {}  # what the caller has put up outside, and what is protected inside


def namespaces() -> dict[str, str]:
    """The namespaces that the host's own processes have; a sandbox has others."""
    return {name: os.readlink(f"/proc/self/ns/{name}") for name in ("mnt", "ipc")}


def held(host: dict[str, str]) -> bool:
    """Whether this process is in a sandbox: in namespaces of its own, or restricted for good."""
    # Not by /proc, which a sandbox without namespaces cannot read: <linux/prctl.h>.
    pr_get_seccomp, pr_get_no_new_privs = 21, 39
    restricted = (
        LIBC.prctl(pr_get_seccomp, 0, 0, 0, 0) == 2
        and LIBC.prctl(pr_get_no_new_privs, 0, 0, 0, 0) == 1
    )
    apart = bool(host) and all(host.get(name) != own for name, own in namespaces().items())
    return restricted or apart


def main(arguments: list[str], modules: Sequence[ModuleType]) -> None:
    """`NAME HOST TARGET`, the latter two JSON: print what the attack NAME, in one of `modules`, met."""
    name, host, found = arguments
    if not held(json.loads(host)):
        print("this is no sandbox: nothing was tried", file=sys.stderr)
        sys.exit(NOT_IN_A_SANDBOX)
    target.update(json.loads(found))
    attack: Callable[[], object] = next(vars(m)[name] for m in modules if name in vars(m))
    try:
        said = attack()
    except OSError as error:
        said = errno.errorcode.get(error.errno or 0, str(error))
    except (BlockingIOError, RuntimeError) as error:
        said = str(error)
    print(said if isinstance(said, str) else "ok", flush=True)


def each(*attempts: Callable[[], object]) -> str:
    """What all of them met, each answer once; "ok" when one succeeded."""
    answers: list[str] = []
    for attempt in attempts:
        try:
            attempt()
            return "ok"
        except OSError as error:
            late = isinstance(error, TimeoutError)
            answer = "ETIMEDOUT" if late else errno.errorcode.get(error.errno or 0, "?")
            if answer not in answers:
                answers.append(answer)
    return " ".join(sorted(answers))


def call(number: int, *arguments: Any) -> int:
    words = [ctypes.c_long(a) if isinstance(a, int) else a for a in arguments]
    result = LIBC.syscall(ctypes.c_long(number), *words)
    if result < 0:
        raise OSError(ctypes.get_errno(), f"system call {number}")
    return int(result)


def read(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read(1 << 16)


def write(path: str, data: bytes = b"x") -> None:
    fd = os.open(path, os.O_WRONLY)
    try:
        os.write(fd, data)
    finally:
        os.close(fd)
