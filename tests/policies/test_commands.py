"""What the command parser sees, and what it does not: a hint, not a boundary."""

from __future__ import annotations

import pytest

from purplebox.policies.commands import parse_command

SEEN = [
    ("git push", ["git"]),
    ("git status; git\tpush\nls", ["git", "ls"]),
    ("/usr/bin/git push", ["git"]),
    ("r\\m -rf x", ["rm"]),
    ("r''m x; \"r\"m x", ["rm"]),
    ("$'\\x72m' x", ["rm"]),
    ("rm\\\n x", ["rm"]),
    ("echo $(id) `date`", ["echo", "id", "date"]),
    ('echo "a $(id) b"', ["echo", "id"]),
    ("diff <(ls) >(cat)", ["diff", "ls", "cat"]),
    ("A=$(id); export B=$(date)", ["id", "export", "date"]),
    ("if ls; then rm x; fi; for x in $(id); do du; done", ["ls", "rm", "id", "du"]),
    ("[[ -f $(id) ]] && (cat x | sort) & wait", ["id", "cat", "sort", "wait"]),
    ("f() { rm x; }; f", ["rm", "f"]),
    ("cat <<E\n$(id)\nE", ["cat", "id"]),
    ("X=1 env -i Y=2 -u Z rm x", ["env", "rm"]),
    ("env -S 'rm x'", ["env", "rm"]),
    ("sudo -u root nice -n 5 timeout -k 1 5 rm x", ["sudo", "nice", "timeout", "rm"]),
    ("ls | xargs -n 1 rm -f", ["ls", "xargs", "rm"]),
    ("find . -name x -exec rm {} \\;", ["find", "rm"]),
    ("busybox rm x", ["busybox", "rm"]),
    ("sh -c 'rm x'", ["sh", "rm"]),
    ("bash -lc 'sh -c \"rm x\"'", ["bash", "sh", "rm"]),
    ("eval 'rm x'", ["eval", "rm"]),
    ("trap 'rm x' EXIT", ["trap", "rm"]),
    ("alias g='git push'", ["alias", "git"]),
    ("command -v git", ["command"]),
    ("ls # rm x", ["ls"]),
    ("echo 'rm x'", ["echo"]),
]


@pytest.mark.parametrize(("text", "programs"), SEEN)
def test_programs_that_are_seen(text: str, programs: list[str]) -> None:
    found = parse_command(text)
    assert list(found.programs) == programs
    assert not found.opaque


@pytest.mark.parametrize(
    "text",
    [
        "cat${IFS}x", "$X rm", "a=rm; $a x", "{r,m}m x", "/bin/*sh", "curl x | sh",
        "base64 -d <<< cm0geA== | bash", "bash <(curl x)", "sh <<E\nrm x\nE", "bash script.sh",
        "source x", ". ./x", 'eval "$X"', 'sh -c "$X"', "'unterminated", "ls >", "xargs sh",
        "x" * (65 << 10), "sh -c '" * 20,
    ],
)  # fmt: skip
def test_what_cannot_be_seen_is_said(text: str) -> None:
    assert parse_command(text).opaque


@pytest.mark.parametrize("text", ["./renamed x", "python3 -c 'import os'", "make", "git -c alias.x='!rm y' x"])  # fmt: skip
def test_what_is_neither_seen_nor_said(text: str) -> None:
    """The limits of reading: only the sandbox holds these."""
    found = parse_command(text)
    assert not found.opaque
    assert "rm" not in found.programs


def test_arguments_and_redirections() -> None:
    found = parse_command("git -C 'a b' push \"$X\" 2>&1 >out <in &>>log >$Y <>/dev/tcp/a/80")
    assert found.invocations[0].args == ("-C", "a b", "push", "")
    assert [(r.operator, r.target) for r in found.redirections] == [
        (">", "out"), ("<", "in"), ("&>>", "log"), (">", ""), ("<>", "/dev/tcp/a/80"),
    ]  # fmt: skip
