"""What a sandbox will be, as plain values: a policy and a workspace compiled for this host.

The gateway compiles the plan; keeper, zygote and pid 1 carry it out. It travels as JSON, so the
zygote needs neither pydantic nor libseccomp.
"""

from __future__ import annotations

import binascii
import contextlib
import itertools
import json
import os
import stat
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from types import MappingProxyType
from typing import TYPE_CHECKING, NamedTuple, cast

from . import landlock
from .errors import SetupError

if TYPE_CHECKING:
    from pathlib import Path

    from ..policies import Policy

HOME = "/home/agent"
ORDER_BYTES = 160_000  # the longest order for a sandbox; under net.core.wmem_default, socket(7)
# Directories that every sandbox has to itself, empty at its start.
PRIVATE = ("/tmp", "/var/tmp", "/dev/shm", HOME)
# The first id that systemd documents as belonging to nobody (UIDS-GIDS.md): what a payload is on
# the host when the caller is root.
UNUSED_ID = 0x70000000
INSIDE_ID = 1000  # of the commands, user and group
# Enough for loaders, name services, certificates and tools; /etc itself holds secrets.
ETC = [
    "alternatives",
    "ca-certificates",
    "ca-certificates.conf",
    "bash.bashrc",
    "debian_version",
    "default/locale",
    "fonts",
    "gai.conf",
    "gitconfig",
    "group",
    "host.conf",
    "hosts",
    "inputrc",
    "java-17-openjdk",
    "java-21-openjdk",
    "ld.so.cache",
    "ld.so.conf",
    "ld.so.conf.d",
    "locale.alias",
    "locale.conf",
    "localtime",
    "magic",
    "mailcap",
    "mime.types",
    "nanorc",
    "networks",
    "nsswitch.conf",
    "os-release",
    "passwd",
    "perl",
    "pki",
    "profile",
    "profile.d",
    "protocols",
    "python3",
    "python3.11",
    "python3.12",
    "python3.13",
    "redhat-release",
    "rpc",
    "services",
    "shells",
    "ssl/cert.pem",
    "ssl/certs",
    "ssl/openssl.cnf",
    "terminfo",
    "timezone",
    "vim",
    "xattr.conf",
]
_PARENTS = ("/", "/etc", *(f"/etc/{d}" for d in {os.path.dirname(name) for name in ETC} if d))
_present: dict[tuple[int, ...], tuple[str, ...]] = {}  # by `system_paths`, for what it looked at
SYSTEM = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32", "/opt")
# Where distributions keep the bundle of the authorities that they trust; the first wins, as in Go's
# crypto/x509/root_linux.go.
BUNDLES = (
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/pki/tls/cacert.pem",
    "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
    "/etc/ssl/cert.pem",
)
# Of a sandbox with an authority of its own: the host's bundle with it, and it alone.
TRUSTED, AUTHORITY = "/run/purple/ca-bundle.crt", "/run/purple/ca.crt"
# Variables by which programs are told of a bundle that takes the place of theirs.
TRUST_VARIABLES = (
    "SSL_CERT_FILE",
    "REQUESTS_CA_BUNDLE",
    "CURL_CA_BUNDLE",
    "GIT_SSL_CAINFO",
    "PIP_CERT",
    "AWS_CA_BUNDLE",
    "CARGO_HTTP_CAINFO",
    "DENO_CERT",
    "NIX_SSL_CERT_FILE",
    "CLOUDSDK_CORE_CUSTOM_CA_CERTS_FILE",
)
# What a sandbox with network resolves names by, in place of the host's.
NETWORK_FILES = {
    "/etc/resolv.conf": "nameserver 127.0.0.1\noptions timeout:2 attempts:2\n",
    "/etc/hosts": "127.0.0.1 localhost purple\n::1 localhost ip6-localhost ip6-loopback\n",
}
DEVICES = ("null", "zero", "full", "random", "urandom")


class Common(NamedTuple):
    """What of a plan is the same for most: it is built before there is one (ground.py). As in `Plan`."""

    system: tuple[str, ...]
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
            namespaces=self.namespaces, read=(), write=(), workspace=None, workspace_writable=False,
            tmp_bytes=1 << 20, seccomp="", environment={}, memory_bytes=None, cpu_cores=None,
            processes=None, open_files=None, disk_bytes=None, io_bytes_per_second=None,
            landlock_abi=landlock.abi_version(),
        )  # fmt: skip


