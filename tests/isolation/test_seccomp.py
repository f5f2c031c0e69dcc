"""Each operator of `syscalls.rules`, asked of the kernel: what it decides is what Python computes."""

from __future__ import annotations

import ctypes
import errno
import itertools
import json
import operator
import os
from collections.abc import Callable, Mapping, Sequence

import pytest

from purplebox.isolation import bpf, libc
from purplebox.isolation.seccomp import compile_filter
from purplebox.isolation.syscalls import GROUPS, number_of
from purplebox.isolation.widths import _WIDTHS, bits_of
from purplebox.policies import Policy, SyscallRule
from purplebox.policies.model import Syscalls

_libc = ctypes.CDLL(None, use_errno=True)
Call = tuple[str, tuple[int, ...]]
NO_FILE = 1 << 30  # no descriptor of this number is open


def decide(program: bytes, calls: Sequence[Call]) -> list[str]:
    """What the kernel says to `calls` under `program`: the errno's name, "ok", or a signal's number.

    In a child that does nothing else: a filter is for good.
    """
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        said: list[str] = []
        libc.prctl(libc.PR_SET_NO_NEW_PRIVS, 1)
        libc.seccomp(program)
        for name, arguments in calls:
            number = number_of(name) if not name.isdigit() else int(name)
            words = [ctypes.c_ulong(word & (1 << 64) - 1) for word in arguments]
            result = _libc.syscall(ctypes.c_long(number or 0), *words)
            said.append("ok" if result >= 0 else errno.errorcode[ctypes.get_errno()])
        os.write(writer, json.dumps(said).encode())
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as file:
        text = file.read()
    _, status = os.waitpid(pid, 0)
    return json.loads(text) if text else [str(os.WTERMSIG(status))] * len(calls)


def compiled(*rules: Mapping[str, object], allow: tuple[str, ...] = ("@default",), default_deny: bool = True) -> bytes:  # fmt: skip
    parsed = tuple(SyscallRule.model_validate(rule) for rule in rules)
    syscalls = Syscalls(allow=allow, rules=parsed, default_deny=default_deny)
    return compile_filter(Policy(name="p", syscalls=syscalls))


OPERATORS: dict[str, Callable[[int, int], bool]] = {
    "eq": operator.eq,
    "ne": operator.ne,
    "lt": operator.lt,
    "le": operator.le,
    "gt": operator.gt,
    "ge": operator.ge,
    "masked_eq": lambda a, b: a & b == b,
}
# About every border: of halves, of signs, of carries.
WIDE = sorted(
    {
        (base + step) % (1 << 64)
        for base in (0, 5, 1 << 31, 1 << 32, 5 << 32, 1 << 63, (5 << 32) + 5, 0xFFFFFFFF00000000)
        for step in (-1, 0, 1)
    }
)
NARROW = sorted({n % (1 << 32) for base in (0, 5, 1 << 31) for n in (base - 1, base, base + 1)})


@pytest.mark.parametrize("action", ["allow", "deny"])
@pytest.mark.parametrize("op", OPERATORS)
def test_operators_on_64_bits(op: str, action: str) -> None:
    assert bits_of("lseek", 1) == 64
    for value in WIDE:
        rule = {"syscall": "lseek", "arg": 1, "op": op, "value": value, "action": action}
        said = decide(compiled(rule), [("lseek", (NO_FILE, argument, 0)) for argument in WIDE])
        for argument, answer in zip(WIDE, said, strict=True):
            passes = OPERATORS[op](argument, value) == (action == "allow")
            assert answer == ("EBADF" if passes else "EPERM"), (hex(argument), op, hex(value))


@pytest.mark.parametrize("junk", [0, 1 << 32, 0xFFFFFFFF << 32], ids=["0", "one", "ones"])
@pytest.mark.parametrize("op", OPERATORS)
def test_operators_on_32_bits_whatever_fills_the_register(op: str, junk: int) -> None:
    assert bits_of("dup3", 2) == 32
    for value in NARROW:
        rule = {"syscall": "dup3", "arg": 2, "op": op, "value": value, "action": "deny"}
        calls = [("dup3", (NO_FILE, NO_FILE + 1, argument | junk)) for argument in NARROW]
        for argument, answer in zip(NARROW, decide(compiled(rule), calls), strict=True):
            refused = OPERATORS[op](argument, value)
            # What passes is refused by the kernel for its flags or its descriptor.
            assert (answer == "EPERM") == refused, (hex(argument), op, hex(value), answer)
            assert answer in ("EPERM", "EBADF", "EINVAL")


