"""How many bits of each argument the kernel reads: what a filter has to compare.

Source: the SYSCALL_DEFINEs of Linux 6.18. For each call a letter an argument: `h` umode_t (16 bits),
`i` int, unsigned int, pid_t, uid_t, … (32), `l` long, size_t, pointers (64). Calls and arguments
that are not here are compared whole.
"""

from __future__ import annotations

_BITS = {"h": 16, "i": 32, "l": 64}
_TABLE = """
accept ill accept4 illi access li alarm i bind ili chmod lh chown lii clock_getres il
clock_gettime il clock_nanosleep iill clock_settime il close i close_range iii connect ili
copy_file_range ililli creat lh dup i dup2 ii dup3 iii epoll_create i epoll_create1 i epoll_ctl iiil
epoll_pwait iliill epoll_wait ilii eventfd2 ii execveat illli exit i exit_group i faccessat ili
faccessat2 ilii fadvise64 illi fallocate iill fchdir i fchmod ih fchmodat ilh fchmodat2 ilhi
fchown iii fchownat iliii fcntl iil fdatasync i fgetxattr illl flistxattr ill flock ii
fremovexattr il fsetxattr illli fstat il fstatfs il fsync i ftruncate il futex liilli futimesat ill
getdents64 ili getgroups il getitimer il getpeername ill getpgid i getpriority ii getrandom lli
getrlimit il getrusage il getsid i getsockname ill getsockopt iiill inotify_add_watch ili
inotify_init1 i inotify_rm_watch ii ioctl iil ioprio_get ii ioprio_set iii kcmp iiill kill ii
lchown lii link ll linkat ilili listen ii lseek ili lsetxattr lllli madvise lli membarrier iii
memfd_create li mkdir lh mkdirat ilh mknod lhi mknodat ilhi mlock2 lli mlockall i mprotect lll
mq_getsetattr ill mq_notify il mq_open lihl mq_timedreceive illll mq_timedsend illil msgctl iil
msgget ii msgrcv illli msgsnd illi msync lli newfstatat illi open lih openat ilih openat2 illl
perf_event_open liiil personality i pidfd_getfd iii pidfd_open ii pidfd_send_signal iili pipe2 li
pkey_alloc ll pkey_free i pkey_mprotect llli poll lii ppoll lilll prctl illll pread64 illl
preadv illll preadv2 illlli prlimit64 iill process_vm_readv illlll process_vm_writev illlll
ptrace llll pwrite64 illl pwritev illll pwritev2 illlli read ill readahead ill readlink lli
readlinkat illi readv ill recvfrom illill recvmmsg iliil recvmsg ili renameat ilil renameat2 ilili
rt_sigaction illl rt_sigprocmask illl rt_sigqueueinfo iil rt_tgsigqueueinfo iiil
sched_get_priority_max i sched_get_priority_min i sched_getaffinity iil sched_getattr ilii
sched_getparam il sched_getscheduler i sched_setaffinity iil sched_setattr ili sched_setparam il
sched_setscheduler iil seccomp iil select illll semctl iiil semget iii semop ili semtimedop ilil
sendfile iill sendmmsg iliil sendmsg ili sendto illili setfsgid i setfsuid i setgid i setgroups il
setitimer ill setns ii setpgid ii setpriority iii setregid ii setresgid iii setresuid iii setreuid ii
setrlimit il setsockopt iiili setuid i setxattr lllli shmat ili shmctl iil shmget ili shutdown ii
signalfd ill signalfd4 illi socket iii socketpair iiil splice ililli statx iliil symlinkat lil
sync_file_range illi syncfs i tee iili tgkill iii timer_create ill timer_delete i timer_getoverrun i
timer_gettime il timer_settime iill timerfd_create ii timerfd_gettime il timerfd_settime iill tkill ii
umask i unlinkat ili unshare l utimensat illi vmsplice illi wait4 ilil waitid iilil write ill
writev ill
"""
_WORDS = [str(word) for word in _TABLE.split()]
_WIDTHS = dict(zip(_WORDS[::2], _WORDS[1::2], strict=True))


def bits_of(call: str, argument: int) -> int:
    """16, 32 or 64: how much of `argument` (from 0) the kernel reads in `call`."""
    widths = _WIDTHS.get(call, "")
    return _BITS[widths[argument]] if argument < len(widths) else 64
