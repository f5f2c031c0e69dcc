"""Programs as they are, with no settings: curl, git, pip, npm, ssh, psql, a virtual environment."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import io
import json
import os
import shutil
import socket
import subprocess
import tarfile
import zipfile
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from purplebox.policies import load_policy
from purplebox.policies.hosts import Why

if TYPE_CHECKING:
    from .conftest import Net, Server

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(900)]
NO_PROXIES = "unset HTTP_PROXY HTTPS_PROXY ALL_PROXY http_proxy https_proxy all_proxy; "


async def files(net: Net, root: Path, *, tls: str = "") -> Server:
    """A static file server."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while head := await reader.readuntil(b"\r\n\r\n"):
            path = root / head.split()[1].decode().partition("?")[0].strip("/")
            if path.is_dir():
                names = "".join(f'<a href="{p.name}">{p.name}</a>' for p in path.iterdir())
                status, body = b"200 OK\r\nContent-Type: text/html", names.encode()
            elif path.is_file():
                status, body = b"200 OK", path.read_bytes()
            else:
                status, body = b"404 Not Found", b""
            writer.write(b"HTTP/1.1 %s\r\nContent-Length: %d\r\n\r\n" % (status, len(body)) + body)
            await writer.drain()

    context = net.authority.context(tls, "http/1.1") if tls else None
    server = await net.serve(handle, context=context)
    return server


def git(where: Path, *arguments: str) -> None:
    options = ["-c", "user.name=a", "-c", "user.email=a@a.test", "-c", "init.defaultBranch=main"]
    subprocess.run(["git", *options, *arguments], cwd=where, check=True, capture_output=True)


@pytest.mark.parametrize("tls", ["pass", "inspect"])
async def test_git_clones(net: Net, tmp_path: Path, tls: str) -> None:
    source = tmp_path / "served" / "source"
    source.mkdir(parents=True)
    git(source, "init", "-q")
    (source / "file").write_text("x" * 100_000)
    git(source, "add", ".")
    git(source, "commit", "-qm", "first")
    git(source, "update-server-info")
    server = await files(net, tmp_path / "served", tls="git.test")
    net.names["git.test"] = ["127.0.0.1"]
    policy = net.policy({"host": "git.test", "ports": [server.port]}, tls=tls)
    trust = f"export GIT_SSL_CAINFO={net.workspace}/servers.pem; " if tls == "pass" else ""
    clone = f"{trust}cd /tmp && git clone -q https://git.test:{server.port}/source/.git got{{}} && wc -c < got{{}}/file"
    both = NO_PROXIES + clone.format(1, 1)
    result = await net.run(policy, f"{clone.format(2, 2)} && {both}")
    assert result.stdout.split() == [b"100000", b"100000"], result.stderr
    assert {c.via for c in result.connections} == {"http_proxy", "direct"}
    assert not any(c.reason for c in result.connections)
    other = net.policy({"host": "other.test", "ports": [server.port]}, tls=tls)
    result = await net.run(other, both)
    assert b"Could not resolve host: git.test" in result.stderr