class Plan(NamedTuple):
    """Everything that is built before a command is known. Paths are absolute host paths.

    No dataclass: that module alone takes the keeper longer to import than all else here.

    Attributes:
        tmp_bytes: What a sandbox's private file systems hold together.
        disk_bytes: Size of the largest file that it may make.
        landlock_abi: The rights that it is held to by Landlock; 0 holds nothing by it.
        authority: A certificate, PEM, that programs inside trust beside the host's; "" adds none.
        network: Whether the gateway is to hold the way out of each sandbox; else there is none.
        files: Small files of the view, by absolute path, that take the place of the host's.
        devices: Nodes beyond /dev/null and its like.
        id_maps: How several ids are mapped (subordinate.py); empty: there is one.
        namespaces: Whether sandboxes have any; else Landlock, seccomp and rlimits are all (warden.py).
    """

    system: tuple[str, ...]
    read: tuple[str, ...]
    write: tuple[str, ...]
    workspace: str | None
    workspace_writable: bool
    tmp_bytes: int
    seccomp: str
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
    files: Mapping[str, str] = MappingProxyType({})
    devices: tuple[str, ...] = ()
    id_maps: tuple[str, ...] = ()
    namespaces: bool = True

    def to_json(self) -> bytes:
        """For the wire to the keeper."""
        return json.dumps({**self._asdict(), "files": dict(self.files)}).encode()

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
        return Common(self.system, self.devices, self.id_maps, self.namespaces)

    @property
    def names_threads(self) -> bool:
        """Whether a driver's library has to write below /proc.

        NVIDIA's, since version 570, names threads that it has made: pthread_setname_np(3) writes to
        /proc/self/task/TID/comm, and if it may not, cuInit fails (304, "OS call failed").
        """
        return "/dev/nvidiactl" in self.devices or "/dev/dxg" in self.devices

    @property
    def bpf(self) -> bytes:
        """The seccomp program."""
        return binascii.a2b_base64(self.seccomp)


def system_paths(more: Iterable[str] = ()) -> tuple[str, ...]:
    """What every sandbox sees of the host, as far as this host has it."""
    looked = _look()
    found = _present.get(looked)
    # A change in the same tick of the kernel's, some milliseconds, as another leaves no trace.
    if found is None or time.time_ns() - max(looked[1::2]) < 1_000_000_000:
        paths = (*SYSTEM, *(f"/etc/{name}" for name in ETC))
        found = tuple(path for path in paths if os.path.lexists(path))
        _present.clear()
        _present[looked] = found
    return (*found, *filter(os.path.lexists, more))


def _look() -> tuple[int, ...]:
    """What differs when one of `SYSTEM` or `ETC` has come or gone: inodes and times of change."""
    found: list[int] = []
    for directory in _PARENTS:
        with contextlib.suppress(OSError):
            status = os.stat(directory)
            found += [status.st_ino, status.st_ctime_ns]
    return tuple(found)


