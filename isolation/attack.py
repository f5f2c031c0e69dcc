"""Attacks on a policy's own sandbox, from inside: `purple doctor --attack`, and the same in the tests.

`ATTACKS` is the one list: each is a function in probes/, with what it has to meet. `attack` puts up
what they aim at (a secret file, a process, sockets outside), runs each in a sandbox of its own, and says
layer by layer what held.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Generator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import aims, inside, leftovers, probes
from .errors import CommandNotFound, SetupError

if TYPE_CHECKING:
    from ..policies import Policy
    from .sandbox import Engine

_AT_ONCE = 4
_SECONDS = 60.0
_WORD = "PURPLE_ATTACK_WORD"
_PLACE = re.compile(r"purple-attack-[0-9a-f]{16}")
# It answers whoever gets at a listener of its parent's, until its parent is gone.
_VICTIM = """
import socket, sys, threading
def answer():
    kept = []
    while True:
        kept.append(listener.accept()[0])
        try: kept[-1].sendall(b"x")
        except OSError: pass
listener = socket.socket(fileno=int(sys.argv[2]))
threading.Thread(target=answer, daemon=True).start()
sys.stdin.read()
"""


@dataclass(frozen=True, kw_only=True)
class Attack:
    """One thing that a sandbox has to refuse.

    Attributes:
        name: Of the function in probes/.
        layer: That holds it, or the first of those that do.
        answers: What it may meet: names of errno or of a signal, or "none" where it looks for
            something.
        needs: Layers of `Enforcement` without which it is not asked.
    """

    name: str
    layer: str
    answers: frozenset[str]
    needs: tuple[str, ...] = ()


def _of(layer: str, answers: str, *names: str, needs: tuple[str, ...] = ()) -> list[Attack]:
    found = frozenset(answers.split())
    return [Attack(name=name, layer=layer, answers=found, needs=needs) for name in names]


ATTACKS: tuple[Attack, ...] = (
    *_of("namespaces", "none", "see_processes", "read_secrets_of_processes"),
    *_of("namespaces", "ESRCH EPERM", "signal_the_host"),
    *_of("namespaces", "EACCES EPERM", "read_memory_of_pid_1", "enter_namespaces_of_pid_1"),
    *_of("namespaces", "ENOENT ENOTDIR", "change_cgroup"),
    *_of("mounts", "ENOENT EACCES", "read_secret", "run_from_memory"),
    *_of("mounts", "ENOENT EACCES EXDEV EROFS EPERM", "link_secret"),
    *_of("mounts", "EACCES EPERM ENOENT", "read_by_pid_1"),
    *_of("mounts", "EROFS EACCES EPERM EBUSY EXDEV EEXIST ENOTDIR EADDRINUSE EINVAL", "write_protected"),
    *_of("mounts", "EROFS EACCES EPERM ENOENT ETXTBSY", "write_outside", "write_kernel_settings"),
    *_of("mounts", "EROFS EACCES EPERM ETXTBSY", "overwrite_programs"),
    *_of("mounts", "none", "leave_by_descriptor", "find_old_root", "gain_by_setuid"),
    # EACCES and EPERM where there are no namespaces: Landlock and seccomp let nothing be asked.
    *_of("capabilities", "none EACCES", "hold_privilege", "be_root_on_the_host"),
    *_of("capabilities", "EPERM EINVAL", "become_root"),
    *_of("landlock", "EACCES EPERM", "use_what_only_landlock_holds", needs=("landlock",)),
    *_of("seccomp", "EPERM",
         "new_user_namespace", "clone_user_namespace", "io_uring", "ptrace", "process_memory",
         "steal_descriptor", "keyring", "userfaultfd", "perf", "mount_api", "change_root",
         "file_handles", "kernel_programs", "administration", "socket_families", "netlink_families",
         "make_setuid"),
    *_of("seccomp", "EPERM EACCES", "type_into_the_terminal"),
    *_of("seccomp", "ENOSYS", "clone3"),
    # A kernel without the 32-bit entry ends it by another signal, or takes it for the 64-bit one (user-mode
    # Linux), whose number 20 is writev(2).
    *_of("seccomp", "SIGSYS SIGSEGV EBADF", "foreign_entry", "x32_entry"),
    *_of("cgroup", "EAGAIN", "more_processes", needs=("cgroup",)),
    *_of("network", "ECONNREFUSED ECONNRESET ENETUNREACH EHOSTUNREACH EADDRNOTAVAIL EAFNOSUPPORT ETIMEDOUT EACCES EPERM", "reach_the_hosts_loopback", "reach_the_network"),
    *_of("network", "ECONNREFUSED ENETUNREACH EHOSTUNREACH EADDRNOTAVAIL EAFNOSUPPORT EACCES EPERM", "send_a_datagram"),
    *_of("network", "ENOENT ECONNREFUSED ECONNRESET", "reach_a_name"),
    *_of("network", "ECONNREFUSED EACCES EPERM", "tunnel_through_the_gate"),
    *_of("network", "none EPERM", "see_interfaces"),
    *_of("network", "ECONNREFUSED EPERM", "reach_abstract_socket"),
    *_of("network", "ENOENT EACCES ECONNREFUSED ENOTDIR EPERM", "reach_path_socket"),
    *_of("environment", "none", "inherit_variables"),
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What one attack met.

    Attributes:
        attack: Which.
        answer: In its own words.
        held: Whether that is what it had to meet.
    """

    attack: Attack
    answer: str
    held: bool


