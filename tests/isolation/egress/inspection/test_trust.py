"""Programs and the authority that stands for their servers."""

from __future__ import annotations

import asyncio
import http.server
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from purplebox.isolation.egress.ca import Authority

if TYPE_CHECKING:
    from .conftest import Gate, GateTo, Server

pytestmark = pytest.mark.anyio
HOST = "api.test"


async def test_git_clones_over_https(gate_to: GateTo, server: Server, tmp_path: Path) -> None:
    source, root = tmp_path / "source", tmp_path / "www"
    git = ["git", "-c", "user.name=n", "-c", "user.email=e@x", "-C", str(source)]
    source.mkdir()
    for command in (["init", "-q"], ["commit", "-q", "--allow-empty", "-m", "one"]):
        subprocess.run([*git, *command], check=True)
    bare = root / "repos" / "a.git"
    subprocess.run(["git", "clone", "-q", "--bare", str(source), str(bare)], check=True)
    subprocess.run(["git", "-C", str(bare), "update-server-info"], check=True)

    class Files(http.server.SimpleHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments, directory=str(root))

        def log_message(self, format: str, *args: object) -> None:
            pass

    server.RequestHandlerClass = Files
    async with gate_to(server.server_port) as gate:
        for path, status in (("/repos/a.git", 0), ("/other/a.git", 128)):
            process = await asyncio.create_subprocess_exec(
                "git", "-c", f"http.curloptResolve={HOST}:{gate.port}:127.0.0.1",
                "-c", f"http.sslCAInfo={gate.bundle}", "clone", "-q",
                f"https://{HOST}:{gate.port}{path}", str(tmp_path / f"clone{status}"),
                stderr=subprocess.PIPE, env={"PATH": "/usr/bin:/bin", "GIT_TERMINAL_PROMPT": "0"},
            )  # fmt: skip
            _, err = await process.communicate()
            assert process.returncode == status, err
        assert b"403" in err


@pytest.mark.skipif(shutil.which("node") is None, reason="node is not installed")
async def test_node_trusts_the_sandbox_authority(gate: Gate) -> None:
    script = (
        "const [port, host, path] = process.argv.slice(1); require('https').get({host: '127.0.0.1', "
        "port, path, servername: host, headers: {host}}, r => { console.log(r.statusCode); process.exit(0) })"
    )
    for path, status in (("/repos/a", b"200"), ("/admin", b"403")):
        process = await asyncio.create_subprocess_exec(
            "node", "-e", script, str(gate.port), HOST, path, stdout=subprocess.PIPE,
            env={"PATH": "/usr/local/bin:/usr/bin:/bin", "NODE_EXTRA_CA_CERTS": str(gate.bundle)},
        )  # fmt: skip
        assert (await process.communicate())[0].strip() == status


def test_authority_keeps_its_key_in_memory_and_its_certificates_in_bounds(tmp_path: Path) -> None:
    authority = Authority()
    assert authority.context("a.test", "h2") is authority.context("a.test", "h2")
    assert "PRIVATE" not in authority.certificate
    for name in ("a.test", "127.0.0.1", "::1", "x" * 60 + "." + "y" * 60 + ".test"):
        leaf, ca = tmp_path / "leaf.pem", tmp_path / "ca.pem"
        leaf.write_bytes(authority.mint(name))
        ca.write_text(authority.certificate)
        flag = "-verify_ip" if name[0] in "1:" else "-verify_hostname"
        done = subprocess.run(
            ["openssl", "verify", "-x509_strict", "-purpose", "sslserver", flag, name, "-CAfile", str(ca), str(leaf)],
            capture_output=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
