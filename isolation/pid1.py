"""pid 1 of a sandbox: a program of a few hundred bytes that becomes closed and then waits to serve.

Theory of operation
    The zygote spawns it in the sandbox's namespaces, with the command's stdin, stdout and stderr as
    0, 1 and 2, a socket to the gateway as 3, a Landlock ruleset as 4, the seccomp filter as 5, and
    from 6 on the files by which it moves itself into its cgroup, the first thing that it does. (To
    move another process the kernel waits until all processors have taken notice, some ten
    milliseconds on a quiet machine: cgroup_procs_write_start() in kernel/cgroup/cgroup.c.)
    The execve(2) that starts it has taken its capabilities: the zygote has an empty bounding set,
    no_new_privs, and an id that is not root's in its user namespace. It makes itself unreadable to
    what will run beside it, restricts itself by ruleset and filter, and waits for `GO`, which comes when
    the zygote has set its limits (prlimit(2)) and the sandbox is the next that is used. Then it starts the
    process that becomes the command, in a session of its own and from the same memory, and reaps whatever
    is orphaned to it until that one ends. That one reads the order, what execve takes, so that when it
    comes one process has to be woken, which has nothing to do but execute. What waits uses no stack, so
    it has none: that would be a third of what page tables and memory it has. (It stays where the range
    would reach over the end of the address space.) pid 1 then says on the socket how it ended, and
    exits, which is the end of everything else in its pid namespace. Anything that fails is said in
    the same way; it never goes on without the restriction that failed.

    The command is not pid 1 itself, which the kernel shields from its own signals
    (pid_namespaces(7)). pid 1 is no Python, because fork, memory and exit of an interpreter would
    be the better part of a sandbox's cost, and no C library, whose start costs more than all that
    it does: so it is written in assembler, pid1_x86_64.S and pid1_aarch64.S, whose bytes stand
    below. Elsewhere `serve` does the same in a fork of the zygote.
"""

from __future__ import annotations

import binascii
import errno
import os
import resource
import struct
from typing import Any, NamedTuple, NoReturn

from . import capabilities, landlock, libc

CONTROL, RULESET, FILTER, GROUPS = 3, 4, 5, 6
GO = b"g"  # before the order, or some time before it
PATH = "/run/purple/init"  # in the view
TERMINAL = "/dev/pts/0"  # the first of a sandbox's own devpts
# As in pid1_*.S; within two mebibytes, for which one page of page table is enough.
_TEXT, _BUFFER, _BUFFER_BYTES = 0x400000, 0x410000, 1 << 20
_HEAD = struct.Struct("=4I")  # length of the order; how many arguments, variables, paths
# setup, exec, status, -, and of struct rusage: ru_utime, ru_stime, ru_maxrss, ru_inblock, ru_oublock
_RESULT = struct.Struct("=iii4x5q48x2q40x")
_BLOCK_BYTES = 512  # of ru_inblock and ru_oublock: <linux/task_io_accounting_ops.h>
RESULT_BYTES = _RESULT.size