def compile_plan(
    policy: Policy,
    workspace: Path | None,
    *,
    authority: str = "",
    variables: Mapping[str, str] | None = None,
    hosts: str = "",
) -> Plan:
    """Resolve `policy` on this host.

    Args:
        policy: What is allowed.
        workspace: Directory that the sandbox sees at its own path; None gives it none.
        authority: Certificate, PEM, that programs inside trust, too; "" for none.
        variables: What the way out adds to the environment; wins over all others.
        hosts: What it adds to /etc/hosts.

    Raises:
        SetupError: the workspace, a granted path or a GPU does not exist, the system-call list does
            not compile, or there are no namespaces and the policy does not accept that; the text
            names the key.
    """
    from . import fallback, subordinate
    from .devices import grant_gpus
    from .seccomp import compile_filter

    if sentences := policy.unsupported():
        raise SetupError(
            "the policy asks for what this version cannot enforce: " + "; ".join(sentences)
        )
    mode = policy.filesystem.workspace
    if mode == "none":
        workspace = None
    if workspace is not None:
        workspace = workspace.absolute()
        if not workspace.is_dir():
            raise SetupError(f"workspace {workspace} is not a directory; create it or name another")
        workspace = workspace.resolve()
        if str(workspace) in (
            "/",
            *SYSTEM,
            "/etc",
            "/proc",
            "/dev",
            "/sys",
            "/tmp",
            "/home",
            "/root",
        ):
            raise SetupError(f"workspace {workspace} is too wide; name the project's own directory")
    namespaces = not policy.dangerously_without_namespaces or not fallback.namespaces_errno()
    if not namespaces:
        fallback.check_accepted(policy)
    maps = subordinate.id_maps() if policy.user == "root" and namespaces else ()
    write = _granted("write", policy.filesystem.write, workspace)
    written = write if workspace is None or mode != "write" else (str(workspace), *write)
    try:
        program = compile_filter(
            policy, apart=namespaces, refused_mode=_refused_mode(maps, written)
        )
    except ImportError as error:
        raise SetupError("libseccomp is missing; install it: apt install libseccomp2") from error
    except (ValueError, OSError) as error:
        raise SetupError(str(error)) from error
    try:
        devices, facts = grant_gpus(policy.devices.gpu)
    except ValueError as error:
        raise SetupError(str(error)) from error
    resources = policy.resources
    network = not policy.network.isolated
    files = {**NETWORK_FILES} if network else {}
    if network:
        files["/etc/hosts"] += hosts
    interpreters = _interpreters()
    return Plan(
        system=tuple(path for path in system_paths(facts) if path not in files),
        read=(*interpreters, *_granted("read", policy.filesystem.read, workspace)),
        write=write,
        workspace=None if workspace is None else str(workspace),
        workspace_writable=mode == "write",
        tmp_bytes=min(
            policy.filesystem.tmp_bytes,
            sys.maxsize if resources.disk_bytes is None else resources.disk_bytes,
        ),
        seccomp=binascii.b2a_base64(program, newline=False).decode(),
        environment={
            **_environment(policy),
            **(dict.fromkeys(("USER", "LOGNAME"), "root") if maps else {}),
            **(dict.fromkeys(TRUST_VARIABLES, TRUSTED) if authority else {}),
            **({"NODE_EXTRA_CA_CERTS": AUTHORITY} if authority else {}),
            **(variables or {}),
        },
        authority=authority,
        network=network,
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
    )


@cache  # each call of a command asks
def _directories(*trees: tuple[str, ...] | str) -> tuple[str, ...]:
    """Paths, each with a slash at its end."""
    paths = itertools.chain.from_iterable(
        [tree] if isinstance(tree, str) else tree for tree in trees
    )
    return tuple(f"{path}/" for path in paths if path)


def _interpreters() -> tuple[str, ...]:
    """Roots of the Python that the caller uses, where it is not system software already.

    Read-only also where they lie in the workspace: a change there would run outside, in the caller.
    """
    roots = {sys.base_prefix, sys.prefix, os.environ.get("VIRTUAL_ENV", "")}
    return tuple(
        sorted(r for r in roots if r and os.path.isdir(r) and not r.startswith(("/usr", "/opt")))
    )


def _refused_mode(maps: Sequence[str], written: Iterable[str]) -> int:
    """Of setuid and setgid, what commands may not set.

    With several ids nothing of it: to unpack what has such files is what they are for, and CAP_FSETID
    would keep the bit on a file that open(2) has made. Where a tree that is written to has setgid
    directories, tools set that bit again whenever they set the others.
    """
    if maps:
        return 0
    for tree in written:
        with contextlib.suppress(OSError):
            if os.stat(tree).st_mode & stat.S_ISGID:
                return stat.S_ISUID
    return stat.S_ISUID | stat.S_ISGID


def _granted(key: str, paths: tuple[str, ...], workspace: Path | None) -> tuple[str, ...]:
    from pathlib import Path

    granted: list[str] = []
    for path in paths:
        full = Path(path).expanduser()
        if not full.is_absolute():
            full = (workspace or Path.cwd()) / full
        if not full.exists():
            raise SetupError(
                f"filesystem.{key}: {path} does not exist; create it or remove the grant"
            )
        granted.append(str(full.resolve()))
    return tuple(granted)


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
