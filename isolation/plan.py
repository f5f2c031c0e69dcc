"""What a sandbox will be, as plain values: a policy and a workspace compiled for this host.

The gateway compiles the plan; keeper, zygote and pid 1 carry it out. It travels as JSON, so the
zygote needs neither pydantic nor libseccomp. The seccomp program comes after it: it takes as long to
compile as the view does to build.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import stat
import sys
from collections.abc import Generator, Mapping
from functools import cache
from types import MappingProxyType
from typing import TYPE_CHECKING, NamedTuple, cast

from . import landlock
from .errors import SetupError
from .system import AUTHORITY, HOSTS, NETWORK_FILES, SYSTEM, TRUST_VARIABLES, TRUSTED, system_paths

if TYPE_CHECKING:
    from pathlib import Path

    from ..policies import Policy

HOME = "/home/agent"
ORDER_BYTES = 160_000  # the longest order for a sandbox; under net.core.wmem_default, socket(7)
# Directories that every sandbox has to itself, empty at its start.
PRIVATE = ("/tmp", "/var/tmp", "/dev/shm", HOME)
_TOO_WIDE = ("/", "/etc", "/proc", "/dev", "/sys", "/home", "/root")  # for a workspace
# The first id that systemd documents as belonging to nobody (UIDS-GIDS.md): what a payload is on
# the host when the caller is root.
UNUSED_ID = 0x70000000
FIRST = 1  # the number of an engine's first sandbox, and of the cgroup that it has
INSIDE_ID = 1000  # of the commands, user and group


class Common(NamedTuple):
    """What of a plan is the same for most: it is built before there is one (ground.py). As in `Plan`."""

    system: tuple[str, ...]
    runtime: tuple[str, ...] = ()
    devices: tuple[str, ...] = ()
    id_maps: tuple[str, ...] = ()
    namespaces: bool = True

    def serves(self, plan: Plan) -> bool:
        """Whether `plan` can be built on this: its own small files are laid over the host's."""
        kept = tuple(path for path in self.system if path not in plan.files)
        return self._replace(system=kept) == plan.common

    def example(self) -> Plan:
        """A plan that grants nothing beyond, to rehearse with."""
        return Plan(
            system=self.system, devices=self.devices, id_maps=self.id_maps,
            namespaces=self.namespaces, read=self.runtime, runtime=self.runtime, write=(), workspace=None, workspace_writable=False,
            tmp_bytes=1 << 20, environment={}, memory_bytes=None, cpu_cores=None,
            processes=None, open_files=None, disk_bytes=None, io_bytes_per_second=None,
            landlock_abi=landlock.abi_version(),
        )  # fmt: skip


class Plan(NamedTuple):
    """Everything that is built before a command is known. Paths are absolute host paths.

    No dataclass: that module alone takes the keeper longer to import than all else here.

    Attributes:
        read: Includes `runtime`.
        runtime: Roots of the Python that the caller uses, which every plan of its grants.
        tmp_bytes: What a sandbox's private file systems hold together.
        disk_bytes: Size of the largest file that it may make.
        landlock_abi: The rights that it is held to by Landlock; 0 holds nothing by it.
        authority: A certificate, PEM, that programs inside trust beside the host's; "" adds none.
        network: Whether the gateway is to hold the way out of each sandbox; else there is none.
        asks: Whether programs may ask for names that /etc/hosts does not have: see hosts.py.
        files: Small files of the view, by absolute path, that take the place of the host's.
        devices: Nodes beyond /dev/null and its like.
        id_maps: How several ids are mapped (subordinate.py); empty: there is one.
        namespaces: Whether sandboxes have any; else Landlock, seccomp and rlimits are all (warden.py).
        may_chdir: Whether the filter lets every chdir(2) be.
    """

    system: tuple[str, ...]
    read: tuple[str, ...]
    write: tuple[str, ...]
    workspace: str | None
    workspace_writable: bool
    tmp_bytes: int
    environment: Mapping[str, str]
    memory_bytes: int | None
    cpu_cores: float | None
    processes: int | None
    open_files: int | None
    disk_bytes: int | None
    io_bytes_per_second: int | None
    landlock_abi: int
    authority: str = ""
    network: bool = False
    asks: bool = False
    files: Mapping[str, str] = MappingProxyType({})
    devices: tuple[str, ...] = ()
    id_maps: tuple[str, ...] = ()
    namespaces: bool = True
    may_chdir: bool = True
    runtime: tuple[str, ...] = ()

    def to_json(self) -> bytes:
        """For the wire to keeper and zygote; without the environment, which comes with each order."""
        return json.dumps({**self._asdict(), "files": dict(self.files), "environment": {}}).encode()

    @staticmethod
    def from_json(text: bytes) -> Plan:
        """Inverse of `to_json`."""
        fields = json.loads(text)
        for name, value in fields.items():
            if isinstance(value, list):
                fields[name] = tuple(cast(list[str], value))
        return Plan(**fields)

    def shows(self, path: str) -> bool:
        """Whether the view shows the host's own tree at `path`."""
        roots = _directories(self.system, self.read, self.write, self.workspace or "")
        return f"{path}/".startswith(roots)

    @property
    def common(self) -> Common:
        """What of it can be built before the rest is known."""
        return Common(self.system, self.runtime, self.devices, self.id_maps, self.namespaces)

    @property
    def granted(self) -> tuple[str, ...]:
        """All trees that are granted."""
        return (*self.read, *self.write, *([self.workspace] if self.workspace else []))

    @property
    def buried(self) -> tuple[str, ...]:
        """Those below a directory that is private inside: they are put back on top of it."""
        private = tuple(f"{path}/" for path in PRIVATE)
        return tuple(path for path in self.granted if path.startswith(private))

    @property
    def names_threads(self) -> bool:
        """Whether a driver's library has to write below /proc.

        NVIDIA's, since version 570, names threads that it has made: pthread_setname_np(3) writes to
        /proc/self/task/TID/comm, and if it may not, cuInit fails (304, "OS call failed").
        """
        return "/dev/nvidiactl" in self.devices or "/dev/dxg" in self.devices