@pytest.mark.parametrize("junk", [0, 1 << 16, 0xFFFFFFFFFFFF0000])
def test_a_mode_is_16_bits(junk: int) -> None:
    deny_setuid = {"syscall": "fchmod", "arg": 1, "op": "masked_eq", "value": 0o4000, "action": "deny"}  # fmt: skip
    deny_exact = {"syscall": "fchmod", "arg": 1, "op": "eq", "value": 0o777, "action": "deny"}
    said = decide(
        compiled(deny_setuid, deny_exact),
        [("fchmod", (NO_FILE, mode | junk)) for mode in (0o4755, 0o777, 0o755)],
    )
    assert said == ["EPERM", "EPERM", "EBADF"]


def test_a_negative_value_is_the_arguments_own_minus_one() -> None:
    for name, index, arguments in (("dup3", 2, (NO_FILE, 1, -1)), ("lseek", 1, (NO_FILE, -1, 0))):
        rule = {"syscall": name, "arg": index, "op": "eq", "value": -1, "action": "deny"}
        plain = (*arguments[:index], 0, *arguments[index + 1 :])
        assert decide(compiled(rule), [(name, arguments), (name, plain)])[0] == "EPERM"
        assert decide(compiled(rule), [(name, plain)]) != ["EPERM"]


def test_tests_of_one_rule_hold_together_and_rules_apart() -> None:
    both = {
        "syscall": "lseek", "arg": 1, "op": "ge", "value": 10, "action": "deny",
        "also": ({"arg": 1, "op": "le", "value": 20}, {"arg": 2, "op": "ne", "value": 0}),
    }  # fmt: skip
    apart = {"syscall": "lseek", "arg": 1, "op": "eq", "value": 99, "action": "deny"}
    cases = [(o, w) for o in (9, 10, 20, 21, 99) for w in (0, 1)]
    said = decide(compiled(both, apart), [("lseek", (NO_FILE, o, w)) for o, w in cases])
    expected = ["EPERM" if (10 <= o <= 20 and w != 0) or o == 99 else "EBADF" for o, w in cases]
    assert said == expected


def test_ne_and_eq_mix_and_a_denial_goes_before_a_permission() -> None:
    rules = (
        {"syscall": "lseek", "arg": 2, "op": "eq", "value": 0, "action": "allow"},
        {"syscall": "lseek", "arg": 2, "op": "eq", "value": 1, "action": "allow"},
        {"syscall": "lseek", "arg": 1, "op": "ne", "value": 7, "action": "deny"},
    )
    cases = list(itertools.product((7, 8), (0, 1, 2)))
    for order in itertools.permutations(rules):
        said = decide(compiled(*order), [("lseek", (NO_FILE, o, w)) for o, w in cases])
        assert said == ["EBADF" if o == 7 and w < 2 else "EPERM" for o, w in cases]


def test_a_rule_allows_a_call_that_the_list_does_not() -> None:
    rule = {"syscall": "personality", "arg": 0, "op": "eq", "value": 0xFFFFFFFF, "action": "allow"}
    calls = [("personality", (0xFFFFFFFF,)), ("personality", (0x0040000,))]
    assert decide(compiled(rule), calls) == ["ok", "EPERM"]
    assert decide(compiled(), calls) == ["EPERM", "EPERM"]


def test_a_denylist_with_rules() -> None:
    rule = {"syscall": "lseek", "arg": 1, "op": "gt", "value": 1 << 40, "action": "deny"}
    program = compiled(rule, default_deny=False)
    calls = [("lseek", (NO_FILE, 1 << 40, 0)), ("lseek", (NO_FILE, (1 << 40) + 1, 0))]
    assert decide(program, calls) == ["EBADF", "EPERM"]
    assert decide(program, [("io_uring_setup", (0, 0)), ("clone3", (0, 0))]) == ["EPERM", "ENOSYS"]
    assert decide(program, [("socket", (40, 1, 0)), ("getpid", ())]) == ["EPERM", "ok"]


def test_no_rule_opens_what_is_never_allowed() -> None:
    for name in ("io_uring_setup", "keyctl"):
        with pytest.raises(ValueError, match="never allowed"):
            compiled({"syscall": name, "arg": 0, "op": "eq", "value": 0, "action": "allow"})
    vsock = {"syscall": "socket", "arg": 0, "op": "eq", "value": 40, "action": "allow"}
    assert decide(compiled(vsock), [("socket", (40, 1, 0))]) == ["EPERM"]
    with pytest.raises(ValueError, match="32 bits"):
        compiled({"syscall": "socket", "arg": 0, "op": "eq", "value": 1 << 32})
    with pytest.raises(ValueError, match="unknown system call nonesuch"):
        compiled(allow=("nonesuch",))


