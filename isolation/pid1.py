"""pid 1 of a sandbox: a program of a few hundred bytes that becomes closed and then waits to serve.

Theory of operation
    The zygote spawns it in the sandbox's namespaces, with the command's stdin, stdout and stderr as
    0, 1 and 2, a socket to the gateway as 3, a Landlock ruleset as 4, the seccomp filter as 5, and
    from 6 on the files by which it moves itself into its cgroup, the first thing that it does. (To
    move another process the kernel waits until all processors have taken notice, some ten
    milliseconds on a quiet machine: cgroup_procs_write_start() in kernel/cgroup/cgroup.c.)
    The execve(2) that starts it has taken its capabilities: the zygote has an empty bounding set,
    no_new_privs, and an id that is not root's in its user namespace. It makes itself unreadable to
    what will run beside it, restricts itself by ruleset and filter, and waits for `GO`: that the
    zygote has set its limits (prlimit(2)). Then it starts the process that becomes the command, in a
    session of its own and from the same memory, and reaps whatever is orphaned to it until that one
    ends. That one reads the order, what execve takes, so that when it comes one process has to be
    woken, which has nothing to do but execute. pid 1 then says on the socket how it ended, and
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
import itertools
import os
import resource
import struct
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

from . import capabilities, landlock, libc
from .rlimits import rusage

CONTROL, RULESET, FILTER, GROUPS = 3, 4, 5, 6
GO = b"g"  # before the order
PATH = "/run/purple/init"  # in the view
TERMINAL = "/dev/pts/0"  # the first of a sandbox's own devpts
# As in pid1_*.S; within two mebibytes, for which one page of page table is enough.
_TEXT, _BUFFER, _BUFFER_BYTES = 0x400000, 0x410000, 1 << 20
_HEAD = struct.Struct("=6Q")  # length of the order; program, argv, envp, directory, terminal
_RESULT = struct.Struct("=iiii18q")  # setup, exec, status, -, struct rusage
RESULT_BYTES = _RESULT.size

_CODE = {
    "x86_64": """
TIssJEyLZCQIuwAAQQC9AABRAGowQb4GAAAAQf/NdCm4AQAAAESJ90iJ5roBAAAADwWFwA+IDwEAALgDAAAARIn3DwVB/8br0ridAAAAvwQA
AAAx9g8FhcAPiOoAAABBgDwkbnQWuL4BAAC/BAAAADH2DwWFwA+IzQAAALgRAAAAvwUAAABIid66AAABAEUx0g8Fuer///+FwA9EwYXAD4ik
AAAAwegDU1C4PQEAAL8BAAAAMfZIieIPBYXAD4iGAAAAuAMAAAC/BAAAAA8FuAMAAAC/BQAAAA8FMcC/AwAAAEiJ3roBAAAADwVIhcB+cbg4
AAAAvxEBAAAx9jHSRTHSRTHADwWFwHg+dF9BicZFMeS4AwAAAESJ5w8FQf/EQYP8A3LtuD0AAABIx8f/////SI11CDHSTI1VEA8FhcB4B0Q5
8HXf6wX32IlFALgBAAAAvwMAAABIie66oAAAAA8FuOcAAAAx/w8F9LhwAAAADwVFMe0xwL8DAAAASo00K7oAABAATCnqDwVIhcB+0kkBxUmD
/TBy3Uw7K3LYSItzKEiF9nQguAEBAABIx8ec////ugIAAAAPBYXAeDyJx7gDAAAADwVIi3sgSIX/dAu4UAAAAA8FhcB4H7gDAAAAvwMAAAAP
Bbg7AAAASIt7CEiLcxBIi1MYDwX32IlFBLjnAAAAv38AAAAPBfQ=
""",
    "aarch64": """
