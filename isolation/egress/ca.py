"""A certificate authority that lives as long as the gateway and is trusted by its sandboxes only.

Its key is made when the gateway starts, is held in memory and dies with it. Only the certificate,
which is public, enters a sandbox's view (`plan.Plan.authority`, `mounts.build_root`). Certificates
for names are minted when a program inside asks for the name. Sources: RFC 5280, RFC 6125.
"""

from __future__ import annotations

import datetime
import ipaddress
import os
import ssl
import threading
import time
from collections import OrderedDict
from collections.abc import Callable

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

_LEAF_SECONDS = 48 * 3600.0
_SKEW = datetime.timedelta(
    days=1
)  # a sandbox's clock is the host's; faketime(1) and its like are not
_AUTHORITY_LIFE = datetime.timedelta(days=3650)  # its key dies with the gateway, long before
_MAX_CONTEXTS = 512  # one is about 30 kB of OpenSSL's memory


class Authority:
    """Mints certificates. Safe to use from several threads.

    Attributes:
        certificate: The authority's own, PEM; public.
    """

    def __init__(self) -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        # One key serves all leaves: who holds one of them holds the gateway's memory, so all.
        self._leaf_key = ec.generate_private_key(ec.SECP256R1())
        self._leaf_key_pem = self._leaf_key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        now = datetime.datetime.now(datetime.UTC)
        self._name = x509.Name(
            [
                x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Purple"),
                # A program that has seen another gateway's must not take one for the other.
                x509.NameAttribute(NameOID.COMMON_NAME, f"Purple sandbox CA {os.urandom(6).hex()}"),
            ]
        )
        public = self._key.public_key()
        self._identifier = x509.SubjectKeyIdentifier.from_public_key(public)
        certificate = (
            x509.CertificateBuilder()
            .subject_name(self._name)
            .issuer_name(self._name)
            .public_key(public)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - _SKEW)
            .not_valid_after(now + _AUTHORITY_LIFE)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_usage(sign=False), critical=True)
            .add_extension(self._identifier, critical=False)
            .sign(self._key, hashes.SHA256())
        )
        self.certificate = certificate.public_bytes(serialization.Encoding.PEM).decode()
        self._contexts: OrderedDict[tuple[str, str], tuple[float, ssl.SSLContext]] = OrderedDict()
        self._lock = threading.Lock()

    def context(self, name: str, protocol: str) -> ssl.SSLContext:
        """A server's context for `name`, which refuses any other name in the SNI.

        Args:
            name: A host name (lower case, A-labels) or an IP address.
            protocol: The one ALPN protocol that it agrees to ("h2", "http/1.1").

        Kept for half a certificate's life, the `_MAX_CONTEXTS` last used.
        """
        with self._lock:
            found = self._contexts.get((name, protocol))
            if found is not None and time.monotonic() < found[0]:
                self._contexts.move_to_end((name, protocol))
                return found[1]
        context = self._make_context(name, protocol)
        with self._lock:
            self._contexts[name, protocol] = time.monotonic() + _LEAF_SECONDS / 2, context
            self._contexts.move_to_end((name, protocol))
            while len(self._contexts) > _MAX_CONTEXTS:
                self._contexts.popitem(last=False)
        return context

    def mint(self, name: str) -> bytes:
        """A certificate for `name`, PEM, by this authority and for its one leaf key."""
        now = datetime.datetime.now(datetime.UTC)
        try:
            alternative: x509.GeneralName = x509.IPAddress(ipaddress.ip_address(name))
        except ValueError:
            alternative = x509.DNSName(name)
        # X.520 bounds a common name at 64; nobody who checks names reads it (RFC 9525).
        subject = [x509.NameAttribute(NameOID.COMMON_NAME, name)] if len(name) <= 64 else []
        public = self._leaf_key.public_key()
        certificate = (
            x509.CertificateBuilder()
            .subject_name(x509.Name(subject))
            .issuer_name(self._name)
            .public_key(public)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - _SKEW)
            .not_valid_after(now + datetime.timedelta(seconds=_LEAF_SECONDS))
            # RFC 5280 4.2.1.6: critical where the subject is empty.
            .add_extension(x509.SubjectAlternativeName([alternative]), critical=not subject)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(sign=True), critical=True)
            .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(self._identifier),
                critical=False,
            )
            .sign(self._key, hashes.SHA256())
        )
        return certificate.public_bytes(serialization.Encoding.PEM)

    def _make_context(self, name: str, protocol: str) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.set_alpn_protocols([protocol])
        context.sni_callback = _only(name)
        # `ssl` reads files only, and a key belongs in none: memfd_create(2).
        fd = os.memfd_create("purple-leaf", os.MFD_CLOEXEC)
        try:
            with os.fdopen(os.dup(fd), "wb") as file:
                file.write(self._leaf_key_pem + self.mint(name))
            context.load_cert_chain(f"/proc/self/fd/{fd}")
        finally:
            os.close(fd)
        return context


def _only(name: str) -> Callable[[ssl.SSLObject, str | None, ssl.SSLContext], int | None]:
    """An SNI callback that refuses what is not `name`; no SNI at all is an address's (RFC 6066)."""

    def check(_: ssl.SSLObject, asked: str | None, __: ssl.SSLContext) -> int | None:
        if asked is not None and asked.lower().rstrip(".") != name:
            return ssl.ALERT_DESCRIPTION_UNRECOGNIZED_NAME
        return None

    return check


def _usage(*, sign: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=sign, key_cert_sign=not sign, crl_sign=not sign,
        content_commitment=False, key_encipherment=False, data_encipherment=False,
        key_agreement=False, encipher_only=False, decipher_only=False,
    )  # fmt: skip
