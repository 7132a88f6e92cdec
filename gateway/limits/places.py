"""Requests in flight: each holds a lease on a place, with an end, so that a killed process gives its places back.

Its holder renews a lease long before its end, and gives it back when the request is over. That of a process that is
gone ends by itself. Leases go by the store's clock as it is, not by the newest time charged: they are renewed apart
from the other limits.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from gateway.limits.standing import Standing

if TYPE_CHECKING:
    from gateway.limits.policy import Policy

LEASE_US: Final = 25_000_000
"""How long a lease lasts: a killed process's places are back within 30 s, and two renewals may be missed."""
RETRY_US: Final = 1_000_000
"""What a refused request is told to wait: nobody knows when a request will be over."""


class Places(NamedTuple):
    """The leases on the places of one limit: pairs of id and end in microseconds. The default is none."""

    leases: tuple[tuple[bytes, int], ...] = ()

    def standing(self, policy: Policy, now_us: int) -> Standing:
        """Say how many places are taken now."""
        used = sum(1 for _, ends_us in self.leases if ends_us > now_us)
        return Standing(used, max(policy.quota - used, 0), now_us + RETRY_US)

    def cleared(self, policy: Policy, now_us: int, lease_us: int) -> Places:
        """Return the places as a request finds them: where none seems free, without the leases that have ended.

        One that would last longer than any can was made before the clock stepped back: it is taken for a new one.
        """
        if len(self.leases) < policy.quota:
            return self
        live = ((lease, min(ends_us, now_us + lease_us)) for lease, ends_us in self.leases if ends_us > now_us)
        return Places(tuple(live))

    def leased(self, lease: bytes, now_us: int, lease_us: int) -> Places:
        """Return the places with a lease taken, or renewed, from now on.

        One that had ended meanwhile is taken again, for its request is still under way: then the next ones wait.
        """
        return Places((*self.released(lease).leases, (lease, now_us + lease_us)))

    def released(self, lease: bytes) -> Places:
        """Return the places without a lease, if it is there."""
        return Places(tuple(pair for pair in self.leases if pair[0] != lease))