@dataclass(frozen=True, kw_only=True)
class LayerOutcome:
    """What the attacks on one layer met. `skipped` says why it was not attacked."""

    layer: str
    outcomes: tuple[Outcome, ...]
    skipped: str = ""

    @property
    def broken(self) -> tuple[Outcome, ...]:
        """Those that did not meet what they had to."""
        return tuple(outcome for outcome in self.outcomes if not outcome.held)

    def to_json(self) -> dict[str, Any]:
        """`{"layer", "held", "skipped", "attacks": {name: answer}}`."""
        return {
            "layer": self.layer,
            "held": not self.broken and not self.skipped,
            "skipped": self.skipped,
            "attacks": {outcome.attack.name: outcome.answer for outcome in self.outcomes},
        }

    def sentence(self) -> str:
        """One line for a person."""
        if self.skipped:
            return f"{self.layer:12} skipped  {self.skipped}"
        count = len(self.outcomes)
        attacks = f"{count} attack{'' if count == 1 else 's'}"
        if not self.broken:
            return f"{self.layer:12} held     {attacks}"
        said = "; ".join(f"{o.attack.name}: {o.answer}" for o in self.broken)
        return f"{self.layer:12} BROKEN   {len(self.broken)} of {attacks}: {said}"


async def attack(policy: Policy) -> list[LayerOutcome]:
    """Run every attack in a sandbox of `policy`, on a workspace of its own.

    Raises:
        SetupError: no sandbox can be built, or it has no Python in its view.
    """
    from .sandbox import Engine

    with targets(policy) as (workspace, found), _variables():
        mode = policy.filesystem.workspace
        async with Engine(policy, None if mode == "none" else workspace) as engine:
            few = asyncio.Semaphore(_AT_ONCE)
            pairs = [
                (one, _why_not(engine, one)) for one in ATTACKS
            ]  # fmt: skip

            async def run(one: Attack) -> Outcome:
                async with few:
                    answer = await answer_of(engine, one.name, found)
                return Outcome(attack=one, answer=answer, held=set(answer.split()) <= one.answers)

            outcomes = await asyncio.gather(*(run(one) for one, why in pairs if not why))
    skipped = {one.layer: why for one, why in pairs if why}
    return [
        LayerOutcome(
            layer=layer,
            outcomes=tuple(o for o in outcomes if o.attack.layer == layer),
            skipped=skipped.get(layer, ""),
        )
        for layer in dict.fromkeys(one.layer for one in ATTACKS)
    ]


def _why_not(engine: Engine, one: Attack) -> str:
    """Why an attack makes no sense here; "" where it does."""
    own = [one.layer] if one.layer in engine.enforcement.layers else []
    for layer in (*own, *one.needs):
        status = engine.enforcement.layers[layer]
        if layer not in one.needs and status.status != "none":
            continue
        if status.status == "none" or (layer == "cgroup" and status.status != "full"):
            return f"not enforced on this host: {status.reason}"
    if engine.policy.user == "root" and one.layer == "capabilities":
        return "the policy says user: root"
    if one.name == "make_setuid" and engine._entered.plan.id_maps:
        return "the policy says user: root"
    if one.name == "use_what_only_landlock_holds" and engine._entered.plan.names_threads:
        return "the GPU's library names threads in /proc"
    if one.name == "more_processes" and engine.policy.resources.processes is None:
        return "the policy has no resources.processes"
    return ""


