"""The API behind the gateway: where it is, and how its key goes there."""

from __future__ import annotations

import base64
import re
from dataclasses import dataclass, field, replace
from typing import NamedTuple
from urllib.parse import quote

from gateway.config.values import check_host, is_ipv6

_URL = re.compile(r"(?P<scheme>https?)://(?P<authority>[^/?#]*)(?P<path>[^?#]*)(?P<rest>.*)", re.IGNORECASE | re.DOTALL)
_AUTHORITY = re.compile(r"(?:\[(?P<v6>[^\[\]]*)\]|(?P<host>[^:\[\]]+))(?::(?P<port>[0-9]{1,5}))?")
_PATH = re.compile(r"(?:/(?:[A-Za-z0-9._~!$&'()*+,;=:@-]|%[0-9A-Fa-f]{2})+)*")
_DOT_SEGMENT = re.compile(r"/(?:\.|%2e){1,2}(?=/|\Z)", re.IGNORECASE)

FIELD_NAME = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")
"""A field name (RFC 9110 §5.6.2)."""

NOT_FOR_KEYS = frozenset(
    {
        "connection",
        "content-length",
        "expect",
        "host",
        "keep-alive",
        "proxy-authenticate",
        "proxy-authorization",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    }
)
"""Fields that frame or route a message: the gateway writes or removes them itself."""


class KeyPair(NamedTuple):
    """A certificate and its key, as paths of PEM files.

    Args:
        cert: The certificate's, with those that signed it behind it.
        key: The key's; None: it is in the same file.
    """

    cert: str
    key: str | None

    @property
    def key_file(self) -> str:
        """Where the key is."""
        return self.key or self.cert

    @property
    def files(self) -> tuple[str, ...]:
        """All that there are."""
        return (self.cert,) if self.key is None else (self.cert, self.key)


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """One upstream API.

    Args:
        prefix: The path prefix clients use; `base_path` takes its place.
        url: For people; it never holds a credential.
        tls: Whether the upstream speaks TLS; `host` is then also the name its certificate must have.
        host: A name in ASCII (IDNA applied), an IPv4 literal, or an IPv6 literal without brackets.
        port: 1 to 65535.
        base_path: `b"/v1"`: canonical, no trailing slash; `b""` for the root.
        authority: The value of the `Host` field, without the scheme's default port.
        key_line: The whole field line that carries the key, without its line end; None if no field does.
        key_query: The `name=key` pair to add to the query, percent-encoded; None if none is.
        key_field: The name in `key_line`, in lower case: a client's field of this name is not passed on.
        ca_file: Path of the trusted roots in PEM form; None for the system's.
        client: The certificate to show to an upstream that asks for one; None for none.
        added: Field lines that each request gets, without their line ends.
        removed: The names, in lower case, of fields of a client's that are not passed on; those in `added` among them.
    """

    prefix: bytes = b"/api"
    url: str
    tls: bool
    host: str
    port: int
    base_path: bytes
    authority: bytes
    key_line: bytes | None = field(default=None, repr=False)
    key_query: bytes | None = field(default=None, repr=False)
    key_field: bytes | None = None
    ca_file: str | None = None
    client: KeyPair | None = None
    added: tuple[bytes, ...] = field(default=(), repr=False)
    removed: frozenset[bytes] = frozenset()

    @property
    def authorities(self) -> frozenset[bytes]:
        """How a URL of it may name its host and port, less what is the default port of the URL's scheme."""
        written, port = self.authority, b":%d" % self.port
        return frozenset({written, written if written.endswith(port) else written + port})

    def shares_urls(self, other: Target) -> bool:
        """Whether there are URLs that are both targets' own, and lie no deeper under one than under the other."""
        return self.base_path == other.base_path and not self.authorities.isdisjoint(other.authorities)


class KeyStyle(NamedTuple):
    """Where the key stands in a request: `bearer`, `basic`, `header` or `query`, the last two with a name."""

    style: str
    name: str = ""