def test_a_rule_on_what_is_no_call_is_refused_and_not_left_out() -> None:
    test = {"arg": 0, "op": "eq", "value": 0, "action": "deny"}
    for name, words in (("@ipc", "@ipc: a rule is about one call"), ("nonesuch", "unknown")):
        with pytest.raises(ValueError, match=words):
            compiled({"syscall": name, **test})
    program = compiled({"syscall": "semget", **test})  # the control: a call of that group
    assert decide(program, [("semget", (0, 1, 0)), ("semget", (7, 1, 0))]) == ["EPERM", "ENOENT"]


@pytest.mark.parametrize("junk", [0, 1 << 16, 0xFFFFFFFFFFFF0000])
def test_no_call_makes_a_file_setuid_unless_it_may(junk: int) -> None:
    def calls(mode: int) -> list[Call]:
        mode |= junk
        empty = 0  # a path that is no pointer: what passes fails with EFAULT
        return [
            ("chmod", (empty, mode)),
            ("fchmod", (NO_FILE, mode)),
            ("fchmodat", (NO_FILE, empty, mode)),
            ("fchmodat2", (NO_FILE, empty, mode, 0)),
            ("mknod", (empty, mode | 0o100000, 0)),
            ("mknodat", (NO_FILE, empty, mode | 0o100000, 0)),
        ]

    def passes(program: bytes, mode: int) -> bool:
        said = {
            answer
            for (name, _), answer in zip(calls(mode), decide(program, calls(mode)), strict=True)
            if number_of(name) is not None
        }
        assert said == {"EPERM"} or "EPERM" not in said
        return "EPERM" not in said

    policy = Policy(name="p", syscalls=Syscalls(allow=("@default",)))
    open_list = Policy(name="p", syscalls=Syscalls(default_deny=False))
    for program in (compile_filter(policy), compile_filter(open_list)):
        found = [passes(program, mode) for mode in (0o4755, 0o2755, 0o6000, 0o1777, 0o755)]
        assert found == [False, False, False, True, True]
    program = compile_filter(policy, refused_mode=0o4000)
    assert [passes(program, mode) for mode in (0o4755, 0o2755)] == [False, True]
    assert passes(compile_filter(policy, refused_mode=0), 0o6755)


def test_socket_families_by_the_bits_that_the_kernel_reads() -> None:
    calls = [("socket", (family | 7 << 32, 2, 0)) for family in range(64)]
    said = decide(compiled(), calls)
    passed = [family for family, answer in enumerate(said) if answer != "EPERM"]
    assert passed == [1, 2, 10, 16]
    protocols = decide(compiled(), [("socket", (16, 3, protocol)) for protocol in range(24)])
    assert [p for p, answer in enumerate(protocols) if answer != "EPERM"] == [0]


def test_calls_that_are_not_known_do_not_exist() -> None:
    assert decide(compiled(), [("600", ()), ("1000000", ())]) == ["ENOSYS", "ENOSYS"]


def test_another_entry_kills() -> None:
    if os.uname().machine == "x86_64":  # x32: the number's bit 30
        assert decide(compiled(), [(str(0x40000000 | 39), ())]) == ["31"]


def test_nothing_is_handed_to_a_supervisor_that_could_be_raced() -> None:
    """Lesson 23: a notification decides on memory that the caller may change meanwhile."""
    program = compiled({"syscall": "lseek", "arg": 1, "op": "eq", "value": 0, "action": "deny"})
    returned = {
        int.from_bytes(program[at + 4 : at + 8], "little") & 0xFFFF0000
        for at in range(0, len(program), 8)
        if program[at] == 0x06
    }
    assert returned == {bpf.ALLOW, bpf.KILL_PROCESS, 0x00050000}


def test_a_program_with_far_jumps_decides_the_same() -> None:
    rules = [
        {"syscall": "lseek", "arg": 1, "op": "eq", "value": (n << 32) + 2 * n, "action": "deny"}
        for n in range(400)
    ]
    cases = [(n << 32) + m for n in (0, 1, 199, 399, 400) for m in (2 * n, 2 * n + 1)]
    said = decide(compiled(*rules), [("lseek", (NO_FILE, offset, 0)) for offset in cases])
    assert said == ["EPERM", "EBADF"] * 4 + ["EBADF"] * 2
    with pytest.raises(ValueError, match="instructions"):
        compiled(*rules, *rules, *rules)


def test_the_table_of_widths_names_calls_that_exist() -> None:
    known = {name for names in GROUPS.values() for name in names}
    strange = [n for n in _WIDTHS if number_of(n) is None and n not in known and n != "renameat"]
    assert strange == []
    assert all(len(widths) <= 6 and set(widths) <= set("hil") for widths in _WIDTHS.values())