async def answer_of(engine: Engine, name: str, found: Mapping[str, Any]) -> str:
    """What attack `name` says in a sandbox of `engine`.

    Args:
        engine: Entered.
        name: Of a function in probes/.
        found: What it aims at: see `targets`.

    Raises:
        SetupError: there is no Python in the view.
    """
    host = json.dumps(probes.namespaces())
    argv = [os.path.realpath(sys.executable), "-I", "-S", "-c", program(), name, host, json.dumps(found)]  # fmt: skip
    try:
        result = await engine.run(argv, wall_seconds=_SECONDS)
    except CommandNotFound as error:
        raise SetupError(f"attacks need Python inside the sandbox: {error}") from error
    if result.signal is not None:
        return signal.Signals(result.signal).name
    text = result.stdout.decode(errors="replace").strip()
    return text if result.exit_code == 0 else f"status {result.exit_code}: {result.stderr.decode(errors='replace')[-300:]}"  # fmt: skip


def program() -> str:
    """The probes, for `python -c`: a sandbox's view does not hold this package."""
    names = ("files", "processes", "kernel", "network", "limits")
    modules = ", ".join(f"package.{name}" for name in names)
    return inside.bundle(
        [f"probes/{name}" for name in ("frame", *names)],
        f"package.frame.main(sys.argv[1:], [{modules}])",
    )


@contextlib.contextmanager
def _variables() -> Generator[None]:
    """Have in the environment what no sandbox may get: a secret, and what would steer programs."""
    put = {
        _WORD: "purple-attack-word",
        "LD_PRELOAD_PURPLE": "x",
        "BASH_ENV": "/dev/null",
        "GIT_PURPLE": "x",
    }
    before = {name: os.environ.get(name) for name in put}
    os.environ.update(put)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@contextlib.contextmanager
def targets(policy: Policy) -> Generator[tuple[Path, dict[str, Any]]]:
    """What attacks aim at, put up outside for as long as this is held.

    Yields:
        A workspace for the sandbox, and for probes/: `secret`, a file outside it; `protected`, one
        in it that `filesystem.protect` names or a read-only one; `port`, where something answers,
        `datagrams`, `abstract` and `socket`, listening; `victim`, a process of the caller's; `word`,
        in its environment; `processes`; and what `aims` finds for the policy.

    Raises:
        SetupError: a pattern of `network` means nothing.
    """
    with contextlib.ExitStack() as stack:
        # Not below /tmp, which a sandbox has to itself: what is hidden there would prove nothing.
        base = stack.enter_context(_directory(_home() or tempfile.gettempdir()))
        workspace = base / "workspace"
        protected = workspace / ".git" / "config"
        protected.parent.mkdir(parents=True)
        protected.write_text("[core]\n")
        secret = base / "outside" / "secret"
        secret.parent.mkdir()
        secret.write_text("purple-attack-word")
        environment = {**os.environ, _WORD: "purple-attack-word"}
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        listening = listener.fileno()
        port = listener.getsockname()[1]
        victim = stack.enter_context(
            subprocess.Popen(
                [sys.executable, "-c", _VICTIM, "purple-attack-word", str(listening)],
                stdin=subprocess.PIPE,
                env=environment,
                pass_fds=[listening],
            )
        )
        stack.callback(victim.terminate)
        # Apart, for a socket's path is at most 108 bytes long: unix(7).
        sockets = stack.enter_context(_directory(tempfile.gettempdir()))
        datagrams = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        datagrams.bind(("127.0.0.1", 0))
        abstract = f"purple-attack-{os.getpid()}"
        for kind, name in (
            (socket.SOCK_STREAM, f"\0{abstract}"),
            (socket.SOCK_DGRAM, f"\0{abstract}-datagram"),
            (socket.SOCK_STREAM, f"{sockets}/socket"),
        ):
            sock = stack.enter_context(socket.socket(socket.AF_UNIX, kind))
            sock.bind(name)
            if kind == socket.SOCK_STREAM:
                sock.listen()
        yield workspace, {
            "secret": str(secret), "protected": str(protected), "port": port,
            "datagrams": datagrams.getsockname()[1], "abstract": abstract, "socket": f"{sockets}/socket", "victim": victim.pid,
            "word": "purple-attack-word", "processes": policy.resources.processes or 0,
            "variables": aims.own_variables(policy), **aims.forbidden(policy.network, port),
        }  # fmt: skip


@contextlib.contextmanager
def _directory(parent: str) -> Generator[Path]:
    """A directory in `parent`; those of attackers that were killed go before it is made."""
    leftovers.sweep(parent, _PLACE, leftovers.remove)
    path = f"{parent}/purple-attack-{secrets.token_hex(8)}"
    held = leftovers.make(path, 0o700)
    try:
        yield Path(path)
    finally:
        leftovers.remove(path)
        os.close(held)


def _home() -> str | None:
    """A directory of the caller's that no sandbox has as its own; None for the usual one."""
    home = os.path.expanduser("~")
    return home if os.access(home, os.W_OK) else None
