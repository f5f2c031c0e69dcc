"""Attacks as programs: each tries one thing that a sandbox must refuse, and says what happened.

Runs inside, by an interpreter of its own, with the standard library alone. Refuses to run where nothing
holds it: outside a sandbox, root's attempt would really change the host. What each is expected to say
is in attack.py.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import glob
import json
import os
import platform
import signal
import socket
import struct
import sys
import time
from collections.abc import Callable
from typing import Any

NOT_IN_A_SANDBOX = 99
_libc = ctypes.CDLL(None, use_errno=True)
_X86 = platform.machine() == "x86_64"
target: dict[str, Any] = {}  # what the caller has put up outside, and what is protected inside


def namespaces() -> dict[str, str]:
    """The namespaces that the host's own processes have; a sandbox has others."""
    return {name: os.readlink(f"/proc/self/ns/{name}") for name in ("mnt", "ipc")}


def held(host: dict[str, str]) -> bool:
    """Whether this process is in a sandbox: in namespaces of its own, or restricted for good."""
    # Not by /proc, which a sandbox without namespaces cannot read: <linux/prctl.h>.
    pr_get_seccomp, pr_get_no_new_privs = 21, 39
    restricted = (
        _libc.prctl(pr_get_seccomp, 0, 0, 0, 0) == 2
        and _libc.prctl(pr_get_no_new_privs, 0, 0, 0, 0) == 1
    )
    apart = bool(host) and all(host.get(name) != own for name, own in namespaces().items())
    return restricted or apart


def main(arguments: list[str]) -> None:
    """`NAME HOST TARGET`, the latter two JSON: print what the attack NAME met."""
    name, host, found = arguments
    if not held(json.loads(host)):
        print("this is no sandbox: nothing was tried", file=sys.stderr)
        sys.exit(NOT_IN_A_SANDBOX)
    target.update(json.loads(found))
    attack: Callable[[], object] = globals()[name]
    try:
        said = attack()
    except OSError as error:
        said = errno.errorcode.get(error.errno or 0, str(error))
    except (BlockingIOError, RuntimeError) as error:
        said = str(error)
    print(said if isinstance(said, str) else "ok", flush=True)


def _each(*attempts: Callable[[], object]) -> str:
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


def _call(number: int, *arguments: Any) -> int:
    words = [ctypes.c_long(a) if isinstance(a, int) else a for a in arguments]
    result = _libc.syscall(ctypes.c_long(number), *words)
    if result < 0:
        raise OSError(ctypes.get_errno(), f"system call {number}")
    return int(result)