_CODE = {
    "x86_64": """
TIssJEyLZCQIuwAAQQC9AABRAGowQb4GAAAAQf/NdCm4AQAAAESJ90iJ5roBAAAADwWFwA+IMQEAALgDAAAARIn3DwVB/8br0ridAAAAvwQAAAAx9g8FhcAP
iAwBAABBgDwkbnQWuL4BAAC/BAAAADH2DwWFwA+I7wAAAEiB7AAAAQC4EQAAAL8FAAAASInmugAAAQBFMdIPBbnq////hcAPRMGFwA+IvwAAAMHoA1ZQuD0B
AAC/AQAAADH2SIniDwWFwA+IoQAAALgDAAAAvwQAAAAPBbgDAAAAvwUAAAAPBbgLAAAASI28JAAA/v9IgecA8P//vgAAQAAPBTHAvwMAAABIid66AQAAAA8F
SIXAfnG4OAAAAL8RAQAAMfYx0kUx0kUxwA8FhcB4PnRfQYnGRTHkuAMAAABEiecPBUH/xEGD/ANy7bg9AAAASMfH/////0iNdQgx0kyNVRAPBYXAeAdEOfB1
3+sF99iJRQC4AQAAAL8DAAAASInuuqAAAAAPBbjnAAAAMf8PBfS4cAAAAA8FRTHtMcC/AwAAAEqNNCu6AAAQAEwp6g8FSIXAftJJAcVJg/0Qct2LA0k5xXLW
TI1jEEiNfAMHSIPn+EmJ/otLBDHS/8l4FUyJJ0iDxwhBgDwkAE2NZCQBdfTr50jHBwAAAABIg8cIhdJ1CkmJ/4tLCP/C685BgDwkAHQcuFAAAABMiecPBYXA
D4iNAAAASf/EQYA8JAB19kn/xEGAPCQAdC24AQEAAEjHx5z///9Miea6AgAAAA8FhcB4X4nHuAMAAAAPBUn/xEGAPCQAdfZJ/8S4AwAAAL8DAAAADwWLWwxB
vf7///+4OwAAAEyJ50yJ9kyJ+g8Fg/j+dA2D+Ox0CIP483UVQYnFSf/EQYB8JP8AdfX/y3XPRIno99iJRQS45wAAAL9/AAAADwX0
""",
    "aarch64": """
9gNA+fUHQPkzCKDSNAqg0gAGgFLgDx/41wCAUtYGAHGAAQBUCAiA0uADFyrhAwCRIgCA0gEAANRgCvi3KAeA0uADFyoBAADU9wYAEfT//xfoFIDSgACA0gEA
gNIBAADUIAn4t6ACQDkfuAFxwAAAVMg3gNKAAIDSAQCA0gEAANQgCPi3/0NA0WgIgNKgAIDS4QMAkSIAoNIDAIDSAQAA1KICgJIfAADxQACAmsAG+LcA/EPT
4Ae/qagigNIgAIDSAQCA0uIDAJEBAADUwAX4tygHgNKAAIDSAQAA1KAAgNIBAADU6BqA0uADAJEAgEDRALxwkgEIoNIBAADU6AeA0mAAgNLhAxOqIgCA0gEA
ANQfAADxbQQAVIgbgNIgIoDSAQCA0gIAgNIDAIDSBACA0gEAANSAAvi3wAMAtPcDACoWAIBSKAeA0uADFioBAADU1gYAEd8OAHGD//9UiCCA0gAAgJKBIgCR
AgCA0oNCAJEBAADUgAD4tx8AF2sB//9UAwAAFOADAEuAAgC5CAiA0mAAgNLhAxSqAhSA0gEAANTIC4DSAACA0gEAANQAACDUqBOA0gEAANQWAIDS6AeA0mAA
gNJhAhaLAgKg0kIAFssBAADUHwAA8U3+/1TWAgCL30IA8cP+/1RgAkC53wIA62P+/1R1QgCRaQIAiykdAJEp8X2S9wMJqmoGQLkLAIBSygAANEoFAFE1hQD4
rBZAOOz//zX7//8XP4UA+KsAADX4AwmqagpAuSsAgFL1//8X4AMVqqwWQDjMAAA0KAaA0gEAANSgBPi3rBZAOOz//zXhAxWqrBZAOEwBADQIB4DSYAyAkkIA
gNIBAADUYAP4tygHgNIBAADUrBZAOOz//zUoB4DSYACA0gEAANRzDkC5NgCAEqgbgNLgAxWq4QMXquIDGKoBAADUHwgAMcAAAFQfUAAxgAAAVB80ADHhAABU
9gMAKqwWQDjs//81cwYAcSH+/1TgAxYq4AMAS4AGALnIC4DS4A+A0gEAANQAACDU
""",
}
_MACHINE = {"x86_64": 62, "aarch64": 183}  # EM_… of <elf.h>


def code(machine: str) -> bytes | None:
    """What pid1_`machine`.S assembles to; None where there is none."""
    return binascii.a2b_base64(_CODE[machine]) if machine in _CODE else None


def executable() -> bytes | None:
    """An ELF file for this machine, for `PATH`; None where `serve` takes its place. elf(5)."""
    text = code(os.uname().machine)
    if text is None:
        return None
    count, header = 3, 64 + 3 * 56
    page = 1 << 16  # the largest that any of these machines uses
    file = struct.pack(
        "<4s5B7xHHIQQQIHHHHHH", b"\x7fELF", 2, 1, 1, 0, 0, 2, _MACHINE[os.uname().machine], 1,
        _TEXT + header, 64, 0, 0, 64, 56, count, 0, 0, 0,
    )  # fmt: skip
    size = header + len(text)
    for kind, flags, address, in_file, in_memory in (
        (1, 5, _TEXT, size, size),  # PT_LOAD, read and execute
        (1, 6, _BUFFER, 0, _BUFFER_BYTES + 4096),  # PT_LOAD, read and write
        (0x6474E551, 6, 0, 0, 0),  # PT_GNU_STACK: not executable
    ):
        file += struct.pack("<IIQQQQQQ", kind, flags, 0, address, address, in_file, in_memory, page)
    return file + text


def order(words: int, variables: int, paths: int, strings: bytes) -> bytes:
    """What execve(2) takes, as pid 1 reads it.

    Args:
        words, variables, paths: How many there are of each in `strings`.
        strings: Each with a NUL behind it: the arguments; the environment; a directory to change to
            first, "" to stay; what becomes its controlling terminal (`TERMINAL`), "" for none; the
            paths of which the first that can be executed is, at least one.

    Raises:
        ValueError: there is no room for it: pointers to all but the paths go behind it.
    """
    length = _HEAD.size + len(strings)
    if length + 8 * (words + variables + 3) > _BUFFER_BYTES:
        raise ValueError("the command is too long")
    return _HEAD.pack(length, words, variables, paths) + strings


