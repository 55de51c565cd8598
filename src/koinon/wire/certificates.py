"""TLS 1.3, always verified: contexts, and a private authority for those who have no other.

A context without verification cannot be made here.
"""

import datetime
import hashlib
import ipaddress
import os
import ssl
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from koinon.core.errors import Unavailable
from koinon.wire.identity import create_private

LOOPBACK = ("localhost", "127.0.0.1", "::1")
"""The names of the machine for itself."""

_AUTHORITY_DAYS = 3650
_SERVER_DAYS = 397  # the longest that browsers and platform verifiers accept
_RENEWAL_DAYS = 30

_Pair: TypeAlias = tuple[x509.Certificate, ec.EllipticCurvePrivateKey]


@dataclass(frozen=True)
class Authority:
    """Where a private authority and the server certificate signed by it lie.

    Attributes:
        authority: The authority's certificate, which nodes are given.
        certificate: The server's certificate.
        key: The server's private key.
    """

    authority: Path
    certificate: Path
    key: Path


def server_context(certificate: Path, key: Path) -> ssl.SSLContext:
    """A TLS 1.3 context for a server.

    Raises:
        Unavailable: if the files cannot be used.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    try:
        context.load_cert_chain(certificate, key)
    except OSError as error:
        raise Unavailable(f"{certificate} and {key} are no certificate and its key: {_reason(error)}") from None
    return context


def client_context(authority: Path | None = None) -> ssl.SSLContext:
    """A TLS 1.3 context for a node, which verifies the server's certificate and its host name.

    Args:
        authority: The only authorities to trust, in PEM; None for the system's.

    Raises:
        Unavailable: if the file cannot be used.
    """
    try:
        context = ssl.create_default_context(cafile=authority)
    except OSError as error:
        raise Unavailable(f"{authority} holds no authority's certificate in PEM: {_reason(error)}") from None
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    return context


def fingerprint(der: bytes) -> str:
    """SHA-256 of a certificate, in hex."""
    return hashlib.sha256(der).hexdigest()


def certificate_digest(certificate: Path) -> str:
    """The fingerprint of the first certificate in a PEM file: the one that a server shows.

    Raises:
        Unavailable: if there is none.
    """
    try:
        loaded = x509.load_pem_x509_certificate(certificate.read_bytes())
    except (OSError, ValueError) as error:
        raise Unavailable(f"{certificate} holds no certificate in PEM: {_reason(error)}") from None
    return fingerprint(loaded.public_bytes(serialization.Encoding.DER))


def make_authority(folder: Path, hosts: Sequence[str] = LOOPBACK) -> Authority:
    """A private authority in `folder` and a server certificate for `hosts`; what is there and still good is kept.

    Raises:
        Unavailable: if the folder cannot be written.
    """
    made = Authority(folder / "authority.pem", folder / "server.pem", folder / "server-key.pem")
    authority_key = folder / "authority-key.pem"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        authority = _load(made.authority, authority_key)
        if authority is None or _expires(authority[0]):
            authority = _issue_authority()
            _store(authority, made.authority, authority_key)
        server = _load(made.certificate, made.key)
        if server is None or not _covers(server[0], authority[0], hosts):
            _store(_issue_server(authority, hosts), made.certificate, made.key)
    except OSError as error:
        raise Unavailable(f"certificates cannot be kept in {folder}: {_reason(error)}") from None
    return made


def _issue_authority() -> _Pair:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Koinon private authority")])
    builder = _builder(name, name, key.public_key(), key.public_key(), _AUTHORITY_DAYS)
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    builder = builder.add_extension(_usage(certifies=True), critical=True)
    return builder.sign(key, hashes.SHA256()), key


def _issue_server(authority: _Pair, hosts: Sequence[str]) -> _Pair:
    certificate, authority_key = authority
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Koinon server")])
    builder = _builder(name, certificate.subject, key.public_key(), authority_key.public_key(), _SERVER_DAYS)
    builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
    builder = builder.add_extension(_usage(certifies=False), critical=True)
    builder = builder.add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
    builder = builder.add_extension(x509.SubjectAlternativeName([_name(host) for host in hosts]), critical=False)
    return builder.sign(authority_key, hashes.SHA256()), key


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    key: ec.EllipticCurvePublicKey,
    issuer_key: ec.EllipticCurvePublicKey,
    days: int,
) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))  # clocks of peers may be behind
        .not_valid_after(now + datetime.timedelta(days=days))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key), critical=False)
    )


def _usage(certifies: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not certifies,
        key_cert_sign=certifies,
        crl_sign=certifies,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _expires(certificate: x509.Certificate) -> bool:
    soon = datetime.datetime.now(datetime.UTC) + datetime.timedelta(days=_RENEWAL_DAYS)
    return certificate.not_valid_after_utc < soon


def _covers(certificate: x509.Certificate, authority: x509.Certificate, hosts: Sequence[str]) -> bool:
    try:
        certificate.verify_directly_issued_by(authority)
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (ValueError, TypeError, InvalidSignature, x509.ExtensionNotFound, x509.DuplicateExtension):
        return False
    return not _expires(certificate) and all(_name(host) in names for host in hosts)


def _load(certificate: Path, key: Path) -> _Pair | None:
    try:
        loaded = x509.load_pem_x509_certificate(certificate.read_bytes())
        private = serialization.load_pem_private_key(key.read_bytes(), password=None)
    except (FileNotFoundError, ValueError, TypeError):
        return None
    if not isinstance(private, ec.EllipticCurvePrivateKey) or loaded.public_key() != private.public_key():
        return None
    return loaded, private


def _store(pair: _Pair, certificate: Path, key: Path) -> None:
    pem, pkcs8 = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    _replace(key, pair[1].private_bytes(pem, pkcs8, serialization.NoEncryption()))
    _replace(certificate, pair[0].public_bytes(pem))
    certificate.chmod(0o644)


def _replace(path: Path, data: bytes) -> None:
    new = path.with_name(f".{path.name}.{os.getpid()}")
    new.unlink(missing_ok=True)
    create_private(new, data)
    new.replace(path)


def _reason(error: OSError | ValueError) -> str:
    return (getattr(error, "strerror", None) or str(error)).splitlines()[0]
