"""The target: what a URL, a key and a way to send it become, and what is refused."""

from __future__ import annotations

import base64
import socket
from typing import TYPE_CHECKING

import pytest
import trustme

from gateway.config import Config, Target
from gateway.errors import ConfigError

if TYPE_CHECKING:
    from pathlib import Path

URL = "https://api.example.com/v1"


def config(**changes: object) -> Config:
    return Config(**{"target_api_url": URL, **changes})  # type: ignore[arg-type]


def target(**changes: object) -> Target:
    return config(**changes).settings.target


def refusal(**changes: object) -> str:
    with pytest.raises(ConfigError) as caught:
        config(**changes)
    return str(caught.value)


@pytest.mark.parametrize(
    ("url", "tls", "host", "port", "base_path", "authority"),
    [
        ("https://api.example.com/v1", True, "api.example.com", 443, b"/v1", b"api.example.com"),
        ("https://api.example.com", True, "api.example.com", 443, b"", b"api.example.com"),
        ("http://localhost:8080", False, "localhost", 8080, b"", b"localhost:8080"),
        ("https://h:80", True, "h", 80, b"", b"h:80"),
        ("http://[::1]:8080/x", False, "::1", 8080, b"/x", b"[::1]:8080"),
        ("http://192.0.2.7:9/a/b%20c", False, "192.0.2.7", 9, b"/a/b%20c", b"192.0.2.7:9"),
        ("https://my_host.internal/a@b:c", True, "my_host.internal", 443, b"/a@b:c", b"my_host.internal"),
        ("https://h.example/v1.0/..a/...", True, "h.example", 443, b"/v1.0/..a/...", b"h.example"),
    ],
)
def test_target_url(url: str, *, tls: bool, host: str, port: int, base_path: bytes, authority: bytes) -> None:
    found = target(target_api_url=url)
    assert found == Target(url=url, tls=tls, host=host, port=port, base_path=base_path, authority=authority)
    assert found.prefix == b"/api"


@pytest.mark.parametrize(
    ("url", "plain"),
    [
        ("https://api.example.com/v1/", "https://api.example.com/v1"),
        ("https://api.example.com/", "https://api.example.com"),
        ("http://api.example.com:80/a", "http://api.example.com/a"),
        ("HTTPS://API.Example.COM/V1", "https://api.example.com/V1"),
        ("http://[2001:DB8::1]", "http://[2001:db8::1]"),
        ("https://bücher.example/", "https://xn--bcher-kva.example"),
    ],
)
def test_spellings_of_one_target(url: str, plain: str) -> None:
    assert target(target_api_url=url) == target(target_api_url=plain)
    assert target(target_api_url=url).url == plain


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("", "does not start with http"),
        ("api.example.com/v1", "does not start with http"),
        ("ftp://api.example.com", "does not start with http"),
        ("http:/api.example.com", "does not start with http"),
        (" https://api.example.com", "does not start with http"),
        ("https://", "no host"),
        ("https:///v1", "no host"),
        ("https://:8080", "no host"),
        ("https://user:hunter2@api.example.com", "credentials"),
        ("https://hunter2@api.example.com", "credentials"),
        ("https://api.example.com/v1?key=hunter2", "no query"),
        ("https://api.example.com/v1?", "no query"),
        ("https://api.example.com/v1#hunter2", "no fragment"),
        ("https://api.example.com:", "port"),
        ("https://api.example.com:0", "port"),
        ("https://api.example.com:65536", "port"),
        ("https://api.example.com:+80", "port"),
        ("https://api.example.com:http", "port"),
        ("https://api.example.com/a//b", "canonical"),
        ("https://api.example.com//", "canonical"),
        ("https://api.example.com/a/../b", "canonical"),
        ("https://api.example.com/a/./b", "canonical"),
        ("https://api.example.com/a/..", "canonical"),
        ("https://api.example.com/a/%2E%2e", "canonical"),
        ("https://api.example.com/a/.%2e/b", "canonical"),
        ("https://api.example.com/a b", "canonical"),
        ("https://api.example.com/é", "canonical"),
        ("https://api.example.com/%zz", "canonical"),
        ("https://api.example.com/a\\b", "canonical"),
        ("https://api.example.com/a\n", "canonical"),
        ("https://api example.com", "not a host name"),
        ("https://-api.example.com", "not a host name"),
        ("https://api..example.com", "not a host name"),
        ("https://api.example.com.", "not a host name"),
        ("https://127.1", "not an IPv4 address"),
        ("https://2130706433", "not an IPv4 address"),
        ("https://[::1", "no host"),
        ("https://[1.2.3.4]", "no IPv6"),
        ("https://[fe80::1%25eth0]", "no IPv6"),
        ("https://" + "a" * 64 + ".example", "not a host name"),
        ("https://é" + "a" * 64 + ".example", "IDNA"),
    ],
)
def test_target_urls_that_are_refused(url: str, reason: str) -> None:
    message = refusal(target_api_url=url)
    assert reason in message
    assert "hunter2" not in message


