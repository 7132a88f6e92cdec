"""The grammar of limits: `60`, `10/second`, `100/30s;bucket`, `1000/day;shadow`, several joined by commas."""

from __future__ import annotations

import enum
import re
from dataclasses import dataclass, replace

SEGMENTS = 60
"""How many segments cover a window: a place comes free at most a sixtieth of the window late."""

MAX_QUOTA = 10**9
MAX_WINDOW_S = 31 * 86_400
MAX_GENERATIONS = 4
"""Of subjects, the first included: what one check costs is bounded."""
MAX_LIMITS = 16
"""In one setting or token: what one check costs Redis is bounded, and a set of them fits in an exact number."""
MAX_IN_FLIGHT = 10**6
MIN_INTERVAL_US = 100
"""Between two places of a bucket: rounding it up to whole microseconds then costs 1 % of the rate at most."""

_EXAMPLE = "e.g. 60/minute or 10/second,1000/day"
_WORDS = {"second": 1, "minute": 60, "hour": 3_600, "day": 86_400}
_UNITS = {"s": 1, "m": 60, "h": 3_600, "d": 86_400}
_QUOTA = re.compile(r"[0-9]+")
_WINDOW = re.compile(r"([0-9]+)([smhd])")
_SUBJECT = re.compile(r"[A-Za-z0-9_-]+(?:\.[A-Za-z0-9_-]+){0,3}")
_SHARED_OWNER = "global"


class Kind(enum.Enum):
    """How a limit counts."""

    WINDOW = "window"
    """A strict sliding window: see `limits.window`."""
    BUCKET = "bucket"
    """A token bucket: see `limits.bucket`."""
    LEASE = "lease"
    """Requests in flight: see `limits.places`."""


