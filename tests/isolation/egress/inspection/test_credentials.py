"""Credentials that the sandbox never holds, in requests that are looked into."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from purplebox.isolation.egress.ca import Authority
from purplebox.isolation.egress.credentials import Vault, open_vault
from purplebox.policies.hosts import Why
from purplebox.policies.model import Credential

if TYPE_CHECKING:
    from .conftest import GateTo, Server

pytestmark = pytest.mark.anyio
HOST = "api.test"
SECRET = "the-real-token-of-the-person"


def one_credential(host: str = HOST) -> Vault:
    entry = Credential(
        host=host, header="Authorization", value="Bearer ${secret:T}", placeholder_env="TOKEN"
    )
    return open_vault([entry], "inspect", {"T": SECRET})


async def test_credential_is_put_in_and_covered_in_the_answer(
    gate_to: GateTo, server: Server, servers_authority: tuple[Authority, Path], tmp_path: Path
) -> None:
    vault = one_credential()
    placeholder = vault.environment["TOKEN"]
    async with gate_to(server.server_port, vault) as gate:
        for arguments in (
            (),
            ("-H", f"Authorization: token {placeholder}"),
            ("-u", f"me:{placeholder}"),
        ):
            status, body = await gate.curl("-i", *arguments)
            assert status == 200 and SECRET not in body
        sent = [s["headers"]["Authorization"] for s in server.seen]
        basic = base64.b64encode(f"me:{SECRET}".encode()).decode()
        assert sent == [f"Bearer {SECRET}", f"token {SECRET}", f"Basic {basic}"]
        assert all(e.credentials == ("TOKEN",) for e in gate.exchanges)
        upload = tmp_path / "body"
        upload.write_text("x" * 300_000 + placeholder)
        status, body = await gate.curl("-T", str(upload))
        assert status == 403 and Why.CREDENTIAL_MISUSED in body
        assert (await gate.curl(path=f"/repos/{placeholder}"))[0] == 403
        assert (await gate.curl("-H", f"X-Other: {placeholder}"))[0] == 403
        assert len(server.seen) == 3 and SECRET not in repr(gate.exchanges)


async def test_placeholder_for_one_host_sent_to_another_is_refused(
    gate_to: GateTo, server: Server, servers_authority: tuple[Authority, Path], tmp_path: Path
) -> None:
    vault = one_credential("elsewhere.test")
    placeholder = vault.environment["TOKEN"]
    async with gate_to(server.server_port, vault) as gate:
        for arguments in (
            ("-H", f"Authorization: Bearer {placeholder}"),
            ("-u", f"me:{placeholder}"),
        ):
            status, body = await gate.curl(*arguments)
            assert status == 403 and "TOKEN" in body
        assert (await gate.curl("-u", "me:mine"))[0] == 200
        assert "Authorization" in server.seen[0]["headers"] and len(server.seen) == 1