@pytest.mark.parametrize(
    ("auth", "key", "line", "field", "query"),
    [
        ("bearer", "sk-1", b"Authorization: Bearer sk-1", b"authorization", None),
        ("header:X-Api-Key", "sk-1", b"X-Api-Key: sk-1", b"x-api-key", None),
        ("header:Authorization", "Token sk-1", b"Authorization: Token sk-1", b"authorization", None),
        ("query:key", "a b&c=d", None, None, b"key=a%20b%26c%3Dd"),
        ("basic", "sk-1", b"Authorization: Basic " + base64.b64encode(b"sk-1:"), b"authorization", None),
        ("basic", "user:pass", b"Authorization: Basic " + base64.b64encode(b"user:pass"), b"authorization", None),
    ],
)
def test_how_the_key_goes_upstream(
    auth: str, key: str, line: bytes | None, field: bytes | None, query: bytes | None
) -> None:
    found = target(target_api_auth=auth, target_api_key=key)
    assert (found.key_line, found.key_field, found.key_query) == (line, field, query)


def test_without_a_key_nothing_is_added() -> None:
    found = target(target_api_auth="header:X-Api-Key")
    assert (found.key_line, found.key_field, found.key_query) == (None, None, None)


@pytest.mark.parametrize(
    "key", ["", " hunter2", "hunter2 ", "hunter2\r\nX: y", "hunter2\n", "hun\x00ter2", "hünter2", "hunter2\x7f"]
)
@pytest.mark.parametrize("auth", ["bearer", "basic", "header:X-Key", "query:key"])
def test_keys_that_could_break_a_message_are_refused(auth: str, key: str) -> None:
    message = refusal(target_api_auth=auth, target_api_key=key)
    assert message.startswith("target_api_key: the value (masked)")
    assert "hunter" not in message


def test_a_bearer_key_is_given_without_its_scheme() -> None:
    assert "without 'Bearer'" in refusal(target_api_key="Bearer hunter2")


@pytest.mark.parametrize("auth", ["", "Bearer ", "bearer:x", "basic:x", "token", "query", "query:", "query:api key"])
def test_auth_styles_that_are_refused(auth: str) -> None:
    assert refusal(target_api_auth=auth, target_api_key="sk-1").startswith("target_api_auth: ")


@pytest.mark.parametrize(
    "name",
    [
        *[
            "Host",
            "content-length",
            "Transfer-Encoding",
            "CONNECTION",
            "Upgrade",
            "TE",
            "Proxy-Authorization",
            "a:b",
            "é",
        ],
        "",
        "a b",
    ],
)
def test_fields_that_carry_no_key(name: str) -> None:
    assert refusal(target_api_auth=f"header:{name}", target_api_key="sk-1").startswith("target_api_auth: ")


