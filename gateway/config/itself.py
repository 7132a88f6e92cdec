"""Whether an upstream is the gateway itself, however the two are spelled. Nothing is sent to find out."""

from __future__ import annotations

import socket
from ipaddress import IPv4Address, IPv6Address, ip_address

_LOOPBACK_4, _LOOPBACK_6 = IPv4Address("127.0.0.1"), IPv6Address("::1")
_ANY_PORT = 9


def leads_to(host: str, listening: str) -> bool:
    """Whether a connection to one host from this machine reaches a listener on another, the port being the same.

    Args:
        host: A name in lower case, or a literal without brackets.
        listening: Likewise; of a wildcard, every address of this machine.
    """
    meant, own = _addresses(host), _addresses(listening)
    if meant & own:
        return True
    versions = {6: {4, 6}, 4: {4}}  # a socket for all of IPv6 may take IPv4 as well
    taken = {
        version
        for address in own
        if not isinstance(address, str) and address.is_unspecified
        for version in versions[address.version]
    }
    # To connect to a wildcard is to connect to the loopback address of its family (ip(7)).
    at_hand = {_loopback_of(address) for address in meant if not isinstance(address, str)}
    if taken and socket.gethostname().lower() in meant:
        return True
    return any(address in own or (address.version in taken and _is_here(address)) for address in at_hand)


def _addresses(host: str) -> frozenset[str | IPv4Address | IPv6Address]:
    """Return what a host stands for, without asking anybody; the name itself if only DNS could tell."""
    if host == "localhost" or host.endswith(".localhost"):  # RFC 6761 §6.3
        return frozenset({_LOOPBACK_4, _LOOPBACK_6})
    try:
        address = ip_address(host.partition("%")[0])
    except ValueError:
        return frozenset({host})
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return frozenset({address if mapped is None else mapped})


def _loopback_of(address: IPv4Address | IPv6Address) -> IPv4Address | IPv6Address:
    if not address.is_unspecified:
        return address
    return _LOOPBACK_4 if address.version == 4 else _LOOPBACK_6


def _is_here(address: IPv4Address | IPv6Address) -> bool:
    """Whether an address is one of this machine's: the kernel then answers from it. A datagram socket sends nothing."""
    if address.is_loopback:
        return True
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect((str(address), _ANY_PORT))
            return ip_address(probe.getsockname()[0].partition("%")[0]) == address
    except OSError:
        return False
