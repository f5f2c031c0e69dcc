"""`user: root` with subordinate ids: several ids inside, what they own outside, what stays refused."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import purplebox
from purplebox.isolation.subordinate import _range
from purplebox.policies import Policy, load_policy

BASE = load_policy("base")
FILES = BASE.filesystem.model_copy(update={"protect": ()})


def as_root(**sections: Any) -> Policy:
    return BASE.model_copy(update={"user": "root", "filesystem": FILES, **sections})


UNPACK = "name: unpack\nextends: base\nuser: root\nfilesystem: {workspace: read, write: [out]}\n"
# Root puts up tables of its own in a mount namespace of its own and becomes an ordinary user there.
RUN = """
import asyncio, json, os, sys
from pathlib import Path
from purplebox.isolation import Engine, IsolationError, libc
from purplebox.policies import Policy

uid, table = int(sys.argv[1]), sys.argv[2]
if os.geteuid() == 0:
    libc.unshare(libc.CLONE_NEWNS)
    libc.mount(None, "/", None, libc.MS_REC | libc.MS_PRIVATE)
    for name in ("subuid", "subgid"):
        libc.mount(table, f"/etc/{name}", None, libc.MS_BIND)
    os.setgroups([])
    os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid, uid)
    libc.prctl(libc.PR_SET_DUMPABLE, 1)

async def main():
    async with Engine(Policy.model_validate_json(sys.argv[3]), Path(sys.argv[4])) as engine:
        result = await engine.run(["sh", "-c", sys.argv[5]])
        return {"out": result.stdout.decode(), "err": result.stderr.decode(), "code": result.exit_code}
try:
    print(json.dumps(asyncio.run(main())))
except IsolationError as error:
    print(json.dumps({"error": str(error)}))
"""
# Of /etc/passwd everywhere: the helpers want a name.
UID, FIRST = 1, 700000


@pytest.fixture
def shared() -> Iterator[Path]:
    """A workspace that another user owns and reaches."""
    if os.geteuid() != 0:
        pytest.skip("needs root")
    with tempfile.TemporaryDirectory(prefix="purple-subordinate-") as directory:
        os.chmod(directory, 0o755)
        workspace = Path(directory) / "workspace"
        workspace.mkdir()
        os.chown(workspace, UID, UID)
        yield workspace


def run(policy: Policy, workspace: Path, command: str, *, granted: bool = True) -> dict[str, Any]:
    for path in (sys.executable, sys.base_prefix, purplebox.__file__):
        parts = [p for p in (Path(path), *Path(path).resolve().parents, *Path(path).parents)]
        if not all(p.stat().st_mode & 0o005 for p in parts):
            pytest.skip(f"needs an interpreter and a checkout that everybody may read, not {path}")
    if not os.path.exists("/usr/bin/newuidmap"):
        pytest.skip("needs newuidmap: apt install uidmap")
    table = workspace.parent / "table"
    table.write_text(f"{UID}:{FIRST}:65536\n" if granted else "someone:1:1\n")
    words = [str(UID), str(table), policy.model_dump_json(by_alias=True), str(workspace), command]
    ran = subprocess.run([sys.executable, "-c", RUN, *words], capture_output=True, text=True, check=False)  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    said: dict[str, Any] = json.loads(ran.stdout)
    assert "error" not in said, (said, ran.stderr)
    return said


def test_owners_are_kept_by_tar_and_chown(shared: Path) -> None:
    command = (
        "set -e; id -u; echo x > a; chown 5:6 a; echo y > b; tar cf t.tar a b; rm a b; "
        "tar xpf t.tar; stat -c %u:%g a b"
    )
    said = run(as_root(), shared, command)
    assert said["out"].split() == ["0", "5:6", "0:0"], said
    owners = [((shared / name).stat().st_uid, (shared / name).stat().st_gid) for name in "ab"]
    assert owners == [(FIRST + 4, FIRST + 5), (UID, UID)]
    one = run(as_root(), shared, "id -u; chown 5:6 b", granted=False)  # the control: one id
    assert one["out"] == "1000\n" and "Invalid argument" in one["err"]
    agent = run(as_root(user="agent"), shared, "id -u; chown 5:6 b")
    assert agent["out"] == "1000\n" and agent["code"] == 1


def test_a_profile_that_writes_beside_what_is_protected(shared: Path) -> None:
    path = shared.parent / "unpack.yaml"
    path.write_text(UNPACK)
    (shared / "out").mkdir()
    os.chown(shared / "out", UID, UID)
    said = run(
        load_policy(str(path)), shared, "touch out/a && chown 5 out/a && stat -c %u out/a; touch b"
    )
    assert said["out"] == "5\n" and "Read-only file system" in said["err"], said


def test_it_is_root_of_nothing_else(shared: Path) -> None:
    secret = shared.parent / "secret"
    secret.write_text("s3cret")
    secret.chmod(0o600)
    policy = as_root(filesystem=FILES.model_copy(update={"read": (str(shared.parent),)}))
    command = (
        f"cat {secret}; chown 0 {secret}; echo x > /usr/x; mount -t tmpfs x /tmp; chroot /; "
        "mknod m c 1 3; unshare -r true; su -s /bin/sh -c 'id -u' daemon; "
        "grep -E 'Cap(Prm|Bnd|Eff)|NoNew|Seccomp:' /proc/self/status; cat /proc/self/setgroups; kill -9 1; echo alive"
    )
    said = run(policy, shared, command)
    assert "s3cret" not in said["out"]
    words = said["out"].split()
    assert {words[i + 1] for i, w in enumerate(words) if w.startswith("Cap")} == {f"{0xFB:016x}"}
    assert "deny" in words and words[-1] == "alive"
    for denial in ("Permission denied", "Read-only file system", "Operation not permitted"):
        assert denial in said["err"]
    assert len([line for line in said["err"].splitlines() if "not permitted" in line]) >= 3


def test_it_is_refused_where_protected_paths_could_be_given_away(tmp_path: Path) -> None:
    (sentence,) = BASE.model_copy(update={"user": "root"}).unsupported()
    assert "filesystem.protect" in sentence
    assert as_root().unsupported() == []
    path = tmp_path / "unpack.yaml"
    path.write_text(UNPACK)
    assert load_policy(str(path)).unsupported() == []


def test_a_range_is_the_callers_by_name_or_number(tmp_path: Path) -> None:
    table = tmp_path / "subuid"
    assert _range(str(table), 7) is None
    table.write_text("# a comment\n70:5:6\nbroken:x:y\n7:100:200\n7:300:400\nroot:1000:9\n")
    assert _range(str(table), 7) == (100, 200)
    assert _range(str(table), 0) == (1000, 9)
    assert _range(str(table), 8) is None