@pytest.mark.parametrize(
    ("listen", "url"),
    [
        ("127.0.0.1:3000", "http://127.0.0.1:3000"),
        ("127.0.0.1:3000", "http://localhost:3000/v1"),
        ("0.0.0.0:3000", "http://127.0.0.1:3000"),
        ("[::]:3000", "http://[::1]:3000"),
        ("[::1]:3000,localhost:80", "http://localhost"),
        ("gateway.example:443", "https://gateway.example/api"),
        ("127.0.0.1:3000", "http://LOCALHOST:3000"),
        ("127.0.0.1:3000", "http://api.localhost:3000"),
        ("127.0.0.1:3000", "http://127.0.0.1:03000"),
        ("127.0.0.1:3000", "http://0.0.0.0:3000"),
        ("127.0.0.1:3000", "http://[::ffff:127.0.0.1]:3000"),
        ("127.0.0.1:3000", "http://[::ffff:7f00:1]:3000"),
        ("localhost:3000", "http://[::1]:3000"),
        ("[::1]:3000", "http://[0:0::0:1]:3000"),
        ("[::1]:3000", "http://[::]:3000"),
        ("0.0.0.0:3000", "http://127.9.9.9:3000"),
        ("0.0.0.0:3000", f"http://{socket.gethostname()}:3000"),
        ("[::]:3000", "http://localhost:3000"),
        ("[::]:3000", "http://127.0.0.1:3000"),
        ("unix:/run/gateway.sock,127.0.0.1:3000", "http://127.0.0.1:3000"),
    ],
)
def test_a_target_that_is_the_gateway_itself_is_refused(listen: str, url: str) -> None:
    assert "this gateway itself" in refusal(gateway_listen=listen, target_api_url=url)
    with pytest.raises(ConfigError, match=r"^targets\.maps\.url: .* is this gateway itself") as refused:
        Config(target_api_url="https://api.example.com", gateway_listen=listen, targets={"maps": {"url": url}})
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("listen", "url"),
    [
        ("127.0.0.1:3000", "http://127.0.0.1:3001"),
        ("127.0.0.1:3000", "http://[::1]:3000"),  # another program may listen there
        ("127.0.0.1:3000", "http://127.0.0.2:3000"),
        ("0.0.0.0:3000", "http://[::1]:3000"),
        ("0.0.0.0:3000", "http://192.0.2.7:3000"),
        ("[::]:3000", "http://[2001:db8::7]:3000"),
        ("gateway.example:3000", "http://api.gateway.example:3000"),
        ("unix:/run/gateway.sock", "http://localhost:3000"),  # nor can a URL name a unix socket
    ],
)
def test_what_only_looks_like_the_gateway_is_taken(listen: str, url: str) -> None:
    assert Config(target_api_url=url, gateway_listen=listen).settings.target.url.startswith("http://")


def test_a_target_next_door_is_fine() -> None:
    assert target(gateway_listen="127.0.0.1:3000", target_api_url="http://127.0.0.1:3001").port == 3001
    assert target(gateway_listen="127.0.0.1:0", target_api_url="http://127.0.0.1:3000").port == 3000


def test_ca_file(tmp_path: Path) -> None:
    roots = tmp_path / "roots.pem"
    trustme.CA().cert_pem.write_to_path(str(roots))
    assert target(target_ca_file=str(roots)).ca_file == str(roots)
    assert "is not a file" in refusal(target_ca_file=str(tmp_path))
    assert "No such file" in refusal(target_ca_file=str(tmp_path / "none.pem"))
    assert "File name too long" in refusal(target_ca_file="/" + "a" * 5000)


@pytest.mark.parametrize("content", [b"", b"no certificate", b"\x30\x82\x03\xff\x00"])
def test_a_ca_file_without_a_certificate_is_refused(tmp_path: Path, content: bytes) -> None:
    roots = tmp_path / "roots.pem"
    roots.write_bytes(content)
    assert "target_ca_file" in refusal(target_ca_file=str(roots)).lower()