9gNA+fUHQPkzCKDSNAqg0gAGgFLgDx/41wCAUtYGAHGAAQBUCAiA0uADFyrhAwCRIgCA0gEAANSACfi3KAeA0uADFyoBAADU9wYAEfT//xfoFIDS
gACA0gEAgNIBAADUQAj4t6ACQDkfuAFxwAAAVMg3gNKAAIDSAQCA0gEAANRAB/i3aAiA0qAAgNLhAxOqIgCg0gMAgNIBAADUoQKAkh8AAPEgAICa
AAb4twD8Q9PgT7+pqCKA0iAAgNIBAIDS4gMAkQEAANQABfi3KAeA0oAAgNIBAADUoACA0gEAANToB4DSYACA0uEDE6oiAIDSAQAA1B8AAPFtBABU
iBuA0iAigNIBAIDSAgCA0gMAgNIEAIDSAQAA1IAC+LfAAwC09wMAKhYAgFIoB4DS4AMWKgEAANTWBgAR3w4AcYP//1SIIIDSAACAkoEiAJECAIDS
g0IAkQEAANSAAPi3HwAXawH//1QDAAAU4AMAS4ACALkICIDSYACA0uEDFKoCFIDSAQAA1MgLgNIAAIDSAQAA1AAAINSoE4DSAQAA1BYAgNLoB4DS
YACA0mECFosCAqDSQgAWywEAANQfAADxTf7/VNYCAIvfwgDxw/7/VGACQPnfAgDrY/7/VGEWQPkBAQC0CAeA0mAMgJJCAIDSAQAA1OAB+LcoB4DS
AQAA1GASQPmAAAC0KAaA0gEAANQAAfi3KAeA0mAAgNIBAADUqBuA0mCGQKliDkD5AQAA1OADAEuABgC5yAuA0uAPgNIBAADUAAAg1A==
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


def order(
    program: str, argv: Sequence[str], env: Mapping[str, str], directory: str, terminal: str
) -> bytes:
    """What execve(2) takes, as pid 1 reads it: pointers are addresses in its memory.

    Args:
        program, argv, env: As for execve.
        directory: To change to first; "" stays.
        terminal: What becomes its controlling terminal (`TERMINAL`); "" for none.

    Raises:
        OSError: E2BIG, there is no room for it; EINVAL, a NUL in one of them.
    """
    texts = [*argv, *map("=".join, env.items()), program, directory, terminal]
    strings = os.fsencode("\0".join(texts)) + b"\0"
    found = strings.split(b"\0")
    if len(found) != len(texts) + 1:
        raise OSError(errno.EINVAL, "a NUL character in the command or its environment")
    words, variables = len(argv), len(env)
    arrays = _BUFFER + _HEAD.size
    start = arrays + 8 * (words + 1 + variables + 1)
    length = start - _BUFFER + len(strings)
    if length > _BUFFER_BYTES:
        raise OSError(errno.E2BIG, "the command is too long; put it into a file")
    lengths = itertools.accumulate(map(len, found), initial=start)
    addresses = [at + nuls for nuls, at in enumerate(lengths)]
    first = words + variables
    head = _HEAD.pack(
        length, addresses[first], arrays, arrays + 8 * (words + 1),
        addresses[first + 1] if directory else 0, addresses[first + 2] if terminal else 0,
    )  # fmt: skip
    pointers = [*addresses[:words], 0, *addresses[words:first], 0]
    return head + struct.pack(f"={len(pointers)}Q", *pointers) + strings


def report(result: bytes) -> dict[str, Any]:
    """What pid 1 said: `status` as of wait4(2), with what the command and the children that it waited
    for have used (rlimits.py); or `refused`, errno's name, where the command
    could not be executed; or `error`, where the sandbox could not be closed. Empty when it was
    killed.
    """
    if len(result) != RESULT_BYTES:
        return {}
    setup, refused, status, _, *usage = _RESULT.unpack(result)
    if setup:
        return {"error": f"pid 1: {os.strerror(setup)}"}
    if refused:
        return {"refused": errno.errorcode.get(refused, str(refused))}
    user, user_us, system, system_us, *others = usage
    fields = (user + user_us / 1e6, system + system_us / 1e6, *others)
    return {"status": status, **rusage(resource.struct_rusage(fields))}


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


def parse_order(text: bytes) -> tuple[bytes, list[bytes], dict[bytes, bytes], bytes, bytes]:
    """Program, argv, environment, directory and terminal of an order; the last two may be empty."""

    def string(address: int) -> bytes:
        start = address - _BUFFER
        return text[start : text.index(b"\0", start)]

    def strings(address: int) -> list[bytes]:
        found: list[bytes] = []
        while pointer := struct.unpack_from("=Q", text, address - _BUFFER)[0]:
            found.append(string(pointer))
            address += 8
        return found

    _, program, argv, envp, directory, terminal = _HEAD.unpack_from(text)
    env = dict(word.split(b"=", 1) for word in strings(envp))
    places = [string(address) if address else b"" for address in (directory, terminal)]
    return string(program), strings(argv), env, places[0], places[1]


def _execute(text: bytes, failed: int) -> NoReturn:
    try:
        program, argv, env, directory, terminal = parse_order(text)
        os.setsid()
        if terminal:
            os.close(os.open(terminal, os.O_RDWR | os.O_CLOEXEC))
        if directory:
            os.chdir(directory)
        os.execve(program, argv, env)
    except OSError as error:
        os.write(failed, (error.errno or errno.EIO).to_bytes(4, "little"))
    os._exit(127)
