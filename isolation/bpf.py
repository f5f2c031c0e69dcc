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


@dataclass(frozen=True)
class Verdict:
    """The action of the first clause that holds, else `otherwise`."""

    otherwise: int
    clauses: tuple[Clause, ...] = ()


def errno_action(number: int) -> int:
    """SECCOMP_RET_ERRNO with `number`."""
    return _ERRNO | number


def assemble(
    listed: int, action: int, otherwise: int, beyond: tuple[int, int], codes: Mapping[int, bytes]
) -> bytes:
    """The program, as `struct sock_filter`s.

    Args:
        listed: Which calls `action` is for, bit n for number n.
        action: As SECCOMP_RET_….
        otherwise: Action for the others.
        beyond: A number, and the action for it and for all that are higher and not `listed`.
        codes: By number, what `code` has made; it is for these calls in the place of an action.

    Calls of another architecture, and x32's on x86_64, kill the process: their numbers mean other
    calls.

    Raises:
        ValueError: the program is too long for the kernel, or this machine is not known.
    """
    machine = platform.machine()
    if machine not in _ARCHITECTURES:
        raise ValueError(f"no system-call filter for {machine}; known: {', '.join(_ARCHITECTURES)}")
    foreign = _instruction(_RET, KILL_PROCESS)
    program = _instruction(_LD, _ARCHITECTURE)
    program += _jump(_JEQ, _ARCHITECTURES[machine], yes=1) + foreign
    program += _instruction(_LD, _NUMBER)
    if machine == "x86_64":
        program += _jump(_JGE, _X32_BIT, no=1) + foreign
    # Bits at the numbers where something else may begin.
    marks = 1 | 1 << beyond[0] | listed ^ listed << 1
    for number in codes:
        marks |= 3 << number
    inside, below, above = (_instruction(_RET, value) for value in (action, otherwise, beyond[1]))
    firsts: list[int] = []
    runs: list[bytes] = []
    last = b""
    while marks:
        mark = marks & -marks
        marks ^= mark
        number = mark.bit_length() - 1
        run = codes.get(number)
        if run is None:
            run = inside if listed & mark else above if number >= beyond[0] else below
        if run != last:
            firsts.append(number)
            runs.append(run)
            last = run
    program += _tree(firsts, runs, 0, len(runs))
    if (length := _length(program)) > _MOST:
        raise ValueError(
            f"the system-call filter has {length} instructions, the kernel takes {_MOST}; "
            "use fewer syscalls.rules"
        )
    return program


# Jumps lead forward alone, as the kernel demands: what one skips is there before it is.


def _tree(firsts: Sequence[int], runs: Sequence[bytes], begin: int, end: int) -> bytes:
    """A binary search: a tenth of a list's steps, for a call and for the kernel's own walk over all
    calls when it loads the program."""
    if end - begin == 1:
        return runs[begin]
    middle = (begin + end) // 2
    below = _tree(firsts, runs, begin, middle)
    return _jump(_JGE, firsts[middle], _length(below)) + below + _tree(firsts, runs, middle, end)


def code(verdict: Verdict) -> bytes:
    """What decides a call whose number is known."""
    said = b""
    for clause in verdict.clauses:
        rest = _instruction(_RET, clause.action)
        for test in reversed(clause.tests):
            rest = _compare(test, _length(rest)) + rest
        said += rest
    return said + _instruction(_RET, verdict.otherwise)


_LOW: dict[Operator, tuple[int, bool]] = {  # the jump, and whether it is taken when the test holds
    "eq": (_JEQ, True),
    "ne": (_JEQ, False),
    "lt": (_JGE, False),
    "le": (_JGT, False),
    "gt": (_JGT, True),
    "ge": (_JGE, True),
    "any_bits": (_JSET, True),
    "masked_eq": (_JEQ, True),  # of what is left when the bits have been picked
}


def _compare(test: Test, fail: int) -> bytes:
    """Go on behind this when `test` holds, else skip `fail` instructions there."""
    low, high = test.value & 0xFFFFFFFF, test.value >> 32
    offset = _ARGUMENTS + 8 * test.argument
    kind, holds = _LOW[test.op]
    code = _instruction(_LD, offset)
    if test.bits == 16:
        code += _instruction(_AND, 0xFFFF)
    if test.op == "masked_eq":
        code += _instruction(_AND, low)
    code += _jump(kind, low, no=fail) if holds else _jump(kind, low, yes=fail)
    if test.bits != 64:
        return code
    passed = _length(code)
    fail += passed
    upper = _instruction(_LD, offset + 4)
    if test.op == "masked_eq":
        upper += _instruction(_AND, high) + _jump(_JEQ, high, no=fail)
    elif test.op == "any_bits":
        upper += _jump(_JSET, high, yes=passed)
    elif test.op == "eq":
        upper += _jump(_JEQ, high, no=fail)
    elif test.op == "ne":
        upper += _jump(_JEQ, high, no=passed)
    else:
        above, below = (passed, fail) if test.op in ("gt", "ge") else (fail, passed)
        equal = _jump(_JEQ, high, no=below)
        upper += _jump(_JGT, high, yes=_length(equal) + above) + equal
    return upper + code


_pack = struct.Struct("=HBBI").pack  # struct sock_filter
_SIZE = 8


def _length(code: bytes) -> int:
    return len(code) // _SIZE


def _instruction(code: int, value: int) -> bytes:
    return _pack(code, 0, 0, value)


def _jump(kind: int, value: int, yes: int = 0, no: int = 0) -> bytes:
    """A conditional jump that skips so many instructions behind it; by unconditional ones where it does
    not reach."""
    if yes <= _NEAR and no <= _NEAR:
        return _pack(kind, yes, no, value)
    return _pack(kind, 0, 1, value) + _instruction(_JA, yes + 1) + _instruction(_JA, no)
