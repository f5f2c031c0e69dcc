"""Attacks on the view: what is seen, and what of it can be changed or run."""

from __future__ import annotations

import ctypes
import os
import socket
import struct
from collections.abc import Callable

from .frame import X86, call, each, read, target, write


def read_secret() -> object:
    secret = target["secret"]
    here = os.getcwd()
    up = "/.." * here.count("/")
    link = f"/tmp/link-{os.getpid()}"
    os.symlink(secret, link)
    return each(
        lambda: read(secret),
        lambda: read(link),
        lambda: read(f"/proc/self/root{secret}"),
        lambda: read(f"/proc/self/cwd{up}{secret}"),
        lambda: read(f"{here}{up}{secret}"),
        lambda: read(f"/dev/fd/../root{secret}"),
        lambda: read(f"/proc/thread-self/root{secret}"),
    )


def read_by_pid_1() -> object:
    process = f"/proc/{target.get('process', 1)}"
    return each(
        lambda: read(f"{process}/root{target['secret']}"),
        lambda: read(f"{process}/cwd{target['secret']}"),
    )


def link_secret() -> object:
    return each(
        lambda: os.link(target["secret"], "hard-link"),
        lambda: os.rename(target["secret"], "renamed"),
        lambda: os.chdir(os.path.dirname(target["secret"])),
    )


def write_protected() -> object:
    """Every call by which a file, its name or the way to it could be changed."""
    path = target["protected"]
    parent = os.path.dirname(path)
    name = path.encode()

    def by_copy() -> None:
        source = os.open("/etc/passwd", os.O_RDONLY)
        os.copy_file_range(source, os.open(path, os.O_RDWR), 1)

    def by_socket() -> None:
        here = os.getcwd()
        os.chdir(parent)  # a socket's path is at most 108 bytes long
        try:
            socket.socket(socket.AF_UNIX).bind(os.path.basename(path))
        finally:
            os.chdir(here)

    attempts: list[Callable[[], object]] = [
        lambda: write(path),
        lambda: os.open(path, os.O_RDONLY | os.O_TRUNC),
        lambda: os.open(path, os.O_RDWR),
        lambda: os.open(path, os.O_WRONLY | os.O_APPEND),
        lambda: os.truncate(path, 0),
        lambda: os.unlink(path),
        lambda: os.rename(path, "moved"),
        lambda: os.rename("own-file", path),
        lambda: os.rename(parent, "moved-parent"),
        lambda: os.link(path, "hard-link"),
        lambda: os.link("own-file", f"{path}.new", follow_symlinks=False),
        lambda: os.symlink("own-file", path),
        lambda: os.chmod(path, 0o777),
        lambda: os.utime(path, (1, 1)),
        lambda: os.setxattr(path, "user.x", b"x"),
        lambda: os.mknod(f"{path}/x"),
        lambda: os.mkdir(path),
        lambda: call(316, -100, b"own-file", -100, name, 2) if X86 else os.unlink(path),  # RENAME_EXCHANGE
        lambda: call(437, -100, name, ctypes.create_string_buffer(struct.pack("QQQ", 1, 0, 0)), 24),
        by_copy,
        by_socket,
    ]  # fmt: skip
    with open("own-file", "w") as file:
        file.write("x")
    return each(*attempts)


def write_outside() -> object:
    places: list[str] = target.get("places") or [
        "/", "/usr", "/usr/bin", "/etc", "/bin/", "/lib/", "/run", "/home", "/var", "/opt", "/sys", "/proc",
    ]  # fmt: skip
    attempts = [
        lambda place=p: _create(f"{place}/purple-attack") for p in places if os.path.isdir(p)
    ]
    return each(*attempts)


def _create(path: str) -> None:
    os.close(os.open(path, os.O_CREAT | os.O_WRONLY, 0o600))


def write_kernel_settings() -> object:
    paths: list[str] = target.get("settings") or [
        "/proc/sys/kernel/core_pattern", "/proc/sys/kernel/modprobe", "/proc/sys/vm/overcommit_memory",
        "/proc/sysrq-trigger", "/proc/irq/default_smp_affinity", "/proc/1/oom_score_adj",
    ]  # fmt: skip
    return each(
        *[lambda path=p: os.close(os.open(path, os.O_WRONLY)) for p in paths if os.path.exists(p)]
    )


def overwrite_programs() -> object:
    programs: list[str] = target.get("programs") or ["/proc/self/exe", "/proc/1/exe", "/bin/cat"]
    return each(*[lambda p=path: os.close(os.open(p, os.O_WRONLY)) for path in programs])


def leave_by_descriptor() -> object:
    """A directory that the caller has left open leads out of any root: CVE-2024-21626."""
    found = [fd for fd in range(3, 4096) if os.path.lexists(f"/proc/self/fd/{fd}")]
    outside = [fd for fd in found if not os.readlink(f"/proc/self/fd/{fd}").startswith("/proc/")]
    return f"inherited {outside}" if outside else "none"


def find_old_root() -> object:
    with open("/proc/self/mountinfo") as file:
        points = [line.split()[4] for line in file]
    if not os.path.samestat(os.stat("/proc/self/root"), os.stat("/")) or os.getcwd()[0] != "/":
        return "cwd is outside"
    seen = [p for p in points if os.path.exists(f"{p}{target['secret']}")]
    return f"seen below {seen}" if seen else "none"


def gain_by_setuid() -> object:
    with open("/proc/self/mountinfo") as file:
        mounts = [line.split() for line in file]
    loose = [words[4] for words in mounts if "nosuid" not in words[5].split(",")]
    return f"without nosuid: {loose}" if loose else "none"


def make_setuid() -> object:
    """For the host's other users, to whom the workspace's owner is somebody."""
    directory = os.environ.get("TMPDIR", "/tmp")
    path = f"{directory}/setuid-{os.getpid()}"
    open(path, "w").close()
    return each(
        lambda: os.chmod(path, 0o4755),
        lambda: os.chmod(path, 0o4755, dir_fd=os.open(directory, os.O_RDONLY)),
        lambda: os.mknod(f"{path}-made", 0o104755),
    )


def run_from_memory() -> object:
    """memfd_create(2) and execveat(2) are allowed; what runs so is held like the rest."""
    fd = os.memfd_create("program", 0)
    with open(os.path.realpath("/bin/cat"), "rb") as file:
        os.write(fd, file.read())
    child = os.fork()
    if child == 0:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 1)
        os.dup2(null, 2)
        os.execv(f"/proc/self/fd/{fd}", ["cat", target["secret"]])
    _, status = os.waitpid(child, 0)
    return None if status == 0 else "ENOENT"


def use_what_only_landlock_holds() -> object:
    """Places of the view that are writable by their mount, and no grant of the policy."""
    write("/proc/self/comm")
    return None
