"""Classic BPF programs for seccomp(2): a verdict for each system call, by its arguments where need be.

Written out here and not by libseccomp, whose rules cannot say all that a policy can: several tests of
one argument together, a denial beside a permission for one call, arguments of 32 bits compared as the
kernel reads them (the upper half of the register is the caller's to fill with anything).

Pure. Sources: seccomp(2); <linux/seccomp.h>; <linux/bpf_common.h>; kernel
Documentation/userspace-api/seccomp_filter.rst, "Pitfalls".
"""

from __future__ import annotations

import platform
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

Operator = Literal["eq", "ne", "lt", "le", "gt", "ge", "masked_eq", "any_bits"]

ALLOW = 0x7FFF0000
KILL_PROCESS = 0x80000000
_ERRNO = 0x00050000
# AUDIT_ARCH_… of <linux/audit.h>; all little endian.
_ARCHITECTURES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7, "riscv64": 0xC00000F3}
_X32_BIT = 0x40000000  # __X32_SYSCALL_BIT, <asm/unistd.h>
# struct seccomp_data
_NUMBER, _ARCHITECTURE, _ARGUMENTS = 0, 4, 16
# BPF_LD|BPF_W|BPF_ABS, BPF_ALU|BPF_AND|BPF_K, BPF_RET|BPF_K, BPF_JMP|BPF_JA, and conditional jumps
_LD, _AND, _RET, _JA = 0x20, 0x54, 0x06, 0x05
_JEQ, _JGT, _JGE, _JSET = 0x15, 0x25, 0x35, 0x45
_MOST = 4096  # BPF_MAXINSNS
_NEAR = 255  # the farthest that a conditional jump reaches


@dataclass(frozen=True, kw_only=True)
class Test:
    """A comparison of one argument with a number, both unsigned.

    Attributes:
        argument: 0 to 5.
        op: `masked_eq` is true when all bits of `value` are set, `any_bits` when one is.
        value: Below 2 ** `bits`.
        bits: How much of the register the kernel reads: 16, 32 or 64.
    """

    argument: int
    op: Operator
    value: int
    bits: int


@dataclass(frozen=True, kw_only=True)
class Clause:
    """An action that is taken when all tests hold."""

    tests: Sequence[Test]
    action: int


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """The action of the first clause that holds, else `otherwise`."""

    otherwise: int
    clauses: Sequence[Clause] = ()


def errno_action(number: int) -> int:
    """SECCOMP_RET_ERRNO with `number`."""
    return _ERRNO | number


def assemble(verdicts: Mapping[int, Verdict], otherwise: int, beyond: tuple[int, int]) -> bytes:
    """The program, as `struct sock_filter`s.

    Args:
        verdicts: By system call number.
        otherwise: Action for a number that is not in it.
        beyond: A number, and the action for it and all that are higher and not in `verdicts`.

    Calls of another architecture, and x32's on x86_64, kill the process: their numbers mean other
    calls.

    Raises:
        ValueError: the program is too long for the kernel, or this machine is not known.
    """
    machine = platform.machine()
    if machine not in _ARCHITECTURES:
        raise ValueError(f"no system-call filter for {machine}; known: {', '.join(_ARCHITECTURES)}")
    code = _Code()
    native, known = code.label(), code.label()
    code.load(_ARCHITECTURE)
    code.jump(_JEQ, _ARCHITECTURES[machine], yes=native)
    code.ret(KILL_PROCESS)
    code.place(native)
    code.load(_NUMBER)
    if machine == "x86_64":
        foreign = code.label()
        code.jump(_JGE, _X32_BIT, yes=foreign, no=known)
        code.place(foreign)
        code.ret(KILL_PROCESS)
        code.place(known)
    _tree(code, _ranges(verdicts, otherwise, beyond))
    return code.binary()


def _ranges(
    verdicts: Mapping[int, Verdict], otherwise: int, beyond: tuple[int, int]
) -> list[tuple[int, Verdict]]:
    """First numbers of runs of calls with one verdict, in order."""
    first, action = beyond
    marks = {0, first, *verdicts, *(number + 1 for number in verdicts)}
    runs: list[tuple[int, Verdict]] = []
    for number in sorted(marks):
        default = Verdict(otherwise=action if number >= first else otherwise)
        verdict = verdicts.get(number, default)
        if not runs or runs[-1][1] != verdict:
            runs.append((number, verdict))
    return runs


def _tree(code: _Code, runs: list[tuple[int, Verdict]]) -> None:
    """A binary search: a tenth of a list's steps, for a call and for the kernel's own walk over all
    calls when it loads the program."""
    if len(runs) == 1:
        _leaf(code, runs[0][1])
        return
    middle = len(runs) // 2
    right = code.label()
    code.jump(_JGE, runs[middle][0], yes=right)
    _tree(code, runs[:middle])
    code.place(right)
    _tree(code, runs[middle:])


