"""Who trusts the sandbox's own authority: everything inside, nothing outside."""

from __future__ import annotations

import asyncio
import subprocess
from pathlib import Path

import pytest

from purplebox.isolation import Engine, Result, sandbox
from purplebox.isolation.egress.ca import Authority
from purplebox.isolation.plan import Plan, compile_plan
from purplebox.isolation.system import BUNDLES
from purplebox.policies import Policy, load_policy

LOOK = """
openssl verify -purpose sslserver leaf.pem
for bundle in %s; do [ -e $bundle ] && cmp $bundle "$SSL_CERT_FILE" && echo same; done
echo "token=$TOKEN"
grep -l PRIVATE /run/purple/*
echo x >> "$SSL_CERT_FILE"
""" % " ".join(BUNDLES)  # noqa: UP031


def look(workspace: Path) -> Result:
    async def go() -> Result:
        async with Engine(load_policy("base"), workspace) as engine:
            return await engine.run(["sh", "-c", LOOK])

    return asyncio.run(go())


def test_authority_is_trusted_inside_and_only_there(
    workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    authority = Authority()
    (workspace / "leaf.pem").write_bytes(authority.mint("api.test"))
    control = look(workspace)
    assert b"leaf.pem: OK" not in control.stdout and b"token=\n" in control.stdout

    def given(policy: Policy, workspace: Path | None, **_: object) -> Plan:
        return compile_plan(
            policy, workspace, authority=authority.certificate, variables={"TOKEN": "purple0"}
        )

    monkeypatch.setattr(sandbox, "compile_plan", given)
    found = look(workspace)
    assert b"leaf.pem: OK" in found.stdout, found.stderr
    assert b"token=purple0\n" in found.stdout and b"/run/purple/" not in found.stdout
    if any(Path(path).is_file() and not Path(path).is_symlink() for path in BUNDLES):
        assert b"same\n" in found.stdout
    assert b"ead-only" in found.stderr or b"ermission denied" in found.stderr

    host = subprocess.run(
        ["openssl", "verify", str(workspace / "leaf.pem")], capture_output=True, check=False
    )
    assert host.returncode != 0
