"""The system calls there are: in groups, and those that every sandbox needs or that none may make.

The groups carry systemd's names (systemd.exec(5), SystemCallFilter=); `@runtime` is ours: what the
loader, a language runtime and the sandbox's own pid 1 need to start a program and to end it, and the
calls by which a process can only give up more. libseccomp knows the calls' numbers on each
architecture: seccomp_syscall_resolve_name(3).
"""

from __future__ import annotations

import functools
from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..policies import Policy

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


def allowed_in_vain(policy: Policy) -> list[str]:
    """A sentence for each call that it allows and no sandbox may make; `purple profile check`."""
    return [
        f"syscalls.allow: {name}: no sandbox may make it, whatever its policy says; remove it"
        for name in policy.syscalls.allow
        if name in FLOOR
    ]


@functools.cache
def number_of(name: str) -> int | None:
    """The number of a call on this architecture; None where it has none.

    Raises:
        ImportError: libseccomp is not installed.
    """
    import pyseccomp

    number: int = pyseccomp.resolve_syscall(pyseccomp.Arch.NATIVE, name)
    return number if number >= 0 else None


def numbers_of(names: Iterable[str]) -> int:
    """A set of calls and `@group`s by their numbers: bit n for number n. Without those that this
    architecture has not.

    Raises:
        ValueError: an unknown group; names those that are known.
        ImportError: libseccomp is not installed.
    """
    found = 0
    for name in names:
        found |= _bits(name)
    return found


@functools.cache
def _bits(name: str) -> int:
    if name.startswith("@"):
        return numbers_of(expand((name,)))
    number = number_of(name)
    return 0 if number is None else 1 << number


@functools.cache
def newest() -> int:
    """The highest number that any call known here has."""
    return numbers_of((*FLOOR, "clone3", *GROUPS)).bit_length() - 1
