import datetime
import ssl
import stat

import pytest
from cryptography import x509

from koinon.core.errors import Unavailable
from koinon.wire import certificates
from koinon.wire.certificates import certificate_digest, client_context, fingerprint, make_authority, server_context


def content(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_what_is_good_is_kept_and_what_is_not_is_issued_again(tmp_path):
    made = make_authority(tmp_path)
    first = content(tmp_path)
    assert make_authority(tmp_path, ("localhost",)) == made
    assert content(tmp_path) == first

    make_authority(tmp_path, ("koinon.example.org",))
    second = content(tmp_path)
    assert second["authority.pem"] == first["authority.pem"]
    assert second["server.pem"] != first["server.pem"]

    for wrong in (b"damaged", first["server-key.pem"], first["authority.pem"]):
        made.key.write_bytes(wrong)
        make_authority(tmp_path, ("koinon.example.org",))
        assert content(tmp_path)["authority.pem"] == first["authority.pem"]
        server_context(made.certificate, made.key)


def test_a_certificate_about_to_expire_is_renewed(tmp_path, monkeypatch):
    monkeypatch.setattr(certificates, "_SERVER_DAYS", 29)
    made = make_authority(tmp_path)
    before = content(tmp_path)
    monkeypatch.undo()
    make_authority(tmp_path)
    assert content(tmp_path)["authority.pem"] == before["authority.pem"]
    left = x509.load_pem_x509_certificate(made.certificate.read_bytes()).not_valid_after_utc
    assert left > datetime.datetime.now(datetime.UTC) + datetime.timedelta(days=300)


def test_a_certificate_of_another_authority_is_not_kept(tmp_path):
    one, other = tmp_path / "one", tmp_path / "other"
    make_authority(one)
    made = make_authority(other)
    before = made.certificate.read_bytes()
    for name in ("authority.pem", "authority-key.pem"):
        (other / name).write_bytes((one / name).read_bytes())
    make_authority(other)
    assert made.certificate.read_bytes() != before


def test_private_keys_are_the_owners_alone(tmp_path):
    make_authority(tmp_path)
    for path in tmp_path.glob("*-key.pem"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert len(list(tmp_path.glob("*-key.pem"))) == 2


def test_verification_is_on_and_tls_is_1_3(authority):
    for context in (client_context(), client_context(authority.authority)):
        assert context.verify_mode is ssl.CERT_REQUIRED
        assert context.check_hostname
        assert context.minimum_version is ssl.TLSVersion.TLSv1_3
    assert server_context(authority.certificate, authority.key).minimum_version is ssl.TLSVersion.TLSv1_3


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "::1"])
def test_the_chain_verifies_strictly_for_its_hosts_alone(authority, host):
    client = client_context(authority.authority)
    client.verify_flags |= ssl.VERIFY_X509_STRICT
    server = server_context(authority.certificate, authority.key)
    assert fingerprint(shake(client, server, host)) == certificate_digest(authority.certificate)
    with pytest.raises(ssl.SSLCertVerificationError):
        shake(client, server, "example.org")


def test_files_that_cannot_be_used_are_named(tmp_path, authority):
    (tmp_path / "empty.pem").touch()
    for path in (tmp_path / "missing.pem", tmp_path / "empty.pem"):
        with pytest.raises(Unavailable, match=path.name):
            server_context(path, authority.key)
        with pytest.raises(Unavailable, match=path.name):
            client_context(path)
        with pytest.raises(Unavailable, match=path.name):
            certificate_digest(path)
    with pytest.raises(Unavailable, match="no certificate and its key"):
        server_context(authority.authority, authority.key)
    with pytest.raises(Unavailable, match="cannot be kept"):
        make_authority(tmp_path / "empty.pem")


def shake(client, server, host):
    """The certificate that the client sees; both sides in memory."""
    up, down = ssl.MemoryBIO(), ssl.MemoryBIO()
    here = client.wrap_bio(down, up, server_hostname=host)
    there = server.wrap_bio(up, down, server_side=True)
    for _ in range(4):
        for side in (here, there):
            try:
                side.do_handshake()
            except ssl.SSLWantReadError:
                continue
    return here.getpeercert(binary_form=True)