def report(result: bytes) -> dict[str, Any]:
    """What pid 1 said: `status` as of wait4(2), with what the command and the children that it waited
    for have used, as `Usage` names it; or `refused`, errno's name, where the command could not be
    executed; or `error`, where the sandbox could not be closed. Empty when it was killed.
    """
    if len(result) != RESULT_BYTES:
        return {}
    setup, refused, status, user, user_us, system, system_us, rss, read, written = (
        _RESULT.unpack(result)
    )  # fmt: skip
    if setup:
        return {"error": f"pid 1: {os.strerror(setup)}"}
    if refused:
        return {"refused": errno.errorcode.get(refused, str(refused))}
    return {
        "status": status,
        "cpu_seconds": user + system + (user_us + system_us) / 1e6,
        "memory_peak_bytes": rss * 1024,
        "read_bytes": read * _BLOCK_BYTES,
        "written_bytes": written * _BLOCK_BYTES,
    }


def serve(program: bytes, *, restricted: bool, groups: int = 0) -> NoReturn:
    """Be pid 1, in a fork of the zygote: what pid1_*.S do, for other machines.

    Args:
        program: The seccomp filter.
        restricted: Whether RULESET is one.
        groups: How many files from GROUPS on move it into its cgroup.

    Descriptors are as for that program; no others may be open.
    """
    control = os.dup(CONTROL)  # the numbers below it are the command's
    os.set_inheritable(control, False)
    result = [0, 0, 0]
    usage = b"\0" * (RESULT_BYTES - 16)
    try:
        for fd in range(GROUPS, GROUPS + groups):
            os.write(fd, b"0")
            os.close(fd)
        libc.prctl(libc.PR_SET_DUMPABLE, 0)
        capabilities.drop_all()
        if restricted:
            landlock.restrict_self(RULESET)
        libc.seccomp(program)
        os.closerange(CONTROL, control)
        text = read_order(control)
        if text is None:
            os._exit(0)
        reader, writer = os.pipe2(os.O_CLOEXEC)
        command = os.fork()
        if command == 0:
            _execute(text, writer)
        for fd in (0, 1, 2, writer):
            os.close(fd)
        if refused := os.read(reader, 4):
            result[1] = int.from_bytes(refused, "little")
        while True:
            pid, status, used = os.wait4(-1, 0)
            if pid == command:
                break
        result[2] = status
        usage = pack_usage(used)
    except OSError as error:
        result[0] = error.errno or errno.EIO
    os.write(control, struct.pack("=iiii", *result, 0) + usage)
    os._exit(0)


def read_order(control: int) -> bytes | None:
    """The whole order, after `GO`; None where the gateway has gone before there was one."""
    text = b""
    if not os.read(control, len(GO)):
        return None
    while len(text) < _HEAD.size or len(text) < _HEAD.unpack_from(text)[0]:
        more = os.read(control, _BUFFER_BYTES)
        if not more:
            return None
        text += more
    return text


def pack_usage(used: resource.struct_rusage) -> bytes:
    """`struct rusage`, as `report` reads it."""
    fields = [0] * 18
    for index, seconds in ((0, used.ru_utime), (2, used.ru_stime)):
        fields[index], fields[index + 1] = int(seconds), int(seconds % 1 * 1e6)
    fields[4], fields[11], fields[12] = used.ru_maxrss, used.ru_inblock, used.ru_oublock
    return struct.pack("=18q", *fields)


class Order(NamedTuple):
    """An order as `order` takes it, apart."""

    argv: list[bytes]
    environment: dict[bytes, bytes]
    directory: bytes
    terminal: bytes
    programs: list[bytes]

    @staticmethod
    def parse(text: bytes) -> Order:
        """Inverse of `order`."""
        _, words, variables, _ = _HEAD.unpack_from(text)
        strings = text[_HEAD.size : -1].split(b"\0")
        there = words + variables
        env = dict(word.split(b"=", 1) for word in strings[words:there])
        return Order(strings[:words], env, strings[there], strings[there + 1], strings[there + 2 :])

    def execute(self) -> NoReturn:
        """Be the first of its programs that can be executed. Raises OSError as execvp(3) fails."""
        found: OSError = FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
        for program in self.programs:
            try:
                os.execve(program, self.argv, self.environment)
            except (FileNotFoundError, NotADirectoryError):
                pass
            except PermissionError as error:
                if error.errno != errno.EACCES:
                    raise
                found = error
        raise found


def _execute(text: bytes, failed: int) -> NoReturn:
    try:
        order = Order.parse(text)
        os.setsid()
        if order.directory:
            os.chdir(order.directory)
        if order.terminal:
            os.close(os.open(order.terminal, os.O_RDWR | os.O_CLOEXEC))
        order.execute()
    except OSError as error:
        os.write(failed, (error.errno or errno.EIO).to_bytes(4, "little"))
    os._exit(127)
