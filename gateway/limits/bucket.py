"""The token bucket, as the generic cell rate algorithm (GCRA): one number, and a pace instead of a log.

A bucket of `quota` places fills up evenly, one place in `window / quota`. A client that was idle may use all of them at
once (the burst is the quota, as with nginx's and Stripe's buckets, so that a window and a bucket of the same text allow
the same to a client that comes once); one that keeps asking gets one in each interval. So an interval as long as the
window can hold nearly twice the quota: that is the price of the even pace, and why it is not the default.

Source: ITU-T I.371 (03/2004), Annex A, the virtual scheduling algorithm, with T the interval and tau = (quota - 1) T.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from gateway.limits.standing import Standing

if TYPE_CHECKING:
    from gateway.limits.policy import Policy


class Bucket(NamedTuple):
    """What is remembered of one limit. The default is a bucket never used.

    `charged_us` is the newest time charged; it stays when that charge is given back. `full_us`, I.371's theoretical
    arrival time, is when the bucket is full again.
    """

    charged_us: int = 0
    full_us: int = 0

    def newest_us(self, policy: Policy) -> int:
        """Return the newest time known, in microseconds."""
        del policy
        return self.charged_us

    def standing(self, policy: Policy, at_us: int) -> Standing:
        """Say how many places are used at a time that is not older than `newest_us`."""
        interval_us = policy.interval_us
        owed_us = max(self.full_us - at_us, 0)
        room_us = policy.quota * interval_us - owed_us
        # A lower quota may have come with a new configuration: then there is less than no room.
        wait_us = interval_us - room_us if room_us < 0 else owed_us % interval_us or interval_us
        return Standing(-(-owed_us // interval_us), max(room_us // interval_us, 0), at_us + wait_us)

    def charged(self, policy: Policy, at_us: int) -> Bucket:
        """Return the bucket with one place less, at a time that is not older than `newest_us`."""
        return Bucket(at_us, max(self.full_us, at_us) + policy.interval_us)

    def refunded(self, policy: Policy, at_us: int) -> Bucket:
        """Return the bucket with the charge of `at_us` given back, if it is the newest.

        What an older one delayed cannot be told any more; its place has come back, or will, at the bucket's pace.
        """
        return self._replace(full_us=self.full_us - policy.interval_us) if at_us == self.charged_us else self
