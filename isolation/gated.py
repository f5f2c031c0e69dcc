"""A process that exists before its command is known: posix_spawn(3) held at a gate.

Theory of operation
    posix_spawn's child shares its parent's memory until it calls execve(2), and carries out a list
    of file actions before that. The first action here opens a FIFO for reading, which blocks until
    somebody opens it for writing (fifo(7)). So the child waits, already in its namespaces, under
    its Landlock domain and seccomp filter, while whoever limits it moves it into its cgroup by pid.
    Path, arguments and environment of the pending execve lie in memory that zygote and gateway
    share (`Arena`). When a command comes, the gateway writes it there and opens the gate: what is
    left of a call is the execve. The spawning thread is suspended until then, as after vfork(2).
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import struct
from collections.abc import Container, Mapping, Sequence

from . import libc

_PATH_BYTES = 4096  # PATH_MAX, <linux/limits.h>
_POINTERS = 1 << 15  # room for arguments, and again for variables
_POINTER_BYTES = 8 * _POINTERS
_TEXT = _PATH_BYTES + 2 * _POINTER_BYTES
_REGION_BYTES = 1 << 20
REGIONS = 4096  # sandboxes of one engine alive at once
# Larger than any libc's posix_spawn_file_actions_t, posix_spawnattr_t and sigset_t.
_ACTIONS_BYTES, _ATTRIBUTES_BYTES, _SIGSET_BYTES = 512, 1024, 128
# <spawn.h>
_SETSIGDEF, _SETSIGMASK, _SETSID = 0x04, 0x08, 0x80


class Arena:
    """Memory shared by gateway and zygote: a region of one mebibyte for each sandbox.

    Args:
        fd: A memory file of theirs, see `create`; still the caller's to close. Pages that nobody
            has touched cost nothing.
    """

    def __init__(self, fd: int) -> None:
        self._map = mmap.mmap(fd, REGIONS * _REGION_BYTES)
        self.address = ctypes.addressof(ctypes.c_char.from_buffer(self._map))

    def close(self) -> None:
        """Unmap it; a process that executes from it must have ended."""
        self._map.close()

    @staticmethod
    def create() -> int:
        """A new memory file for an arena: memfd_create(2)."""
        fd = os.memfd_create("purple", os.MFD_CLOEXEC)
        os.ftruncate(fd, REGIONS * _REGION_BYTES)
        return fd

    def write(
        self, region: int, base: int, program: str, argv: Sequence[str], env: Mapping[str, str]
    ) -> None:
        """Put what execve(2) takes into `region`.

        Args:
            region: Its number.
            base: The arena's address in the process that will execute.
            program, argv, env: As for execve.

        Raises:
            OSError: E2BIG, there is no room for it; EINVAL, a NUL in one of them.
        """
        path = os.fsencode(program)
        words = [os.fsencode(word) for word in argv]
        variables = [os.fsencode(f"{name}={value}") for name, value in env.items()]
        text = b"\0".join([*words, *variables, b""])
        if text.count(b"\0") != len(words) + len(variables) or b"\0" in path:
            raise OSError(errno.EINVAL, "a NUL character in the command or its environment")
        start = region * _REGION_BYTES
        if (
            len(path) >= _PATH_BYTES
            or max(len(words), len(variables)) >= _POINTERS
            or len(text) > _REGION_BYTES - _TEXT
        ):
            raise OSError(errno.E2BIG, "the command is too long; put it into a file")
        self._map[start : start + len(path) + 1] = path + b"\0"
        self._map[start + _TEXT : start + _TEXT + len(text)] = text
        address = base + start + _TEXT
        for offset, texts in ((_PATH_BYTES, words), (_PATH_BYTES + _POINTER_BYTES, variables)):
            pointers: list[int] = []
            for item in texts:
                pointers.append(address)
                address += len(item) + 1
            pointers.append(0)
            struct.pack_into(f"{len(pointers)}Q", self._map, start + offset, *pointers)


def open_gate(gate: int) -> int:
    """Let the child behind `gate` (an O_PATH descriptor of its FIFO) execute.

    Returns:
        A descriptor to be kept until the child is known to have gone on.
    """
    # Read and write: never blocks, also when the child has not come to its gate yet.
    return os.open(f"/proc/self/fd/{gate}", os.O_RDWR | os.O_CLOEXEC)


class GatedProcess:
    """One command to be, held at its gate.

    Args:
        fds: stdin, stdout and stderr of the command; still the caller's to close, after `spawn`.
        address: Of its region of the arena, in this process.
        directory: Where the FIFO is made and at once unlinked; the child must be allowed to read
            there.
        terminal: Path of a terminal that becomes its controlling one and replaces those of the
            three that are None.

    Attributes:
        gate: For `open_gate`.
    """

    def __init__(
        self, fds: Sequence[int | None], address: int, directory: str, terminal: str | None = None
    ) -> None:
        self._fds = tuple(fds)
        self._address = address
        self._terminal = terminal
        # Both sides open it through /proc/self/fd: nothing inside can find it by name. (A pipe(2)
        # would not do: its second open never blocks.)
        os.mkfifo(f"{directory}/.gate", 0o600)
        self.gate = os.open(f"{directory}/.gate", os.O_PATH | os.O_CLOEXEC)
        os.unlink(f"{directory}/.gate")

    def spawn(self) -> int:
        """Start the child and wait until it executes its command or fails to.

        Blocks, without the interpreter's lock, from now until after `open_gate`. The child has its
        own session.

        Returns:
            0 when the command runs; else errno of the file action or of execve(2).
        """
        actions = ctypes.create_string_buffer(_ACTIONS_BYTES)
        attributes = ctypes.create_string_buffer(_ATTRIBUTES_BYTES)
        pid = ctypes.c_int()
        libc.posix_spawn_call("posix_spawn_file_actions_init", actions)
        libc.posix_spawn_call("posix_spawnattr_init", attributes)
        try:
            self._describe(actions, attributes)
            argv = self._address + _PATH_BYTES
            return libc.posix_spawn(
                pid, self._address, actions, attributes, argv, argv + _POINTER_BYTES
            )
        finally:
            libc.posix_spawn_call("posix_spawn_file_actions_destroy", actions)
            libc.posix_spawn_call("posix_spawnattr_destroy", attributes)

    def _describe(
        self, actions: ctypes.Array[ctypes.c_char], attributes: ctypes.Array[ctypes.c_char]
    ) -> None:
        gate = f"/proc/self/fd/{self.gate}".encode()
        add_open = "posix_spawn_file_actions_addopen"
        libc.posix_spawn_call(add_open, actions, 0, gate, os.O_RDONLY, 0)
        for target, fd in enumerate(self._fds):
            if fd is not None:
                libc.posix_spawn_call("posix_spawn_file_actions_adddup2", actions, fd, target)
            elif self._terminal is not None:
                # A session leader's first open of a terminal makes it the controlling one: tty(4).
                name = self._terminal.encode()
                libc.posix_spawn_call(add_open, actions, target, name, os.O_RDWR, 0)
        # Whatever Python ignores or handles goes back to the default; nothing stays blocked.
        every = ctypes.create_string_buffer(b"\xff" * _SIGSET_BYTES, _SIGSET_BYTES)
        none = ctypes.create_string_buffer(_SIGSET_BYTES)
        libc.posix_spawn_call("posix_spawnattr_setsigdefault", attributes, every)
        libc.posix_spawn_call("posix_spawnattr_setsigmask", attributes, none)
        flags = ctypes.c_short(_SETSIGDEF | _SETSIGMASK | _SETSID)
        libc.posix_spawn_call("posix_spawnattr_setflags", attributes, flags)

    def close(self) -> None:
        """Close the gate. Call when `spawn` has returned."""
        os.close(self.gate)


def region_address(base: int, region: int) -> int:
    """Where `region` of an arena mapped at `base` lies."""
    return base + region * _REGION_BYTES


def last_pid() -> int:
    """The pid most recently given out in our pid namespace: proc_loadavg(5), fifth field."""
    with open("/proc/loadavg") as file:
        return int(file.read().split()[4])


def unknown_child(after: int, known: Container[int]) -> int | None:
    """The pid of a child of this process that is not `known`; None while there is none.

    posix_spawn tells the pid only when it returns, and /proc/PID/task/TID/children is missing where
    CONFIG_PROC_CHILDREN is off. So the pids given out since `after` (a `last_pid`) are looked at,
    and all of them where the counter has wrapped.
    """
    now = last_pid()
    pids: Sequence[int] = range(after + 1, now + 1)
    if now < after:
        pids = sorted(int(name) for name in os.listdir("/proc") if name.isdigit())
    own = os.getpid()
    for pid in pids:
        if pid not in known and _parent(pid) == own:
            return pid
    return None


def _parent(pid: int) -> int | None:
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return int(file.read().rpartition(b")")[2].split()[1])
    except (OSError, IndexError):
        return None
