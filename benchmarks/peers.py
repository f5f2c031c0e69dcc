"""The peers beside which sandboxes are measured: command lines that hold about what `base` holds.

bubblewrap, firejail, crun and @anthropic-ai/sandbox-runtime (`srt`), where they are installed and work.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

FIREJAIL = (
    "firejail", "--quiet", "--noprofile", "--net=none", "--private-tmp", "--private-dev",
    "--caps.drop=all", "--nonewprivs", "--seccomp",
)  # fmt: skip
_LINKS = ("/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32")
_SYSTEM = ("/usr", "/etc")


class Peers:
    """Those that work here; a context manager, since some need files.

    Args:
        workspace: The directory that is writable in each.

    Attributes:
        commands: By name, what a command's own words come behind.
        missing: By name, why it is not among them.
    """

    def __init__(self, workspace: Path) -> None:
        self.commands: dict[str, list[str]] = {}
        self.missing: dict[str, str] = {}
        self._place = Path(tempfile.mkdtemp(prefix="purple-peers-"))
        for name, command in (
            ("bwrap", bwrap(workspace)),
            ("firejail", [*FIREJAIL]),
            ("srt", ["srt", "--settings", str(self._srt()), "--"]),
        ):
            self._try(name, command)
        if shutil.which("crun"):
            self._bundle(workspace, ["true"])
        self._try("crun", ["crun", "run", "--bundle", str(self._place), f"purple-{os.getpid()}"])

    def __enter__(self) -> Peers:
        return self

    def __exit__(self, *_: object) -> None:
        shutil.rmtree(self._place)

    def command(self, name: str, *argv: str) -> list[str]:
        """What runs `argv` in that peer. crun takes it from its bundle, and so one at a time."""
        if name != "crun":
            return [*self.commands[name], *argv]
        path = self._place / "config.json"
        spec = json.loads(path.read_text())
        spec["process"]["args"] = argv
        path.write_text(json.dumps(spec))
        return self.commands[name]

    def _try(self, name: str, command: list[str]) -> None:
        if shutil.which(name) is None:
            self.missing[name] = "is not installed"
            return
        words = command if name == "crun" else [*command, "true"]
        done = subprocess.run(words, capture_output=True, text=True, stdin=subprocess.DEVNULL)
        if done.returncode:
            said = (done.stderr or done.stdout).strip() or f"exit status {done.returncode}"
            self.missing[name] = said.splitlines()[-1]
        else:
            self.commands[name] = command

    def _srt(self) -> Path:
        path = self._place / "srt.json"
        network: dict[str, list[str]] = {"allowedDomains": [], "deniedDomains": []}
        files: dict[str, list[str]] = {"denyRead": [], "allowWrite": ["."], "denyWrite": []}
        path.write_text(json.dumps({"network": network, "filesystem": files}))
        return path

    def _bundle(self, workspace: Path, argv: list[str]) -> None:
        """config.json of an OCI bundle, as crun makes it, and its root."""
        root = self._place / "rootfs"
        root.mkdir()
        for path in filter(os.path.islink, _LINKS):
            (root / path[1:]).symlink_to(os.readlink(path))
        for path in (*_SYSTEM, "/proc", "/dev", "/sys", "/tmp", str(workspace)):
            (root / path[1:]).mkdir(parents=True, exist_ok=True)
        subprocess.run(["crun", "spec"], cwd=self._place, check=True)
        config = self._place / "config.json"
        spec: dict[str, Any] = json.loads(config.read_text())
        spec["process"] |= {"args": argv, "terminal": False, "cwd": str(workspace)}
        spec["root"] = {"path": "rootfs", "readonly": True}
        spec["mounts"] += [
            {"destination": path, "type": "bind", "source": path, "options": ["rbind", mode]}
            for path, mode in (*((path, "ro") for path in _SYSTEM), (str(workspace), "rw"))
        ]
        config.write_text(json.dumps(spec))


def bwrap(workspace: Path) -> list[str]:
    """bubblewrap's command line for what `base` holds."""
    arguments = [
        "bwrap", "--unshare-all", "--die-with-parent", "--new-session", "--uid", "1000", "--gid", "1000",
    ]  # fmt: skip
    for path in _SYSTEM:
        arguments += ["--ro-bind", path, path]
    for path in filter(os.path.islink, _LINKS):
        arguments += ["--symlink", os.readlink(path), path]
    arguments += ["--tmpfs", "/tmp", "--proc", "/proc", "--dev", "/dev"]
    return [*arguments, "--bind", str(workspace), str(workspace), "--chdir", str(workspace)]