@dataclass(frozen=True, slots=True)
class Policy:
    """One limit.

    Args:
        name: The window's name, `second`, `minute`, `hour`, `day` or like `30s`, or `concurrency`; part of the
            store's key. A target's has the target's name before it: `maps-minute`. One that is tried beside another of
            the same window is `minute-shadow`.
        quota: Admissions in a window, 1 to 10**9; for a lease the requests in flight, 1 to 10**6.
        window_us: The window in microseconds: whole seconds, 1 second to 31 days. 0 for a lease.
        shared: Counted for all tokens together.
        kind: How it counts.
        shadow: It decides and counts as any other, but never refuses; what it would have refused it does not count.
        above: How many generations above the subject its owner is, 0 to 3: a child's use counts for its parents too.
        guard: Of a bucket: it refuses what repeats, not what is too much, so no admission tells how near its end it is.

    Raises:
        ValueError: A number is out of its range.
    """

    name: str
    quota: int
    window_us: int
    shared: bool = False
    kind: Kind = Kind.WINDOW
    shadow: bool = False
    above: int = 0
    guard: bool = False

    def __post_init__(self) -> None:
        if self.kind is Kind.LEASE:
            if not 1 <= self.quota <= MAX_IN_FLIGHT:
                raise ValueError(f"a concurrency limit allows 1 to {MAX_IN_FLIGHT} requests, not {self.quota}; e.g. 10")
            return
        if not 1 <= self.quota <= MAX_QUOTA:
            raise ValueError(f"a limit allows 1 to {MAX_QUOTA} requests, not {self.quota}; {_EXAMPLE}")
        window_s, rest_us = divmod(self.window_us, 1_000_000)
        if rest_us or not 1 <= window_s <= MAX_WINDOW_S:
            raise ValueError(f"a window is whole seconds, from 1 second to 31 days; {_EXAMPLE}")
        if self.kind is Kind.BUCKET and self.quota * MIN_INTERVAL_US > self.window_us:
            raise ValueError(f"a bucket allows at most {1_000_000 // MIN_INTERVAL_US} requests a second; {_EXAMPLE}")

    @property
    def window_s(self) -> int:
        """The window in seconds; 0 for a lease."""
        return self.window_us // 1_000_000

    @property
    def segment_us(self) -> int:
        """A sixtieth of the window in microseconds, rounded up.

        Rounded up, because 60 segments must cover the window: the window in effect is never shorter than
        `window_us`, and at most 59 µs longer.
        """
        return -(-self.window_us // SEGMENTS)

    @property
    def interval_us(self) -> int:
        """Of a bucket: in how many microseconds a place comes free, rounded up, so that it is never too fast."""
        return -(-self.window_us // self.quota)

    @property
    def unit_us(self) -> int:
        """What a store counts time in, in microseconds: a window's segment, a bucket's interval; 0 for a lease."""
        return self.interval_us if self.kind is Kind.BUCKET else self.segment_us

    @property
    def most(self) -> int:
        """How many admissions an interval as long as the window can hold; for a lease, how many there are at once.

        A bucket that was full gives its quota at once, and by the end of the window all but one of another.
        """
        return 2 * self.quota - 1 if self.kind is Kind.BUCKET else self.quota

    @property
    def label(self) -> str:
        """The name users see in `RateLimit` headers: `minute`, `global-minute` for a shared limit, `parent-minute`.

        A parent's parent is `parent2`, and a guard, whatever it counts, `loop`.
        """
        if self.guard:
            return "loop"
        if self.shared or not self.above:
            return f"global-{self.name}" if self.shared else self.name
        return f"parent{self.above if self.above > 1 else ''}-{self.name}"

    @property
    def counter(self) -> str:
        """What is counted, as the last part of a store's key: what counts differently has another."""
        if self.kind is Kind.LEASE:
            return "inflight" if self.name == "concurrency" else f"inflight:{self.name}"
        return f"limit:{self.name}-bucket" if self.kind is Kind.BUCKET else f"limit:{self.name}"

    def owner(self, subject: str) -> str:
        """Return under whose name the limit counts: the subject's or its parent's, or `global` for a shared limit.

        Raises:
            ValueError: The subject is not one that limits can be counted for (`check_subject`).
        """
        check_subject(subject)
        if self.shared:
            return _SHARED_OWNER
        return subject.rsplit(".", self.above)[0] if self.above else subject


def lineage(subject: str) -> tuple[str, ...]:
    """Return a subject's parents, the first one first, and the subject itself: `a`, `a.b` and `a.b.c` of `a.b.c`."""
    parts = subject.split(".")
    return tuple(".".join(parts[:count]) for count in range(1, len(parts) + 1))


def check_subject(subject: str) -> None:
    """Raise ValueError unless the subject is letters, digits, `-` and `_`, and not `global`, everybody's own name.

    A child's is its parent's, a dot, and such a name: four generations at most.
    """
    if subject.partition(".")[0] == _SHARED_OWNER or _SUBJECT.fullmatch(subject) is None:
        raise ValueError("a subject is letters, digits, '-' and '_', and not 'global', e.g. worker-7")


def parse_limits(text: str, *, shared: bool = False) -> tuple[Policy, ...]:
    """Read limits as users write them, in `RATE_LIMIT` or on the command line.

    Args:
        text: `60` (a minute), `N/second|minute|hour|day`, `N/30s` (or `m`, `h`, `d`), each perhaps with `;bucket`,
            `;shadow` or both behind it; several joined by commas, with spaces around if you like.
        shared: The limits count for all tokens together.

    Returns:
        The policies in the order written, windows in their plainest name: `60/60s` is `60/minute`. Two of the same
        window differ in that one is a shadow; that one's name says so.

    Raises:
        ValueError: One sentence that says what is wrong and gives an example.
    """
    members = text.split(",")
    if len(members) > MAX_LIMITS:
        raise ValueError(f"there are {len(members)} limits, more than {MAX_LIMITS}; {_EXAMPLE}")
    policies: list[Policy] = []
    for member in members:
        policy = _parse_one(member.strip(" "), shared=shared)
        twins = [other for other in policies if other.window_us == policy.window_us]
        if any(twin.shadow is policy.shadow for twin in twins):
            raise ValueError(f"two limits have the same window, '{policy.name}'; {_EXAMPLE}")
        policies.append(policy)
    real = {policy.window_us for policy in policies if not policy.shadow}
    return tuple(
        replace(policy, name=f"{policy.name}-shadow") if policy.shadow and policy.window_us in real else policy
        for policy in policies
    )


def parse_concurrency(text: str, *, shared: bool = False) -> Policy:
    """Read `CONCURRENCY_LIMIT`: how many requests may be in flight, `10` or `10;shadow`.

    Args:
        text: As users write it.
        shared: Of all tokens together.

    Raises:
        ValueError: One sentence that says what is wrong and gives an example.
    """
    quota_text, *modes = text.strip().split(";")
    if modes not in ([], ["shadow"]):
        raise ValueError(f"{';'.join(modes)!r} after ';' is not 'shadow'; e.g. 10 or 10;shadow")
    if _QUOTA.fullmatch(quota_text) is None or len(quota_text) > 12:
        raise ValueError(f"{quota_text!r} is not a whole number from 1 to {MAX_IN_FLIGHT}; e.g. 10")
    return Policy("concurrency", int(quota_text), 0, shared, Kind.LEASE, bool(modes))


def _parse_one(member: str, *, shared: bool) -> Policy:
    if not member:
        raise ValueError(f"a limit is missing; {_EXAMPLE}")
    limit, *modes = member.split(";")
    for mode in modes:
        if mode not in {"bucket", "shadow"}:
            raise ValueError(f"{mode!r} after ';' is no known mode (bucket, shadow); {_EXAMPLE}")
    if len(set(modes)) < len(modes):
        raise ValueError(f"';{modes[-1]}' is there twice; {_EXAMPLE}")
    quota_text, slash, window_text = limit.partition("/")
    # The length guards keep int() away from absurd digit strings; the ranges proper are Policy's.
    if _QUOTA.fullmatch(quota_text) is None or len(quota_text) > 12:
        raise ValueError(f"{quota_text!r} is not a whole number from 1 to {MAX_QUOTA}; {_EXAMPLE}")
    window_s = _window_s(window_text) if slash else 60
    kind = Kind.BUCKET if "bucket" in modes else Kind.WINDOW
    return Policy(_window_name(window_s), int(quota_text), window_s * 1_000_000, shared, kind, "shadow" in modes)


def _window_s(text: str) -> int:
    if text in _WORDS:
        return _WORDS[text]
    match = _WINDOW.fullmatch(text)
    if match is None or len(text) > 10:
        raise ValueError(f"{text!r} is no window (second, minute, hour, day or like 30s, 5m, 2h); {_EXAMPLE}")
    return int(match[1]) * _UNITS[match[2]]


def _window_name(window_s: int) -> str:
    for word, unit_s in _WORDS.items():
        if window_s == unit_s:
            return word
    unit = max((unit for unit, unit_s in _UNITS.items() if window_s % unit_s == 0), key=_UNITS.__getitem__)
    return f"{window_s // _UNITS[unit]}{unit}"
