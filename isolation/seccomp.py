"""seccomp: which system calls a sandbox may make, compiled once per policy.

libseccomp knows the calls' numbers on each architecture; the program is bpf.py's. Sources: seccomp(2),
seccomp_syscall_resolve_name(3). The groups carry systemd's names (systemd.exec(5),
SystemCallFilter=); `@runtime` is ours: what the loader, a language runtime and the sandbox's own
pid 1 need to start a program and to end it, and the calls by which a process can only give up more.
"""

from __future__ import annotations

import errno
import functools
import socket
import stat
from collections.abc import Iterable
from typing import TYPE_CHECKING

from .bpf import ALLOW, Clause, Operator, Test, Verdict, assemble, errno_action
from .widths import bits_of

if TYPE_CHECKING:
    from ..policies import Policy, SyscallRule
    from ..policies.model import Syscalls

_RUNTIME = """
access alarm arch_prctl brk clock_getres clock_gettime clock_nanosleep clone close close_range dup
dup2 dup3 epoll_create epoll_create1 epoll_ctl epoll_pwait epoll_pwait2 epoll_wait eventfd2 execve
exit exit_group faccessat faccessat2 fadvise64 fcntl fstat fstatfs futex futex_wait futex_wake getcwd
getdents64 getegid geteuid getgid getgroups getpgid getpgrp getpid getppid getpriority getrandom
getresgid getresuid getrlimit getrusage getsid gettid gettimeofday getuid ioctl kill lseek lstat
madvise membarrier mmap mprotect mremap munmap nanosleep newfstatat open openat pause pidfd_open
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
# Landlock lets these be (landlock.rst, "Filesystem flags"); mounts would hold them.
_ATTRIBUTES = """
chmod fchmod fchmodat fchmodat2 chown fchown fchownat lchown utime utimes utimensat futimesat
setxattr lsetxattr fsetxattr removexattr lremovexattr fremovexattr
"""
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
_FAMILIES = (socket.AF_UNIX, socket.AF_INET, socket.AF_INET6, socket.AF_NETLINK)
_REFUSE = errno_action(errno.EPERM)
_ABSENT = errno_action(errno.ENOSYS)


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


def compile_filter(
    policy: Policy, *, apart: bool = True, refused_mode: int = stat.S_ISUID | stat.S_ISGID
) -> bytes:
    """The policy's classic BPF program, as `struct sock_filter`s.

    Args:
        policy: Whose lists and rules they are.
        apart: Whether the sandbox has namespaces of its own. Where not, what would reach the caller's
            other processes is refused, too: sockets, System V IPC and message queues, and limits and
            scheduling of a process that is named; and, unless the policy accepts it, changes of what
            Landlock does not hold: files' permissions, owners, times and extended attributes.
        refused_mode: Bits that chmod(2) and mknod(2) give to no file. `nosuid` keeps a setuid program
            from its owner's id inside; outside, on the host's own mount, nothing would.

    Of a call that `syscalls.rules` name: what the sandbox never allows is refused, then what a rule
    denies; where rules allow, what none of them allows is refused; else the lists decide. Calls that
    are newer than any known here do not exist (ENOSYS), so that programs fall back to older ones.

    Raises:
        ValueError: an unknown call or group, a denied call that starting a program needs, a value
            that its argument cannot have. The text names it.
        ImportError: libseccomp is not installed.
    """
    attributes = apart or "attributes" in policy.dangerously_without_namespaces
    return _compile(policy.syscalls, apart, attributes, refused_mode)  # pyright: ignore[reportArgumentType]  # frozen: it has a hash


@functools.lru_cache(maxsize=64)  # an engine for each workspace and session asks again
def _compile(rules: Syscalls, apart: bool, attributes: bool, refused_mode: int) -> bytes:
    denied = set(expand(rules.deny)) | set(FLOOR)
    denied |= set(() if apart else ("socket", *GROUPS["@ipc"]))
    denied |= set(() if attributes else _ATTRIBUTES.split())
    if needed := sorted(denied & ESSENTIAL):
        raise ValueError(f"syscalls.deny: {', '.join(needed)}: without it no program can start")
    listed = {"clone", *GROUPS["@runtime"], *expand(rules.allow)}
    for name in [*rules.allow, *rules.deny, *(rule.syscall for rule in rules.rules)]:
        if not name.startswith("@") and number_of(name) is None:
            raise ValueError(f"unknown system call {name} on this architecture")
    verdicts: dict[int, Verdict] = {}
    default = _REFUSE if rules.default_deny else ALLOW
    guards = {**_GUARDS, **_mode_guards(refused_mode), **({} if apart else _NOT_APART)}
    names = {*listed, *denied, *guards, *(rule.syscall for rule in rules.rules)}
    for name in sorted(names):
        if (number := number_of(name)) is None:
            continue
        allowed = name not in denied and (not rules.default_deny or name in listed)
        verdict = _verdict(
            name, rules.rules, guards.get(name, []), allowed=allowed, denied=name in denied
        )
        if verdict != Verdict(otherwise=default):
            verdicts[number] = verdict
    # Its flags sit behind a pointer; without it, glibc uses clone(2).
    if (clone3 := number_of("clone3")) is not None:
        verdicts[clone3] = Verdict(otherwise=_ABSENT)
    beyond = _ABSENT if rules.default_deny or not apart else ALLOW
    return assemble(verdicts, default, (_newest() + 1, beyond))


def _verdict(
    name: str, rules: Iterable[SyscallRule], guards: Iterable[tuple[Test, ...]], *,
    allowed: bool, denied: bool,
) -> Verdict:  # fmt: skip
    rules = [rule for rule in rules if rule.syscall == name]
    allow = [rule for rule in rules if rule.action == "allow"]
    if denied:
        if allow:
            raise ValueError(
                f"syscalls.rules: {name} is never allowed in a sandbox"
                if name in FLOOR
                else f"syscalls.rules: {name} is in syscalls.deny, so no rule can allow it"
            )
        return Verdict(otherwise=_REFUSE)
    if not allowed and not allow:
        return Verdict(otherwise=_REFUSE)
    clauses = [Clause(tests=tests, action=_REFUSE) for tests in guards]
    clauses += [
        Clause(tests=_tests(rule), action=_REFUSE) for rule in rules if rule.action == "deny"
    ]
    clauses += [Clause(tests=_tests(rule), action=ALLOW) for rule in allow]
    return Verdict(otherwise=_REFUSE if allow else ALLOW, clauses=clauses)


def _test(name: str, argument: int, op: Operator, value: int) -> Test:
    return Test(argument=argument, op=op, value=value, bits=bits_of(name, argument))


# What is refused of a call that is allowed, whatever the policy says. The kernel reads 32 bits of
# these arguments, and of clone(2)'s flags: lower_32_bits() in kernel/fork.c.
_GUARDS: dict[str, list[tuple[Test, ...]]] = {
    "clone": [(Test(argument=0, op="any_bits", value=_NAMESPACE_FLAGS, bits=32),)],
    "ioctl": [(_test("ioctl", 1, "eq", number),) for number in (_TIOCSTI, _TIOCLINUX)],
    "socket": [
        tuple(_test("socket", 0, "ne", family) for family in _FAMILIES),
        (
            _test("socket", 0, "eq", socket.AF_NETLINK),
            _test("socket", 2, "ne", _NETLINK_ROUTE),
        ),
    ],
    "socketpair": [(_test("socketpair", 0, "ne", socket.AF_UNIX),)],
}
# open(2) and openat2(2) are not among them, and so cost nothing: what they make setuid is empty, and
# whoever changes it without CAP_FSETID takes the bit away (file_remove_privs() in fs/inode.c).
_MODE_ARGUMENTS = {"chmod": 1, "fchmod": 1, "fchmodat": 2, "fchmodat2": 2, "mknod": 1, "mknodat": 2}


def _mode_guards(refused: int) -> dict[str, list[tuple[Test, ...]]]:
    return {
        name: [(_test(name, argument, "any_bits", refused),)]
        for name, argument in _MODE_ARGUMENTS.items()
        if refused
    }


# Beside those, where other processes of the user's are in the same pid namespace.
_NOT_APART: dict[str, list[tuple[Test, ...]]] = {
    **{
        name: [(_test(name, 0, "ne", 0),)]
        for name in (
            "prlimit64", "sched_setaffinity", "sched_setattr", "sched_setparam", "sched_setscheduler",
        )
    },
    "setpriority": [(_test("setpriority", 1, "ne", 0),)],
}  # fmt: skip


def _tests(rule: SyscallRule) -> tuple[Test, ...]:
    tests: list[Test] = []
    for part in (rule, *rule.also):
        bits = bits_of(rule.syscall, part.arg)
        value = _constant(part.value)
        if not -(1 << bits - 1) <= value < 1 << bits:
            raise ValueError(
                f"syscalls.rules: {rule.syscall}: argument {part.arg} has {bits} bits, "
                f"{part.value} does not fit"
            )
        value &= (1 << bits) - 1
        tests.append(Test(argument=part.arg, op=part.op, value=value, bits=bits))
    return tuple(tests)


@functools.cache
def number_of(name: str) -> int | None:
    """The number of a call on this architecture; None where it has none.

    Raises:
        ImportError: libseccomp is not installed.
    """
    import pyseccomp

    number: int = pyseccomp.resolve_syscall(pyseccomp.Arch.NATIVE, name)
    return number if number >= 0 else None


@functools.cache
def _newest() -> int:
    known = {*FLOOR, "clone3", *(name for names in GROUPS.values() for name in names)}
    return max(number for name in known if (number := number_of(name)) is not None)


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
    names = [*_OPERATION.split()]
    if writes:
        names += _OPERATION_WRITES.split()
    if connects:
        names += _OPERATION_CONNECTS.split()
    numbers = [number for name in names if (number := number_of(name)) is not None]
    verdicts = {number: Verdict(otherwise=ALLOW) for number in numbers}
    return assemble(verdicts, _REFUSE, (_newest() + 1, _ABSENT))


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