def compile_plan(
    policy: Policy,
    workspace: Path | None,
    *,
    authority: str = "",
    variables: Mapping[str, str] | None = None,
    hosts: str = "",
    asks: bool = False,
    checks_calls: bool = True,
) -> Plan:
    """Resolve `policy` on this host.

    Args:
        policy: What is allowed.
        workspace: Directory that the sandbox sees at its own path; None gives it none.
        authority: Certificate, PEM, that programs inside trust, too; "" for none.
        variables: What the way out adds to the environment; wins over all others.
        hosts: What it adds to /etc/hosts.
        asks: Whether it has addresses for more names than these.
        checks_calls: Whether to look for what is wrong with `syscalls`, too; who does not calls
            `compile_program`, which does.

    Raises:
        SetupError: the workspace, a granted path or a GPU does not exist, the system-call list does
            not compile, or there are no namespaces and the policy does not accept that; the text
            names the key.
    """
    from . import fallback, subordinate
    from .devices import grant_gpus
    from .seccomp import is_free

    if sentences := policy.unsupported():
        raise SetupError(
            "the policy asks for what this version cannot enforce: " + "; ".join(sentences)
        )
    mode = policy.filesystem.workspace
    if mode == "none":
        workspace = None
    root = None if workspace is None else _root(workspace)
    namespaces = not policy.dangerously_without_namespaces or not fallback.namespaces_errno()
    if not namespaces:
        fallback.check_accepted(policy)
    maps = subordinate.id_maps() if policy.user == "root" and namespaces else ()
    write = _granted("write", policy.filesystem.write, root)
    try:
        devices, facts = grant_gpus(policy.devices.gpu)
    except ValueError as error:
        raise SetupError(str(error)) from error
    resources = policy.resources
    network = not policy.network.isolated
    files = {**NETWORK_FILES} if network else {}
    if network:
        files[HOSTS] += hosts
    runtime = interpreters()
    with _in_words():
        may_chdir = is_free(policy, "chdir")
    plan = Plan(
        system=tuple(path for path in system_paths(facts) if path not in files),
        runtime=runtime,
        read=(*runtime, *_granted("read", policy.filesystem.read, root)),
        write=write,
        workspace=root,
        workspace_writable=mode == "write",
        tmp_bytes=min(
            policy.filesystem.tmp_bytes,
            sys.maxsize if resources.disk_bytes is None else resources.disk_bytes,
        ),
        environment={
            **_environment(policy),
            **(dict.fromkeys(("USER", "LOGNAME"), "root") if maps else {}),
            **(dict.fromkeys(TRUST_VARIABLES, TRUSTED) if authority else {}),
            **({"NODE_EXTRA_CA_CERTS": AUTHORITY} if authority else {}),
            **(variables or {}),
        },
        authority=authority,
        network=network,
        asks=network and asks,
        files=files,
        devices=devices,
        id_maps=maps,
        namespaces=namespaces,
        memory_bytes=resources.memory_bytes,
        cpu_cores=resources.cpu_cores,
        processes=resources.processes,
        open_files=resources.open_files,
        disk_bytes=resources.disk_bytes,
        io_bytes_per_second=resources.io_bytes_per_second,
        landlock_abi=landlock.abi_version(),
        may_chdir=may_chdir,
    )
    if checks_calls:
        compile_program(policy, plan)
    return plan


