"""Settings that name PEM files: a pair that does not belong together is refused before anything starts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import trustme

from gateway.config import Config
from gateway.config.describing import describe
from gateway.errors import ConfigError
from tests.kit.tls import Pem

if TYPE_CHECKING:
    from pathlib import Path

PAIRS = [
    ("gateway_tls", "gateway_tls_cert", "gateway_tls_key"),
    ("target_client", "target_client_cert", "target_client_key"),
]


@pytest.fixture
def pem(tmp_path: Path) -> Pem:
    made = Pem(tmp_path / "cert.pem", tmp_path / "key.pem")
    made.write(trustme.CA(), "gateway.example")
    return made


def config(**changes: Any) -> Config:
    return Config(**{"target_api_url": "https://api.example.com/v1", **changes})


def refusal(**changes: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        config(**changes)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(("name", "cert", "key"), PAIRS)
def test_a_pair_may_be_in_two_files_or_in_one(pem: Pem, name: str, cert: str, key: str) -> None:
    def pair(**changes: str) -> Any:
        settings = config(**changes).settings
        return settings.tls if name == "gateway_tls" else settings.target.client

    assert pair() is None
    two = pair(**{cert: str(pem.cert), key: str(pem.key)})
    assert (two.files, two.key_file) == ((str(pem.cert), str(pem.key)), str(pem.key))
    pem.cert.write_bytes(pem.key.read_bytes() + pem.cert.read_bytes())
    one = pair(**{cert: str(pem.cert)})
    assert (one.files, one.key_file) == ((str(pem.cert),), str(pem.cert))


@pytest.mark.parametrize(("_", "cert", "key"), PAIRS)
def test_what_is_no_pair_is_refused(pem: Pem, _: str, cert: str, key: str) -> None:
    both = {cert: str(pem.cert), key: str(pem.key)}
    alone = refusal(**{key: str(pem.key)})
    assert alone.startswith(f"{key}: is set, but {cert.upper()} is not")
    assert f"e.g. with {cert.upper()}=/etc/" in alone
    assert refusal(**{cert: str(pem.cert)}).startswith(f"{cert}: in ")  # there is no key in it
    assert "none' cannot be read: No such file" in refusal(**{**both, cert: str(pem.cert.with_name("none"))})
    assert "is not a file" in refusal(**{**both, key: str(pem.key.parent)})
    pem.write(trustme.CA(), "gateway.example", key_of=trustme.CA())
    assert "do not belong together" in refusal(**both)
    pem.cert.write_bytes(b"-----BEGIN CERTIFICATE-----\nbm8gY2VydGlmaWNhdGU=\n-----END CERTIFICATE-----\n")
    assert refusal(**both).startswith(f"{key}: in ")


def test_a_client_certificate_for_a_plain_upstream_is_refused(pem: Pem) -> None:
    both = {"target_client_cert": str(pem.cert), "target_client_key": str(pem.key)}
    assert "http://" in refusal(target_api_url="http://api.example.com", **both)


def test_what_is_shown_warns_of_a_key_that_is_open(pem: Pem) -> None:
    both = {"gateway_tls_cert": str(pem.cert), "gateway_tls_key": str(pem.key)}
    for mode, warns in ((0o600, False), (0o640, False), (0o660, True), (0o644, True)):
        pem.key.chmod(mode)
        assert ("chmod 600" in dict(describe(config(**both)))["GATEWAY_TLS_KEY"]) is warns
    assert dict(describe(config()))["GATEWAY_TLS_CERT"].startswith("not set")
