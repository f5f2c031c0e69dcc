"""What every sandbox sees of the host's software, and what takes the place of some of it.

Plain values, and a look at what of them is there: for the gateway, keeper and zygote.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterable

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
HOSTS = "/etc/hosts"
NETWORK_FILES = {
    "/etc/resolv.conf": "nameserver 127.0.0.1\noptions timeout:2 attempts:2\n",
    HOSTS: "127.0.0.1 localhost purple\n::1 localhost ip6-localhost ip6-loopback\n",
}
DEVICES = ("null", "zero", "full", "random", "urandom")


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