async def test_pip_installs_from_an_index(net: Net, tmp_path: Path) -> None:
    served = tmp_path / "served" / "simple" / "tiny"
    served.mkdir(parents=True)
    record = "tiny.py,,\ntiny-1.0.dist-info/METADATA,,\ntiny-1.0.dist-info/WHEEL,,\ntiny-1.0.dist-info/RECORD,,\n"
    wheel = served / "tiny-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("tiny.py", "value = 42\n")
        archive.writestr(
            "tiny-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: tiny\nVersion: 1.0\n"
        )
        archive.writestr(
            "tiny-1.0.dist-info/WHEEL",
            "Wheel-Version: 1.0\nGenerator: x\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        )
        archive.writestr("tiny-1.0.dist-info/RECORD", record)
    server = await files(net, tmp_path / "served", tls="index.test")
    net.names["index.test"] = ["127.0.0.1"]
    policy = net.policy({"host": "index.test", "ports": [server.port]}, tls="inspect")
    install = (
        "python3 -m venv /tmp/v && /tmp/v/bin/pip install -q --disable-pip-version-check --retries 0 "
        f"--index-url https://index.test:{server.port}/simple tiny && "
        "/tmp/v/bin/python -c 'import tiny; print(tiny.value)'"
    )
    async with net.engine(policy) as engine:
        result = await engine.run(["bash", "-c", install], wall_seconds=800)
    assert result.stdout == b"42\n", result.stderr
    digest = base64.b16encode(hashlib.sha256(wheel.read_bytes()).digest())
    assert digest  # it was served as it is
    paths = [r.path for c in result.connections for r in c.requests]
    assert any(path.endswith("tiny-1.0-py3-none-any.whl") for path in paths)


def package(code: str) -> bytes:
    """What `npm pack` makes of a package of one file."""
    found = io.BytesIO()
    with tarfile.open(fileobj=found, mode="w:gz") as archive:
        for name, text in (
            ("package.json", '{"name": "tiny", "version": "1.0.0", "main": "index.js"}'),
            ("index.js", code),
        ):
            info = tarfile.TarInfo(f"package/{name}")
            info.size = len(text)
            archive.addfile(info, io.BytesIO(text.encode()))
    return found.getvalue()


@pytest.mark.skipif(shutil.which("npm") is None, reason="npm is not installed")
async def test_npm_installs_from_a_registry(net: Net) -> None:
    tarball = package("module.exports = 42")
    base = ""

    async def registry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while head := await reader.readuntil(b"\r\n\r\n"):
            integrity = "sha512-" + base64.b64encode(hashlib.sha512(tarball).digest()).decode()
            dist = {"tarball": f"{base}/tiny/-/tiny-1.0.0.tgz", "integrity": integrity}
            about = {
                "name": "tiny", "dist-tags": {"latest": "1.0.0"},
                "versions": {"1.0.0": {"name": "tiny", "version": "1.0.0", "dist": dist}},
            }  # fmt: skip
            bodies = {b"/tiny": json.dumps(about).encode(), b"/tiny/-/tiny-1.0.0.tgz": tarball}
            body = bodies.get(head.split()[1])
            status = b"404 Not Found" if body is None else b"200 OK"
            writer.write(b"HTTP/1.1 %s\r\nContent-Length: %d\r\n\r\n" % (status, len(body or b"")))
            writer.write(body or b"")
            await writer.drain()

    server = await net.serve(registry, context=net.authority.context("npm.test", "http/1.1"))
    base = f"https://npm.test:{server.port}"
    net.names["npm.test"] = ["127.0.0.1"]
    install = (
        "mkdir /tmp/p && cd /tmp/p && npm install --no-audit --no-fund --no-update-notifier "
        f"--fetch-retries=0 --cache /tmp/cache --registry {base}/ tiny && "
        "node -p 'require(\"tiny\")'"
    )
    policy = net.policy({"host": "npm.test", "ports": [server.port]}, tls="inspect")
    result = await net.run(policy, install)
    assert result.stdout.splitlines()[-1:] == [b"42"], result.stderr
    paths = [r.path for c in result.connections for r in c.requests]
    assert "/tiny/-/tiny-1.0.0.tgz" in paths
    denied = net.policy(
        {"host": "npm.test", "ports": [server.port], "paths": ["/tiny"]}, tls="inspect"
    )
    result = await net.run(denied, install)
    assert result.exit_code and b"42" not in result.stdout
    refused = [r for c in result.connections for r in c.requests if r.reason]
    assert {(r.path, r.reason) for r in refused} == {
        ("/tiny/-/tiny-1.0.0.tgz", Why.REQUEST_NOT_ALLOWED)
    }


@contextlib.asynccontextmanager
async def sshd(where: Path) -> AsyncGenerator[int]:
    """OpenSSH's server on a port of the loopback, which lets root in by the key `where/key`."""
    for name in ("host", "key"):
        make = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(where / name)]
        subprocess.run(make, check=True)
    Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)  # as its service does
    configuration = where / "sshd_config"
    configuration.write_text(
        f"HostKey {where}/host\nAuthorizedKeysFile {where}/key.pub\nStrictModes no\nUsePAM no\n"
        "PidFile none\nPermitRootLogin prohibit-password\nPasswordAuthentication no\n"
    )
    children: list[asyncio.subprocess.Process] = []

    async def accept(listener: socket.socket) -> None:
        while True:
            sock, _ = await asyncio.get_running_loop().sock_accept(listener)
            sock.setblocking(True)
            with sock:  # `sshd -i`: one connection on its standard streams
                children.append(
                    await asyncio.create_subprocess_exec(
                        "/usr/sbin/sshd", "-i", "-f", str(configuration),
                        stdin=sock.fileno(), stdout=sock.fileno(), stderr=asyncio.subprocess.DEVNULL,
                    )
                )  # fmt: skip

    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setblocking(False)
        accepting = asyncio.create_task(accept(listener))
        try:
            yield listener.getsockname()[1]
        finally:
            accepting.cancel()
            for child in children:
                with contextlib.suppress(ProcessLookupError):
                    child.kill()
                await child.wait()


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
@pytest.mark.skipif(not os.path.exists("/usr/sbin/sshd"), reason="sshd is not installed")
async def test_ssh_runs_a_command_on_a_server(net: Net, tmp_path: Path) -> None:
    async with sshd(tmp_path) as port:
        net.names["ssh.test"] = ["127.0.0.1"]
        shutil.copy(tmp_path / "key", net.workspace / "key")
        os.chown(net.workspace / "key", net.workspace.stat().st_uid, -1)
        host = (tmp_path / "host.pub").read_text()
        (net.workspace / "known").write_text(f"[ssh.test]:{port} {host}")
        command = (
            f"ssh -F none -i key -o IdentitiesOnly=yes -o UserKnownHostsFile={net.workspace}/known "
            f"-o StrictHostKeyChecking=yes -o BatchMode=yes -p {port} root@ssh.test 'echo $((6*7)); exit 3'"
        )
        result = await net.run(net.policy({"host": "ssh.test", "ports": [port]}), command)
        assert (result.exit_code, result.stdout) == (3, b"42\n"), result.stderr
        assert [(c.name, c.reason) for c in result.connections] == [("ssh.test", Why.NONE)]
        result = await net.run(net.policy({"host": "ssh.test", "ports": [22]}), command)
        assert (result.exit_code, result.stdout) == (255, b"")
        assert [c.reason for c in result.connections] == [Why.PORT_NOT_ALLOWED]


