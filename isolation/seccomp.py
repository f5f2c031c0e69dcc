"""seccomp: which system calls a sandbox may make, compiled once per policy.

The calls' names and numbers are syscalls.py's, the program is bpf.py's. Source: seccomp(2).
"""

from __future__ import annotations

import errno
import functools
import socket
import stat
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from .bpf import ALLOW, Clause, Operator, Test, Verdict, assemble, code, errno_action
from .syscalls import ESSENTIAL, FLOOR, expand, newest, number_of, numbers_of
from .widths import bits_of

if TYPE_CHECKING:
    from ..policies import Policy, SyscallRule
    from ..policies.model import Syscalls

# Landlock lets these be (landlock.rst, "Filesystem flags"); mounts would hold them.
_ATTRIBUTES = """
chmod fchmod fchmodat fchmodat2 chown fchown fchownat lchown utime utimes utimensat futimesat
setxattr lsetxattr fsetxattr removexattr lremovexattr fremovexattr
"""

_NAMESPACE_FLAGS = 0x7E020080  # CLONE_NEW{NS,CGROUP,UTS,IPC,USER,PID,NET,TIME}
_TIOCSTI, _TIOCLINUX = 0x5412, 0x541C
_NETLINK_ROUTE = 0
_FAMILIES = (socket.AF_UNIX, socket.AF_INET, socket.AF_INET6, socket.AF_NETLINK)
_LEAST = ("clone", "@runtime")  # allowed whatever a list does not name
_REFUSE = errno_action(errno.EPERM)
_ABSENT = errno_action(errno.ENOSYS)


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


def is_free(policy: Policy, name: str) -> bool:
    """Whether a call of `@runtime` is allowed whatever its arguments are."""
    rules = policy.syscalls
    return name not in expand(rules.deny) and all(rule.syscall != name for rule in rules.rules)


@functools.lru_cache(maxsize=64)  # an engine for each workspace and session asks again
def _compile(rules: Syscalls, apart: bool, attributes: bool, refused_mode: int) -> bytes:
    denied = numbers_of(rules.deny) | _never(apart, attributes)
    if denied & numbers_of(ESSENTIAL):
        needed = [name for name in sorted(ESSENTIAL) if denied & numbers_of((name,))]
        raise ValueError(f"syscalls.deny: {', '.join(needed)}: without it no program can start")
    listed = numbers_of(_LEAST) | numbers_of(rules.allow)
    for name in (*rules.allow, *rules.deny):
        if not name.startswith("@"):
            _number(name)
    ruled: dict[str, int] = {}
    for rule in rules.rules:
        if rule.syscall.startswith("@"):
            raise ValueError(f"syscalls.rules: {rule.syscall}: a rule is about one call, no group")
        ruled[rule.syscall] = _number(rule.syscall)
    allowed = (listed if rules.default_deny else -1) & ~denied
    guards = _guards(apart, refused_mode)
    codes = {n: text for n, text in _guarded(apart, refused_mode).items() if allowed >> n & 1}
    for name, number in sorted(ruled.items()):
        verdict = _verdict(
            name, rules.rules, guards.get(name, []),
            denied=bool(denied >> number & 1), allowed=bool(allowed >> number & 1),
        )  # fmt: skip
        codes[number] = code(verdict)
    # Its flags sit behind a pointer; without it, glibc uses clone(2).
    if (clone3 := number_of("clone3")) is not None:
        codes[clone3] = code(Verdict(_ABSENT))
    if rules.default_deny:
        return assemble(allowed, ALLOW, _REFUSE, (newest() + 1, _ABSENT), codes)
    return assemble(denied, _REFUSE, ALLOW, (newest() + 1, ALLOW if apart else _ABSENT), codes)


def _number(name: str) -> int:
    if (number := number_of(name)) is None:
        raise ValueError(f"unknown system call {name} on this architecture")
    return number


@functools.cache
def _never(apart: bool, attributes: bool) -> int:
    """What no policy allows, as `numbers_of`."""
    names = [*FLOOR]
    names += [] if apart else ["socket", "@ipc"]
    names += [] if attributes else _ATTRIBUTES.split()
    return numbers_of(names)


@functools.cache
def _guards(apart: bool, refused_mode: int) -> Mapping[str, Sequence[tuple[Test, ...]]]:
    """By name, what is refused of calls that are allowed."""
    return {**_GUARDS, **_mode_guards(refused_mode), **({} if apart else _NOT_APART)}


@functools.cache
def _guarded(apart: bool, refused_mode: int) -> Mapping[int, bytes]:
    """By number, the code of a call that is allowed and that no rule is about."""
    return {
        number: code(_verdict(name, (), guards, allowed=True, denied=False))
        for name, guards in _guards(apart, refused_mode).items()
        if (number := number_of(name)) is not None
    }


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
    return Verdict(otherwise=_REFUSE if allow else ALLOW, clauses=tuple(clauses))


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
    return assemble(numbers_of(names), ALLOW, _REFUSE, (newest() + 1, _ABSENT), {})


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