def compile_program(policy: Policy, plan: Plan) -> bytes:
    """The seccomp program for commands of `policy`, whose plan this is.

    Raises:
        SetupError: the system-call list does not compile; the text names the key.
    """
    from .seccomp import compile_filter

    with _in_words():
        return compile_filter(policy, apart=plan.namespaces, refused_mode=_refused_mode(plan))


@contextlib.contextmanager
def _in_words() -> Generator[None]:
    """What seccomp.py raises, as `SetupError`."""
    try:
        yield
    except ImportError as error:
        raise SetupError("libseccomp is missing; install it: apt install libseccomp2") from error
    except (ValueError, OSError) as error:
        raise SetupError(str(error)) from error


@cache  # each call of a command asks
def _directories(*trees: tuple[str, ...] | str) -> tuple[str, ...]:
    """Paths, each with a slash at its end."""
    paths = itertools.chain.from_iterable(
        [tree] if isinstance(tree, str) else tree for tree in trees
    )
    return tuple(f"{path}/" for path in paths if path)


def interpreters() -> tuple[str, ...]:
    """Roots of the Python that the caller uses, where it is not system software already.

    Read-only also where they lie in the workspace: a change there would run outside, in the caller.
    """
    roots = {sys.base_prefix, sys.prefix, os.environ.get("VIRTUAL_ENV", "")}
    return tuple(
        sorted(r for r in roots if r and os.path.isdir(r) and not r.startswith(("/usr", "/opt")))
    )


def _refused_mode(plan: Plan) -> int:
    """Of setuid and setgid, what commands may not set.

    With several ids nothing of it: to unpack what has such files is what they are for, and CAP_FSETID
    would keep the bit on a file that open(2) has made. Where a tree that is written to has setgid
    directories, tools set that bit again whenever they set the others.
    """
    if plan.id_maps:
        return 0
    for tree in (plan.workspace if plan.workspace_writable else None, *plan.write):
        if tree is None:
            continue
        with contextlib.suppress(OSError):
            if os.stat(tree).st_mode & stat.S_ISGID:
                return stat.S_ISUID
    return stat.S_ISUID | stat.S_ISGID


def _root(workspace: Path) -> str:
    """The directory's real path. Raises `SetupError`: there is none, or it holds too much."""
    root = os.path.realpath(workspace)
    if not os.path.isdir(root):
        named = os.path.abspath(workspace)
        raise SetupError(f"workspace {named} is not a directory; create it or name another")
    if root in (*_TOO_WIDE, *SYSTEM, *PRIVATE):
        raise SetupError(f"workspace {root} is too wide; name the project's own directory")
    if any(f"{home}/".startswith(f"{root}/") for home in _homes(os.environ.get("HOME", ""))):
        raise SetupError(
            f"workspace {root} is your home directory, or holds it: every key and password in "
            "it would be the sandbox's; name the project's own directory"
        )
    return root


def _granted(key: str, paths: tuple[str, ...], root: str | None) -> tuple[str, ...]:
    """Real paths of what is granted; relative ones begin in `root`. Raises `SetupError`."""
    granted: list[str] = []
    for path in paths:
        full = os.path.join(root or os.getcwd(), os.path.expanduser(path))
        if not os.path.exists(full):
            raise SetupError(
                f"filesystem.{key}: {path} does not exist; create it or remove the grant"
            )
        granted.append(os.path.realpath(full))
        if granted[-1] in PRIVATE:
            raise SetupError(
                f"filesystem.{key}: each sandbox has {path} to itself, empty; grant what is in it"
            )
    return tuple(granted)


@cache  # each engine asks, and accounts are slow to look up
def _homes(named: str) -> tuple[str, ...]:
    """The caller's home directory, as its environment names it and as the system's accounts do."""
    import pwd

    homes = [named]
    with contextlib.suppress(KeyError):  # an id without an account
        homes.append(pwd.getpwuid(os.getuid()).pw_dir)
    return tuple(os.path.realpath(path) for path in homes if path.startswith("/") and path != "/")


def _environment(policy: Policy) -> dict[str, str]:
    path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    for root in (sys.base_prefix, os.environ.get("VIRTUAL_ENV", "")):
        if root and not root.startswith("/usr") and os.path.isdir(f"{root}/bin"):
            path = f"{root}/bin:{path}"
    environment = {
        "PATH": path,
        "HOME": HOME,
        "USER": "agent",
        "LOGNAME": "agent",
        "TMPDIR": "/tmp",
    }
    for name in policy.environment.pass_:
        if name in os.environ:
            environment[name] = os.environ[name]
    environment.update(policy.environment.set)
    return environment