async def test_ssh_hears_a_server_that_speaks_first(net: Net) -> None:
    async def banner(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"SSH-2.0-purple-test\r\n")
        await reader.read(1 << 16)

    server = await net.serve(banner)
    net.names["ssh.test"] = ["127.0.0.1"]
    command = (
        f"ssh -v -F none -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null -p {server.port} "
        "a@ssh.test true"
    )
    result = await net.run(net.policy({"host": "ssh.test", "ports": [server.port]}), command)
    assert b"remote software version purple-test" in result.stderr
    result = await net.run(net.policy({"host": "ssh.test", "ports": [22]}), command)
    assert b"remote software version" not in result.stderr
    assert [c.reason for c in result.connections] == [Why.PORT_NOT_ALLOWED]


async def test_psql_asks_a_server(net: Net) -> None:
    def message(kind: bytes, body: bytes) -> bytes:
        return kind + (len(body) + 4).to_bytes(4, "big") + body

    async def postgres(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        # PostgreSQL, "Message Formats": SSLRequest, StartupMessage, then simple queries.
        while True:
            length = int.from_bytes(await reader.readexactly(4), "big")
            if await reader.readexactly(length - 4) not in (
                b"\x04\xd2\x16\x2f",
                b"\x04\xd2\x16\x30",
            ):
                break
            writer.write(b"N")
        ready = message(b"Z", b"I")
        writer.write(message(b"R", bytes(4)) + message(b"S", b"server_version\x0015\0") + ready)
        while (kind := await reader.readexactly(1)) == b"Q":
            length = int.from_bytes(await reader.readexactly(4), "big")
            await reader.readexactly(length - 4)
            column = (
                b"x\0" + bytes(6) + (25).to_bytes(4, "big") + b"\xff\xff" + b"\xff" * 4 + bytes(2)
            )
            writer.write(message(b"T", b"\0\1" + column))
            writer.write(message(b"D", b"\0\1" + (3).to_bytes(4, "big") + b"yes"))
            writer.write(message(b"C", b"SELECT 1\0") + ready)
        assert kind == b"X"

    server = await net.serve(postgres)
    net.names["db.test"] = ["127.0.0.1"]
    command = f"psql -X -At 'host=db.test port={server.port} user=a dbname=a' -c 'select 1'"
    result = await net.run(net.policy({"host": "db.test", "ports": [server.port]}), command)
    assert result.stdout == b"yes\n", result.stderr
    result = await net.run(net.policy({"host": "db2.test", "ports": [server.port]}), command)
    assert b"could not translate host name" in result.stderr
    assert server.connections == 1


async def test_web_scraper_fetches_over_https_and_nothing_else(net: Net, tmp_path: Path) -> None:
    """The shipped profile on its work, but for the port and where the name leads: this is no internet."""
    served = tmp_path / "served"
    (served / "pages").mkdir(parents=True)
    for number in range(20):
        (served / "pages" / f"{number}.html").write_text(f"<h1>{number}</h1>")
    secure, plain = await files(net, served, tls="site.test"), await net.http()
    net.names["site.test"] = ["127.0.0.1"]
    profile = load_policy("web-scraper")
    (rule,) = profile.network.allow
    assert (rule.host, rule.ports) == ("**", (443,))
    here = rule.model_copy(update={"ports": (secure.port,), "addresses": ("127.0.0.0/8",)})
    network = profile.network.model_copy(update={"allow": (here,)})
    policy = profile.model_copy(update={"network": network})
    scrape = f"""
import re, ssl, urllib.request
context = ssl.create_default_context(cafile="servers.pem")
def get(path):
    return urllib.request.urlopen(f"https://site.test:{secure.port}{{path}}", context=context).read().decode()
titles = [re.search("<h1>(.*)</h1>", get("/pages/" + name))[1] for name in re.findall('href="(.*?)"', get("/pages"))]
open("titles", "w").write(" ".join(sorted(titles, key=int)))
"""
    result = await net.python(policy, scrape)
    assert result.exit_code == 0, result.stderr
    assert (net.workspace / "titles").read_text() == " ".join(map(str, range(20)))
    # HTTP in the clear, and the profile as it is shipped (public addresses only), reach nothing.
    get = f"curl -sS --noproxy '*' --max-time 120 -f http://site.test:{plain.port}/"
    result = await net.run(policy, get)
    assert [c.reason for c in result.connections] == [Why.PORT_NOT_ALLOWED]
    public = rule.model_copy(update={"ports": (secure.port,)})
    network = profile.network.model_copy(update={"allow": (public,)})
    result = await net.python(profile.model_copy(update={"network": network}), scrape)
    assert [c.reason for c in result.connections] == [Why.ADDRESS_NOT_ALLOWED]
    assert plain.connections == 0
