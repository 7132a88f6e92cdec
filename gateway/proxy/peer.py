"""Who is at the other end of a client connection."""

from __future__ import annotations

from ipaddress import IPv4Address, ip_address
from typing import NamedTuple


class Peer(NamedTuple):
    """A client's address, as far as it matters.

    Args:
        name: What its requests to register are counted under, of letters, digits and `-`: `127-0-0-1`, `unix`; of IPv6
            the first 64 bits, because whoever has one address there has all that begin so.
        is_local: Whether it is on this machine: loopback, or a unix socket.
    """

    name: str
    is_local: bool


def host_of(peername: object) -> str:
    """Return the address that a transport's `peername` names, as the log has it."""
    return str(peername[0]) if isinstance(peername, tuple) else "unix"


def peer_of(peername: object) -> Peer:
    """Return the peer that a transport's `peername` names; nothing that a client says makes it another."""
    if isinstance(peername, str | bytes):  # the name of a unix socket
        return Peer("unix", True)
    if not isinstance(peername, tuple):  # it has gone already
        return Peer("gone", False)
    address = ip_address(str(peername[0]).partition("%")[0])
    address = getattr(address, "ipv4_mapped", None) or address
    if isinstance(address, IPv4Address):
        return Peer(str(address).replace(".", "-"), address.is_loopback)
    return Peer("-".join(address.exploded.split(":")[:4]), address.is_loopback)