def _leaf(code: _Code, verdict: Verdict) -> None:
    for clause in verdict.clauses:
        following = code.label()
        for test in clause.tests:
            _compare(code, test, following)
        code.ret(clause.action)
        code.place(following)
    code.ret(verdict.otherwise)


_LOW: dict[Operator, tuple[int, bool]] = {  # the jump, and whether it is taken when the test holds
    "eq": (_JEQ, True),
    "ne": (_JEQ, False),
    "lt": (_JGE, False),
    "le": (_JGT, False),
    "gt": (_JGT, True),
    "ge": (_JGE, True),
    "any_bits": (_JSET, True),
}


def _compare(code: _Code, test: Test, fail: int) -> None:
    """Fall through when `test` holds, else go to `fail`."""
    low, high = test.value & 0xFFFFFFFF, test.value >> 32
    offset = _ARGUMENTS + 8 * test.argument
    passed = code.label()
    if test.bits == 64:
        code.load(offset + 4)
        if test.op == "masked_eq":
            code.mask(high)
            code.jump(_JEQ, high, no=fail)
        elif test.op == "any_bits":
            code.jump(_JSET, high, yes=passed)
        elif test.op == "eq":
            code.jump(_JEQ, high, no=fail)
        elif test.op == "ne":
            code.jump(_JEQ, high, no=passed)
        else:
            above = passed if test.op in ("gt", "ge") else fail
            below = fail if test.op in ("gt", "ge") else passed
            code.jump(_JGT, high, yes=above)
            code.jump(_JEQ, high, no=below)
    code.load(offset)
    if test.bits == 16:
        code.mask(0xFFFF)
    if test.op == "masked_eq":
        code.mask(low)
        code.jump(_JEQ, low, no=fail)
    else:
        kind, holds = _LOW[test.op]
        if holds:
            code.jump(kind, low, no=fail)
        else:
            code.jump(kind, low, yes=fail)
    code.place(passed)


@dataclass
class _Jump:
    kind: int
    value: int
    yes: int | None  # labels; None is the next instruction
    no: int | None


class _Code:
    """Instructions and labels; every jump is forward, as the kernel demands."""

    def __init__(self) -> None:
        self._items: list[tuple[int, int] | _Jump] = []
        self._labels: list[int] = []  # by label: the item before which it stands

    def label(self) -> int:
        self._labels.append(-1)
        return len(self._labels) - 1

    def place(self, label: int) -> None:
        self._labels[label] = len(self._items)

    def load(self, offset: int) -> None:
        self._items.append((_LD, offset))

    def mask(self, value: int) -> None:
        self._items.append((_AND, value))

    def ret(self, action: int) -> None:
        self._items.append((_RET, action))

    def jump(self, kind: int, value: int, *, yes: int | None = None, no: int | None = None) -> None:
        self._items.append(_Jump(kind, value, yes, no))

    def binary(self) -> bytes:
        """Lay the items out: a conditional jump that does not reach goes by an unconditional one."""
        far: set[tuple[int, bool]] = set()
        while True:
            starts = self._starts(far)
            more = {
                (index, side)
                for index, item in enumerate(self._items)
                if isinstance(item, _Jump)
                for side, label in ((True, item.yes), (False, item.no))
                if label is not None
                and (index, side) not in far
                # Measured from the instruction after it, before any detours of its own.
                and starts[self._labels[label]] - starts[index] - 1 > _NEAR
            }
            if not more:
                break
            far |= more
        if starts[-1] > _MOST:
            raise ValueError(
                f"the system-call filter has {starts[-1]} instructions, the kernel takes {_MOST}; "
                "use fewer syscalls.rules"
            )
        out: list[bytes] = []
        for index, item in enumerate(self._items):
            if isinstance(item, _Jump):
                out.append(self._jump(index, item, far, starts))
            else:
                out.append(struct.pack("=HBBI", item[0], 0, 0, item[1]))
        return b"".join(out)

    def _starts(self, far: set[tuple[int, bool]]) -> list[int]:
        starts = [0]
        for index in range(len(self._items)):
            detours = ((index, True) in far) + ((index, False) in far)
            starts.append(starts[-1] + 1 + detours)
        return starts

    def _jump(
        self, index: int, item: _Jump, far: set[tuple[int, bool]], starts: list[int]
    ) -> bytes:
        here, end = starts[index] + 1, starts[index + 1]
        offsets: list[int] = []
        detours = b""
        for side, label in ((True, item.yes), (False, item.no)):
            target = end if label is None else starts[self._labels[label]]
            if (index, side) in far:
                at = here + len(detours) // 8
                detours += struct.pack("=HBBI", _JA, 0, 0, target - at - 1)
                target = at
            offsets.append(target - here)
        return struct.pack("=HBBI", item.kind, *offsets, item.value) + detours
