"""The grammar of limits: `60`, `10/second`, `100/30s`, several joined by commas."""

from __future__ import annotations

import re
from dataclasses import dataclass

SEGMENTS = 60
"""How many segments cover a window: a place comes free at most a sixtieth of the window late."""

MAX_QUOTA = 10**9
MAX_WINDOW_S = 31 * 86_400

_EXAMPLE = "e.g. 60/minute or 10/second,1000/day"
_WORDS = {"second": 1, "minute": 60, "hour": 3_600, "day": 86_400}
_UNITS = {"s": 1, "m": 60, "h": 3_600, "d": 86_400}
_QUOTA = re.compile(r"[0-9]+")
_WINDOW = re.compile(r"([0-9]+)([smhd])")
_SUBJECT = re.compile(r"[A-Za-z0-9_-]+")
_SHARED_OWNER = "global"


@dataclass(frozen=True, slots=True)
class Policy:
    """One limit: no interval as long as the window ever holds more than `quota` admissions.

    Args:
        name: The window's name, `second`, `minute`, `hour`, `day` or like `30s`; part of the store's key.
        quota: Admissions in a window, 1 to 10**9.
        window_us: The window in microseconds: whole seconds, 1 second to 31 days.
        shared: Counted for all tokens together.

    Raises:
        ValueError: A number is out of its range.
    """

    name: str
    quota: int
    window_us: int
    shared: bool = False

    def __post_init__(self) -> None:
        if not 1 <= self.quota <= MAX_QUOTA:
            raise ValueError(f"a limit allows 1 to {MAX_QUOTA} requests, not {self.quota}; {_EXAMPLE}")
        window_s, rest_us = divmod(self.window_us, 1_000_000)
        if rest_us or not 1 <= window_s <= MAX_WINDOW_S:
            raise ValueError(f"a window is whole seconds, from 1 second to 31 days; {_EXAMPLE}")

    @property
    def window_s(self) -> int:
        """The window in seconds."""
        return self.window_us // 1_000_000

    @property
    def segment_us(self) -> int:
        """A sixtieth of the window in microseconds, rounded up.

        Rounded up, because 60 segments must cover the window: the window in effect is never shorter than
        `window_us`, and at most 59 µs longer.
        """
        return -(-self.window_us // SEGMENTS)

    @property
    def label(self) -> str:
        """The name users see in `RateLimit` headers: `minute`, or `global-minute` for a shared limit."""
        return f"global-{self.name}" if self.shared else self.name

    def owner(self, subject: str) -> str:
        """Return under whose name the limit counts: the subject's, or `global` for a shared limit.

        Raises:
            ValueError: The subject is not made of letters, digits, `-` and `_`, or is `global` itself, which
                would mix its counts with everybody's.
        """
        if subject == _SHARED_OWNER or _SUBJECT.fullmatch(subject) is None:
            raise ValueError("a subject is letters, digits, '-' and '_', and not 'global', e.g. worker-7")
        return _SHARED_OWNER if self.shared else subject


def parse_limits(text: str, *, shared: bool = False) -> tuple[Policy, ...]:
    """Read limits as users write them, in `RATE_LIMIT` or on the command line.

    Args:
        text: `60` (a minute), `N/second|minute|hour|day`, `N/30s` (or `m`, `h`, `d`); several joined by
            commas, with spaces around if you like.
        shared: The limits count for all tokens together.

    Returns:
        The policies in the order written, windows in their plainest name: `60/60s` is `60/minute`.

    Raises:
        ValueError: One sentence that says what is wrong and gives an example.
    """
    policies: list[Policy] = []
    for member in text.split(","):
        policy = _parse_one(member.strip(" "), shared=shared)
        if any(policy.window_us == other.window_us for other in policies):
            raise ValueError(f"two limits have the same window, '{policy.name}'; {_EXAMPLE}")
        policies.append(policy)
    return tuple(policies)


def _parse_one(member: str, *, shared: bool) -> Policy:
    if not member:
        raise ValueError(f"a limit is missing; {_EXAMPLE}")
    limit, semicolon, mode = member.partition(";")
    if semicolon:
        if mode in {"bucket", "shadow"}:
            raise ValueError(f"';{mode}' is not available yet; write the limit without it, {_EXAMPLE}")
        raise ValueError(f"{mode!r} after ';' is no known mode; {_EXAMPLE}")
    quota_text, slash, window_text = limit.partition("/")
    # The length guards keep int() away from absurd digit strings; the ranges proper are Policy's.
    if _QUOTA.fullmatch(quota_text) is None or len(quota_text) > 12:
        raise ValueError(f"{quota_text!r} is not a whole number from 1 to {MAX_QUOTA}; {_EXAMPLE}")
    window_s = _window_s(window_text) if slash else 60
    return Policy(_window_name(window_s), int(quota_text), window_s * 1_000_000, shared)


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