def parse_url(text: str) -> Target:
    """Take the base URL of an API apart; the target has no key yet (see `with_key`).

    Raises:
        ValueError: It is not an absolute http or https URL, or it has credentials, a query, a fragment, or a
            path that is not in its canonical form. The message does not repeat the URL: it may hold a secret.

    Source: RFC 3986 §3, with an authority and a path as RFC 9110 §4.2 has them.
    """
    match = _URL.fullmatch(text)
    if match is None:
        raise ValueError(f"the value ({len(text)} characters) does not start with http:// or https://")
    if "@" in match["authority"]:
        raise ValueError("a URL with credentials is refused; the key belongs in TARGET_API_KEY")
    if match["rest"]:
        raise ValueError("a base URL has no query and no fragment; a key for the query belongs in TARGET_API_KEY")
    path = match["path"].removesuffix("/")
    if not _PATH.fullmatch(path) or _DOT_SEGMENT.search(path):
        raise ValueError(
            "the URL's path is not canonical (no '//', no '.' or '..' segments, percent-encoded but for "
            "letters, digits and -._~!$&'()*+,;=:@)"
        )
    tls = match["scheme"].lower() == "https"
    host, port = _host_and_port(match["authority"], default_port=443 if tls else 80)
    authority = f"[{host}]" if ":" in host else host
    if port != (443 if tls else 80):
        authority += f":{port}"
    return Target(
        url=f"{'https' if tls else 'http'}://{authority}{path}",
        tls=tls,
        host=host,
        port=port,
        base_path=path.encode(),
        authority=authority.encode(),
    )


def _host_and_port(authority: str, *, default_port: int) -> tuple[str, int]:
    match = _AUTHORITY.fullmatch(authority)
    if match is None:
        raise ValueError("the URL has no host, or something other than a port number after it")
    port = default_port if match["port"] is None else int(match["port"])
    if not 1 <= port <= 65535:
        raise ValueError("the URL's port is not from 1 to 65535")
    if match["v6"] is not None:
        if not is_ipv6(match["v6"]):
            raise ValueError("the URL has no IPv6 address in its brackets")
        return match["v6"].lower(), port
    host = match["host"].lower()
    if not host.isascii():
        try:
            host = host.encode("idna").decode()
        except UnicodeError:
            raise ValueError("the URL's host is not a name that IDNA can encode") from None
    check_host(host)
    return host, port


def parse_key_style(text: str) -> KeyStyle:
    """Read `bearer`, `basic`, `header:NAME` or `query:NAME`.

    Raises:
        ValueError: It is none of these, or NAME cannot carry a key.
    """
    style, colon, name = text.partition(":")
    if style in {"bearer", "basic"} and not colon:
        return KeyStyle(style)
    if style == "header":
        if not FIELD_NAME.fullmatch(name):
            raise ValueError("header: needs a field's name behind it, and no value")  # which may be the key
        if name.lower() in NOT_FOR_KEYS:
            raise ValueError(f"the field {name} cannot carry a key")
        return KeyStyle(style, name)
    if style == "query":
        if not re.fullmatch("[!-<>-~]+", name):
            raise ValueError("query: needs the parameter's name behind it, and no value")
        return KeyStyle(style, name)
    raise ValueError("the value is not a way to send a key")


def with_key(target: Target, key: str, style: KeyStyle) -> Target:
    """Return `target` with what carries `key` upstream.

    Raises:
        ValueError: The key has bytes that cannot stand where it goes. The message does not repeat it.

    Source: RFC 6750 §2.1 for bearer, RFC 7617 §2 for basic.
    """
    if not re.fullmatch(r"[!-~](?:[ -~]*[!-~])?", key):
        raise ValueError(
            "the value (masked) is empty, begins or ends with a space, or has characters that are not printable ASCII"
        )
    match style.style:
        case "query":
            pair = f"{quote(style.name, safe='')}={quote(key, safe='')}"
            return replace(target, key_query=pair.encode())
        case "header":
            name, value = style.name, key
        case "basic":
            credentials = key if ":" in key else f"{key}:"
            name, value = "Authorization", "Basic " + base64.b64encode(credentials.encode()).decode()
        case _:
            if " " in key:
                raise ValueError("the value (masked) has a space in it; a bearer key is given without 'Bearer'")
            name, value = "Authorization", f"Bearer {key}"
    return replace(target, key_line=f"{name}: {value}".encode(), key_field=name.lower().encode())
