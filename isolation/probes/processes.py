"""Attacks on other processes, and on what a process is allowed to be."""

from __future__ import annotations

import ctypes
import glob
import os

from .frame import LIBC, each, read, target


def see_processes() -> object:
    own = {os.getpid(), os.getppid(), 1}
    seen = {int(path[6:]) for path in glob.glob("/proc/[0-9]*")} - own
    return f"sees {sorted(seen)}" if seen else "none"


def read_secrets_of_processes() -> object:
    secret = target["word"].encode()
    for path in glob.glob("/proc/[0-9]*"):
        for name in ("environ", "cmdline", "maps"):
            try:
                if secret in read(f"{path}/{name}") and int(path[6:]) != os.getpid():
                    return f"in {path}/{name}"
            except OSError:
                continue
    return "in its own environment" if secret in read("/proc/self/environ") else "none"


def signal_the_host() -> object:
    return each(lambda: os.kill(target["victim"], 0), lambda: os.kill(-target["victim"], 0))


def read_memory_of_pid_1() -> object:
    process = f"/proc/{target.get('process', 1)}"
    return each(
        lambda: os.close(os.open(f"{process}/mem", os.O_RDWR)),
        lambda: read(f"{process}/environ"),
        lambda: os.readlink(f"{process}/fd/0"),
    )


def enter_namespaces_of_pid_1() -> object:
    return each(
        *[
            lambda n=name: _setns(f"/proc/{target.get('process', 1)}/ns/{n}")
            for name in ("mnt", "net", "user", "pid")
        ]
    )


def _setns(path: str) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        if LIBC.setns(fd, 0):
            raise OSError(ctypes.get_errno(), "setns")
    finally:
        os.close(fd)


def hold_privilege() -> object:
    with open("/proc/self/status") as file:
        status = dict(line.strip("\n").split(":\t", 1) for line in file if ":\t" in line)
    sets = ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")
    found = [name for name in sets if int(status[name], 16)]
    found += [f"NoNewPrivs {status['NoNewPrivs']}"] if status["NoNewPrivs"] != "1" else []
    found += [f"uid {os.getuid()}"] if os.getuid() == 0 else []
    return " ".join(found) or "none"


def be_root_on_the_host() -> object:
    inside, outside, count = read("/proc/self/uid_map").split()[:3]
    return (
        "uid 0 outside" if outside == b"0" or (inside, count) == (b"0", b"4294967295") else "none"
    )


def become_root() -> object:
    return each(lambda: os.setuid(0), lambda: os.setgid(0), lambda: os.setresuid(0, 0, 0))