def _read(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read(1 << 16)


def _write(path: str, data: bytes = b"x") -> None:
    fd = os.open(path, os.O_WRONLY)
    try:
        os.write(fd, data)
    finally:
        os.close(fd)


# --- mounts: what is seen, and what of it can be changed


def read_secret() -> object:
    secret = target["secret"]
    here = os.getcwd()
    up = "/.." * here.count("/")
    link = f"/tmp/link-{os.getpid()}"
    os.symlink(secret, link)
    return _each(
        lambda: _read(secret),
        lambda: _read(link),
        lambda: _read(f"/proc/self/root{secret}"),
        lambda: _read(f"/proc/self/cwd{up}{secret}"),
        lambda: _read(f"{here}{up}{secret}"),
        lambda: _read(f"/dev/fd/../root{secret}"),
        lambda: _read(f"/proc/thread-self/root{secret}"),
    )


def read_by_pid_1() -> object:
    process = f"/proc/{target.get('process', 1)}"
    return _each(
        lambda: _read(f"{process}/root{target['secret']}"),
        lambda: _read(f"{process}/cwd{target['secret']}"),
    )


def link_secret() -> object:
    return _each(
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
        lambda: _write(path),
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
        lambda: _call(316, -100, b"own-file", -100, name, 2) if _X86 else os.unlink(path),  # RENAME_EXCHANGE
        lambda: _call(437, -100, name, ctypes.create_string_buffer(struct.pack("QQQ", 1, 0, 0)), 24),
        by_copy,
        by_socket,
    ]  # fmt: skip
    with open("own-file", "w") as file:
        file.write("x")
    return _each(*attempts)


def write_outside() -> object:
    places: list[str] = target.get("places") or [
        "/", "/usr", "/usr/bin", "/etc", "/bin/", "/lib/", "/run", "/home", "/var", "/opt", "/sys", "/proc",
    ]  # fmt: skip
    attempts = [
        lambda place=p: _create(f"{place}/purple-attack") for p in places if os.path.isdir(p)
    ]
    return _each(*attempts)


def _create(path: str) -> None:
    os.close(os.open(path, os.O_CREAT | os.O_WRONLY, 0o600))


def write_kernel_settings() -> object:
    paths: list[str] = target.get("settings") or [
        "/proc/sys/kernel/core_pattern", "/proc/sys/kernel/modprobe", "/proc/sys/vm/overcommit_memory",
        "/proc/sysrq-trigger", "/proc/irq/default_smp_affinity", "/proc/1/oom_score_adj",
    ]  # fmt: skip
    return _each(
        *[lambda path=p: os.close(os.open(path, os.O_WRONLY)) for p in paths if os.path.exists(p)]
    )


def overwrite_programs() -> object:
    programs: list[str] = target.get("programs") or ["/proc/self/exe", "/proc/1/exe", "/bin/cat"]
    return _each(*[lambda p=path: os.close(os.open(p, os.O_WRONLY)) for path in programs])


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


# --- processes


def see_processes() -> object:
    own = {os.getpid(), os.getppid(), 1}
    seen = {int(path[6:]) for path in glob.glob("/proc/[0-9]*")} - own
    return f"sees {sorted(seen)}" if seen else "none"


def read_secrets_of_processes() -> object:
    secret = target["word"].encode()
    for path in glob.glob("/proc/[0-9]*"):
        for name in ("environ", "cmdline", "maps"):
            try:
                if secret in _read(f"{path}/{name}") and int(path[6:]) != os.getpid():
                    return f"in {path}/{name}"
            except OSError:
                continue
    return "in its own environment" if secret in _read("/proc/self/environ") else "none"


def signal_the_host() -> object:
    return _each(lambda: os.kill(target["victim"], 0), lambda: os.kill(-target["victim"], 0))


def read_memory_of_pid_1() -> object:
    process = f"/proc/{target.get('process', 1)}"
    return _each(
        lambda: os.close(os.open(f"{process}/mem", os.O_RDWR)),
        lambda: _read(f"{process}/environ"),
        lambda: os.readlink(f"{process}/fd/0"),
    )


def enter_namespaces_of_pid_1() -> object:
    return _each(
        *[
            lambda n=name: _setns(f"/proc/{target.get('process', 1)}/ns/{n}")
            for name in ("mnt", "net", "user", "pid")
        ]
    )


def _setns(path: str) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        if _libc.setns(fd, 0):
            raise OSError(ctypes.get_errno(), "setns")
    finally:
        os.close(fd)


# --- capabilities


def hold_privilege() -> object:
    with open("/proc/self/status") as file:
        status = dict(line.strip("\n").split(":\t", 1) for line in file if ":\t" in line)
    sets = ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")
    found = [name for name in sets if int(status[name], 16)]
    found += [f"NoNewPrivs {status['NoNewPrivs']}"] if status["NoNewPrivs"] != "1" else []
    found += [f"uid {os.getuid()}"] if os.getuid() == 0 else []
    return " ".join(found) or "none"


def be_root_on_the_host() -> object:
    inside, outside, count = _read("/proc/self/uid_map").split()[:3]
    return (
        "uid 0 outside" if outside == b"0" or (inside, count) == (b"0", b"4294967295") else "none"
    )


def become_root() -> object:
    return _each(lambda: os.setuid(0), lambda: os.setgid(0), lambda: os.setresuid(0, 0, 0))


# --- seccomp


def new_user_namespace() -> object:
    return _each(lambda: _unshare(0x10000000), lambda: _unshare(0x10020000))


def _unshare(flags: int) -> None:
    if _libc.unshare(ctypes.c_int(flags)):
        raise OSError(ctypes.get_errno(), "unshare")


def clone_user_namespace() -> object:
    child = _call(56 if _X86 else 220, 0x10000000 | signal.SIGCHLD, 0, 0, 0, 0)
    if child == 0:
        os._exit(0)
    os.waitpid(child, 0)
    return None


def clone3() -> object:
    return _call(435, 0, 0)


def io_uring() -> object:
    parameters = ctypes.create_string_buffer(120)
    os.close(_call(425, 8, parameters))
    return None


def foreign_entry() -> object:
    """The 32-bit entry of x86: getpid by `int 0x80`, whose numbers mean other calls."""
    import mmap

    page = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    page.write(b"\xb8\x14\x00\x00\x00\xcd\x80\xc3")  # mov eax, 20; int 0x80; ret
    address = ctypes.addressof(ctypes.c_char.from_buffer(page))
    answer = ctypes.CFUNCTYPE(ctypes.c_int)(address)()
    if answer < 0:
        raise OSError(-answer, "int 0x80")
    return None if answer == os.getpid() else f"answers {answer}"


def x32_entry() -> object:
    return _call(0x40000000 | 39)


def ptrace() -> object:
    child = os.fork()
    if child == 0:
        time.sleep(60)
        os._exit(0)
    try:
        if _libc.ptrace(0x4206, ctypes.c_long(child), None, None):  # PTRACE_SEIZE
            raise OSError(ctypes.get_errno(), "ptrace")
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    return None


def process_memory() -> object:
    buffer = ctypes.create_string_buffer(8)
    vector = (ctypes.c_void_p * 2)(ctypes.addressof(buffer), 8)
    return _each(
        lambda: _call(310 if _X86 else 270, os.getpid(), vector, 1, vector, 1, 0),
        lambda: _call(311 if _X86 else 271, os.getpid(), vector, 1, vector, 1, 0),
    )


def steal_descriptor() -> object:
    return _call(438, os.pidfd_open(os.getpid()), 0, 0)


def keyring() -> object:
    return _each(
        lambda: _call(248 if _X86 else 217, b"user", b"purple-attack", b"x", 1, -2),
        lambda: _call(250 if _X86 else 219, 0, -2, 0),
    )


def userfaultfd() -> object:
    return _call(323 if _X86 else 282, 1)


def perf() -> object:
    attributes = ctypes.create_string_buffer(struct.pack("IIQQ", 1, 128, 0, 0).ljust(128, b"\0"))
    return _call(298 if _X86 else 241, attributes, 0, -1, -1, 0)


def mount_api() -> object:
    return _each(
        lambda: _call(430, b"tmpfs", 0),
        lambda: _call(428, -100, b"/tmp", 1),
        lambda: _mount(),
    )


def _mount() -> None:
    if _libc.mount(b"x", b"/tmp", b"tmpfs", ctypes.c_ulong(0), None):
        raise OSError(ctypes.get_errno(), "mount")


def change_root() -> object:
    return _each(lambda: os.chroot("/tmp"), lambda: _call(155 if _X86 else 41, b"/tmp", b"/tmp"))


def file_handles() -> object:
    handle = ctypes.create_string_buffer(struct.pack("Ii", 128, 0).ljust(140, b"\0"))
    return _call(303 if _X86 else 264, -100, b"/tmp", handle, ctypes.byref(ctypes.c_int()), 0)


def kernel_programs() -> object:
    """bpf(2), kexec_load(2), init_module(2), finit_module(2), open_by_handle_at(2): arguments that
    mean nothing, so that even root's call changes nothing."""
    numbers = (321, 246, 175, 313, 304) if _X86 else (280, 104, 105, 273, 265)
    return _each(*[lambda n=number: _call(n, -1, -1, -1, -1) for number in numbers])


def administration() -> object:
    """reboot(2), swapon(2), settimeofday(2), acct(2), quotactl(2), iopl(2), with such arguments."""
    numbers = (169, 167, 164, 163, 179) if _X86 else (142, 224, 170, 89, 60)
    return _each(*[lambda n=number: _call(n, -1, -1, -1, -1) for number in numbers])


def socket_families() -> object:
    answers: set[str] = set()
    for family in range(46):
        if family not in (1, 2, 10, 16):
            for kind in (1, 2, 3, 5):
                try:
                    socket.socket(family, kind).close()
                    return f"family {family}"
                except OSError as error:
                    answers.add(errno.errorcode.get(error.errno or 0, "?"))
    return " ".join(sorted(answers))


def netlink_families() -> object:
    return _each(*[lambda p=p: socket.socket(16, 3, p).close() for p in range(1, 22)])


def type_into_the_terminal() -> object:
    _, slave = os.openpty()
    fcntl.ioctl(slave, 0x540E, 0)  # TIOCSCTTY: a session leader's own, as the caller's would be
    return _each(
        lambda: fcntl.ioctl(slave, 0x5412, b"x"),
        lambda: fcntl.ioctl(slave, 0x541C, b"\x03"),
        lambda: _call(16 if _X86 else 29, slave, 0x5412 | 1 << 32, b"x"),
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


# --- Landlock


def use_what_only_landlock_holds() -> object:
    """Places of the view that are writable by their mount, and no grant of the policy."""
    _write("/proc/self/comm")
    return None


# --- network


def reach_the_hosts_loopback() -> object:
    with socket.socket() as sock:
        sock.settimeout(5)
        sock.connect(("127.0.0.1", target["port"]))
    return None


def reach_the_network() -> object:
    far = target.get("far", "192.0.2.1")  # TEST-NET-1, RFC 5737

    def tcp() -> None:
        with socket.socket() as sock:
            sock.settimeout(3)
            sock.connect((far, 9))
            sock.sendall(b"x\n")
            if not sock.recv(1):  # a gate that takes every connection and drops what it refuses
                raise ConnectionRefusedError(errno.ECONNREFUSED, "closed")

    def datagram() -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.sendto(b"x", (far, 53000))

    return _each(tcp, datagram)


def see_interfaces() -> object:
    found = {name for _, name in socket.if_nameindex()} - {"lo"}
    return f"sees {sorted(found)}" if found else "none"


def reach_abstract_socket() -> object:
    name = "\0" + target["abstract"]

    def stream() -> None:
        with socket.socket(socket.AF_UNIX) as sock:
            sock.connect(name)

    def datagram() -> None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            sock.sendto(b"x", name + "-datagram")

    return _each(stream, datagram)


def reach_path_socket() -> object:
    paths = [target["socket"], "/var/run/docker.sock", "/run/docker.sock", "/run/dbus/system_bus_socket", "/run/systemd/private"]  # fmt: skip

    def connect(path: str) -> None:
        with socket.socket(socket.AF_UNIX) as sock:
            sock.connect(path)

    return _each(*[lambda path=p: connect(path) for p in paths])


# --- limits and environment


def more_processes() -> object:
    children: list[int] = []
    try:
        for _ in range(target["processes"] + 64):
            child = os.fork()
            if child == 0:
                time.sleep(60)
                os._exit(0)
            children.append(child)
    finally:
        for child in children:
            os.kill(child, signal.SIGKILL)
    return None


def change_cgroup() -> object:
    return _each(
        lambda: os.listdir("/sys/fs/cgroup")[0],
        lambda: _write("/sys/fs/cgroup/cgroup.procs", b"0"),
    )


def inherit_variables() -> object:
    found = sorted(
        name
        for name in os.environ
        if name.startswith(("LD_", "GIT_", "DYLD_")) or name in ("BASH_ENV", "NODE_OPTIONS", "PYTHONPATH", "ENV", "PERL5OPT")
    )  # fmt: skip
    return f"has {found}" if found else "none"


if __name__ == "__main__":
    main(sys.argv[1:])
