"""seccomp: which system calls a sandbox may make, compiled once per policy by libseccomp.

Sources: seccomp(2), seccomp_rule_add(3). The groups carry systemd's names (systemd.exec(5),
SystemCallFilter=); `@runtime` is ours: what the loader, a language runtime and the sandbox's own
pid 1 need to start a program and to end it, and the calls by which a process can only give up more.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import socket
import tempfile
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, BinaryIO, cast

if TYPE_CHECKING:
    from ..policies import Policy, SyscallRule

_RUNTIME = """
access alarm arch_prctl brk clock_getres clock_gettime clock_nanosleep clone close close_range dup
dup2 dup3 epoll_create epoll_create1 epoll_ctl epoll_pwait epoll_pwait2 epoll_wait eventfd2 execve
exit exit_group faccessat faccessat2 fadvise64 fcntl fstat fstatfs futex futex_wait futex_wake getcwd
getdents64 getegid geteuid getgid getgroups getpgid getpgrp getpid getppid getpriority getrandom
getresgid getresuid getrlimit getrusage getsid gettid gettimeofday getuid ioctl kill lseek lstat
madvise membarrier mmap mprotect mremap munmap nanosleep newfstatat open openat pidfd_open
pidfd_send_signal pipe pipe2 poll ppoll prctl pread64 preadv preadv2 prlimit64 pselect6 pwrite64 read
readahead readlink readlinkat readv recvmsg restart_syscall rseq rt_sigaction rt_sigpending
rt_sigprocmask rt_sigqueueinfo rt_sigreturn rt_sigsuspend rt_sigtimedwait sched_getaffinity
sched_getparam sched_get_priority_max sched_get_priority_min sched_getscheduler sched_yield select
sendmsg set_robust_list get_robust_list set_tid_address setpgid setsid sigaltstack stat statfs statx
sysinfo tgkill time times umask uname vfork wait4 waitid write writev chdir fchdir recvfrom sendto
landlock_add_rule landlock_create_ruleset landlock_restrict_self seccomp
"""
_FILE_SYSTEM = """
chmod copy_file_range creat fallocate fchmod fchmodat fchmodat2 fdatasync fgetxattr flistxattr
flock fremovexattr fsetxattr fsync ftruncate getxattr inotify_add_watch inotify_init inotify_init1
inotify_rm_watch lgetxattr link linkat listxattr llistxattr lremovexattr lsetxattr mkdir mkdirat
mknod mknodat openat2 rename renameat renameat2 removexattr rmdir sendfile setxattr splice symlink
symlinkat sync sync_file_range syncfs tee truncate unlink unlinkat utime utimensat utimes futimesat
vmsplice chown fchown fchownat lchown
"""
_NETWORK = """
accept accept4 bind connect getpeername getsockname getsockopt listen recvfrom recvmmsg recvmsg
sendmmsg sendmsg sendto setsockopt shutdown socket socketpair
"""
_PROCESS = """
capget execveat getcpu getitimer ioprio_get landlock_add_rule landlock_create_ruleset
landlock_restrict_self seccomp sched_getattr sched_setaffinity sched_setattr sched_setparam
sched_setscheduler setfsgid setfsuid setgid setgroups setitimer setpriority setregid setresgid
setresuid setreuid setrlimit setuid signalfd signalfd4 timer_create timer_delete timer_getoverrun
timer_gettime timer_settime timerfd_create timerfd_gettime timerfd_settime tkill rt_tgsigqueueinfo
"""
_MEMORY = """
memfd_create mincore mlock mlock2 mlockall msync munlock munlockall pkey_alloc pkey_free
pkey_mprotect get_mempolicy mbind set_mempolicy
"""
_IPC = """
mq_getsetattr mq_notify mq_open mq_timedreceive mq_timedsend mq_unlink msgctl msgget msgrcv msgsnd
semctl semget semop semtimedop shmat shmctl shmdt shmget
"""
_DEBUG = "kcmp perf_event_open process_vm_readv process_vm_writev ptrace"

GROUPS: dict[str, tuple[str, ...]] = {
    "@runtime": tuple(_RUNTIME.split()),
    "@file-system": tuple(_FILE_SYSTEM.split()),
    "@network-io": tuple(_NETWORK.split()),
    "@process": tuple(_PROCESS.split()),
    "@memory": tuple(_MEMORY.split()),
    "@ipc": tuple(_IPC.split()),
    "@debug": tuple(_DEBUG.split()),
}
GROUPS["@default"] = tuple(
    name
    for group in ("@runtime", "@file-system", "@network-io", "@process", "@memory", "@ipc")
    for name in GROUPS[group]
)

# No sandbox may make these, whatever its policy says: each reaches past the other layers.
FLOOR = tuple(
    [
        "acct",
        "add_key",
        "adjtimex",
        "bpf",
        "chroot",
        "clock_adjtime",
        "clock_settime",
        "delete_module",
        "finit_module",
        "fsconfig",
        "fsmount",
        "fsopen",
        "fspick",
        "init_module",
        "io_uring_enter",
        "io_uring_register",
        "io_uring_setup",
        "ioperm",
        "iopl",
        "kexec_file_load",
        "kexec_load",
        "keyctl",
        "lookup_dcookie",
        "mount",
        "mount_setattr",
        "move_mount",
        "move_pages",
        "name_to_handle_at",
        "nfsservctl",
        "open_by_handle_at",
        "open_tree",
        "pidfd_getfd",
        "pivot_root",
        "quotactl",
        "quotactl_fd",
        "reboot",
        "request_key",
        "setdomainname",
        "sethostname",
        "setns",
        "settimeofday",
        "swapoff",
        "swapon",
        "sysfs",
        "syslog",
        "umount",
        "umount2",
        "unshare",
        "uselib",
        "userfaultfd",
        "ustat",
        "vhangup",
    ]
)
# What pid 1 and loaders need; a policy that denies one could start nothing.
ESSENTIAL = frozenset(
    [
        "clone",
        "close",
        "execve",
        "exit_group",
        "mmap",
        "poll",
        "read",
        "recvmsg",
        "sendmsg",
        "wait4",
        "write",
    ]
)

# Found by denying one call after another: without these no program is loaded, without those no shell
# or language runtime does its work.
_LOADING = ("arch_prctl", "mprotect", "newfstatat", "openat", "pread64")
_RUNNING = ("brk", "fcntl", "futex", "getdents64", "rt_sigreturn", "vfork")

_NAMESPACE_FLAGS = 0x7E020080  # CLONE_NEW{NS,CGROUP,UTS,IPC,USER,PID,NET,TIME}
_TIOCSTI, _TIOCLINUX = 0x5412, 0x541C
_NETLINK_ROUTE = 0
_CTL_OPTIMIZE = 8  # SCMP_FLTATR_CTL_OPTIMIZE, <seccomp.h>


def expand(names: Iterable[str]) -> list[str]:
    """Replace `@group`s by their calls. Raises `ValueError` with the known groups."""
    calls: list[str] = []
    for name in names:
        if not name.startswith("@"):
            calls.append(name)
        elif name in GROUPS:
            calls.extend(GROUPS[name])
        else:
            raise ValueError(
                f"unknown system call group {name}; known: {', '.join(sorted(GROUPS))}"
            )
    return calls


def hampered(policy: Policy) -> list[str]:
    """A sentence for each denial that lets no program start; `purple profile check`.

    Raises:
        ValueError: an unknown group.
    """
    denied = set(expand(policy.syscalls.deny))
    said: list[str] = []
    for names, what in (
        ((*sorted(ESSENTIAL), *_LOADING), "no program can start"),
        (_RUNNING, "no shell or language runtime works"),
    ):
        if missing := [name for name in names if name in denied]:
            said.append(f"syscalls.deny: {', '.join(missing)}: without it {what}")
    return said


def compile_filter(policy: Policy) -> bytes:
    """The policy's classic BPF program, as `struct sock_filter`s.

    Raises:
        ValueError: an unknown call or group, a denied call that starting a program needs, or an
            unknown operator. The text names it.
        ImportError: libseccomp is not installed.
    """
    import pyseccomp

    sc = cast(Any, pyseccomp)
    rules = policy.syscalls
    eperm = sc.ERRNO(errno.EPERM)
    denied = set(expand(rules.deny)) | set(FLOOR)
    if needed := sorted(denied & ESSENTIAL):
        raise ValueError(f"syscalls.deny: {', '.join(needed)}: without it no program can start")
    filt = sc.SyscallFilter(eperm if rules.default_deny else sc.ALLOW)
    # A binary tree instead of a list: a tenth of the steps for a call, and for the kernel's own
    # walk through all calls when it loads the filter. seccomp_attr_set(3).
    with contextlib.suppress(ValueError, OSError):  # libseccomp before 2.5
        filt.set_attr(_CTL_OPTIMIZE, 2)
    if rules.default_deny:
        allowed = dict.fromkeys([*GROUPS["@runtime"], *expand(rules.allow)])
        argument_checked = {"clone", "ioctl", "socket", *(rule.syscall for rule in rules.rules)}
        explicit = set(rules.allow)
        for name in allowed:
            if name in denied or name in argument_checked:
                continue
            _add(sc, filt, sc.ALLOW, name, known=name in explicit)
        if "socket" in allowed and "socket" not in denied:
            _allow_sockets(sc, filt)
        filt.add_rule(sc.ALLOW, "clone", sc.Arg(0, sc.MASKED_EQ, _NAMESPACE_FLAGS, 0))
        if "ioctl" not in denied:
            _allow_ioctl(sc, filt)
    else:
        for name in dict.fromkeys([*denied]):
            _add(sc, filt, eperm, name, known=name in rules.deny)
        for flag_bit in (1 << bit for bit in range(32) if _NAMESPACE_FLAGS >> bit & 1):
            filt.add_rule(eperm, "clone", sc.Arg(0, sc.MASKED_EQ, flag_bit, flag_bit))
        for number in (_TIOCSTI, _TIOCLINUX):
            filt.add_rule(eperm, "ioctl", sc.Arg(1, sc.MASKED_EQ, 0xFFFFFFFF, number))
        for family in range(64):
            if family not in (socket.AF_UNIX, socket.AF_INET, socket.AF_INET6, socket.AF_NETLINK):
                filt.add_rule(
                    sc.ERRNO(errno.EAFNOSUPPORT), "socket", sc.Arg(0, sc.MASKED_EQ, 0xFF, family)
                )
    if "clone3" not in rules.deny:  # flags sit behind a pointer: ENOSYS makes glibc use clone(2)
        _add(sc, filt, sc.ERRNO(errno.ENOSYS), "clone3")
    for rule in rules.rules:
        _add_policy_rule(sc, filt, rule)
    return _exported(filt)


# A file operation makes these once it has its request, and no others: narrowing.py.
_OPERATION = """
access brk chdir close clock_gettime dup dup2 dup3 exit exit_group faccessat faccessat2 fadvise64
fchdir fcntl fstat fstatfs futex getcwd getdents64 getegid geteuid getgid getpid getrandom gettid
getuid ioctl lseek lstat madvise mmap mprotect mremap munmap newfstatat open openat pread64 read
readlink readlinkat readv rt_sigaction rt_sigprocmask rt_sigreturn sched_yield stat statx umask write
writev fgetxattr getxattr lgetxattr flistxattr listxattr llistxattr
"""
_OPERATION_WRITES = """
chmod copy_file_range fchmod fchmodat fchmodat2 fdatasync fsync ftruncate mkdir mkdirat rename
renameat renameat2 rmdir sendfile symlink symlinkat truncate unlink unlinkat utimensat
fsetxattr lsetxattr setxattr
"""
_OPERATION_CONNECTS = """
connect epoll_create1 epoll_ctl epoll_wait getpeername getsockname getsockopt poll recvfrom recvmsg
select sendmmsg sendmsg sendto setsockopt shutdown socket
"""


@functools.cache
def compile_operation_filter(*, writes: bool, connects: bool) -> bytes:
    """What the interpreter inside may still call while it does one operation. As `compile_filter`.

    Args:
        writes: Whether it changes files. (Which ones is Landlock's.)
        connects: Whether it reaches a host. (Which one is the network's.)
    """
    import pyseccomp

    sc = cast(Any, pyseccomp)
    filt = sc.SyscallFilter(sc.ERRNO(errno.EPERM))
    names = [*_OPERATION.split()]
    if writes:
        names += _OPERATION_WRITES.split()
    if connects:
        names += _OPERATION_CONNECTS.split()
    for name in names:
        _add(sc, filt, sc.ALLOW, name)
    return _exported(filt)


def _exported(filt: Any) -> bytes:
    with tempfile.TemporaryFile() as file:
        filt.export_bpf(cast(BinaryIO, file))
        file.seek(0)
        return file.read()


def _add(sc: Any, filt: Any, action: Any, name: str, *, known: bool = False) -> None:
    try:
        filt.add_rule(action, name)
    except (ValueError, OSError, RuntimeError) as error:
        if known:
            raise ValueError(f"unknown system call {name} on this architecture") from error


def _allow_ioctl(sc: Any, filt: Any) -> None:
    """Allow every ioctl(2) request but TIOCSTI and TIOCLINUX (CVE-2017-5226).

    The kernel reads the low 32 bits of the request. A number differs from 0x5412 and 0x541C when
    one of its bits does; both share all bits but 1, 2 and 3 (0010 and 1100 in the last digit).
    """
    shared = 0xFFFFFFFF & ~0xE
    for bit in (1 << n for n in range(32)):
        if shared & bit:
            filt.add_rule(sc.ALLOW, "ioctl", sc.Arg(1, sc.MASKED_EQ, bit, ~_TIOCSTI & bit))
    for low in (0x0, 0x4, 0x6, 0x8, 0xA, 0xE):
        filt.add_rule(sc.ALLOW, "ioctl", sc.Arg(1, sc.MASKED_EQ, 0xE, low))


def _allow_sockets(sc: Any, filt: Any) -> None:
    for family in (socket.AF_UNIX, socket.AF_INET, socket.AF_INET6):
        filt.add_rule(sc.ALLOW, "socket", sc.Arg(0, sc.EQ, int(family)))
    filt.add_rule(
        sc.ALLOW,
        "socket",
        sc.Arg(0, sc.EQ, int(socket.AF_NETLINK)),
        sc.Arg(2, sc.EQ, _NETLINK_ROUTE),
    )


def _add_policy_rule(sc: Any, filt: Any, rule: SyscallRule) -> None:
    if rule.syscall in FLOOR and rule.action == "allow":
        raise ValueError(f"syscalls.rules: {rule.syscall} is never allowed in a sandbox")
    operators = {name: getattr(sc, name.upper()) for name in ("eq", "ne", "lt", "le", "gt", "ge")}
    value = _constant(rule.value)
    if rule.op == "masked_eq":
        argument = sc.Arg(rule.arg, sc.MASKED_EQ, value, value)
    else:
        argument = sc.Arg(rule.arg, operators[rule.op], value)
    action = sc.ALLOW if rule.action == "allow" else sc.ERRNO(errno.EPERM)
    try:
        filt.add_rule(action, rule.syscall, argument)
    except (ValueError, OSError, RuntimeError) as error:
        raise ValueError(
            f"syscalls.rules: {rule.syscall}: libseccomp refuses it: {error}"
        ) from error


def _constant(value: int | str) -> int:
    if isinstance(value, int):
        return value
    if value.startswith(("AF_", "SOCK_")) and hasattr(socket, value):
        return int(getattr(socket, value))
    try:
        return int(value, 0)
    except ValueError:
        raise ValueError(
            f"syscalls.rules: {value!r} is neither a number nor AF_… or SOCK_…"
        ) from None
