"""What a budget is, and its window's boundaries."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Final, Literal

from gateway.limits.policy import SEGMENTS, check_subject

if TYPE_CHECKING:
    from collections.abc import Mapping

NANO: Final = 1_000_000_000
"""Atoms of one US dollar, of one credit."""
COUNTED: Final = frozenset({"tokens", "bytes"})
"""Units that have no parts: an atom is one of them."""
MAX_ATOMS: Final = 1 << 53
"""No budget is as much: Lua's numbers are doubles, exact up to this. Of US dollars, nine million."""
MAX_SLIDING_S: Final = 31 * 86_400

Calendar = Literal["day", "week", "month"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """An amount in a window.

    Args:
        unit: `USD`, `tokens`, or a name that the costs of targets use as well.
        amount: In atoms, 1 to `MAX_ATOMS - 1`.
        calendar: Its window is each day, week (from Monday) or month of its time zone; None: it slides.
        window_us: Of a window that slides: how long it is, in whole seconds as microseconds; 0 else.
        zone: The time zone of a calendar window, an IANA name.
        shared: It counts for all tokens together.
        above: Whose it is: 0 for the token's own, 1 for those of the token that it was made from, and so on.

    Raises:
        ValueError: A number is out of range.
    """

    unit: str
    amount: int
    calendar: Calendar | None = None
    window_us: int = 0
    zone: str = "UTC"
    shared: bool = False
    above: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.amount < MAX_ATOMS:
            raise ValueError("a budget is more than nothing, and less than nine million USD or 2^53 of what is counted")
        if (self.calendar is None) is (self.window_us == 0):
            raise ValueError("a budget's window is a calendar's or slides")
        if not 0 <= self.window_us <= MAX_SLIDING_S * 1_000_000 or self.window_us % 1_000_000:
            raise ValueError("a window that slides is whole seconds, 31 days at most")

    @property
    def window_name(self) -> str:
        """`day`, or as short as a user would write it: `60s`, `24h`."""
        if self.calendar is not None:
            return self.calendar
        seconds = self.window_us // 1_000_000
        unit, size = next((unit, size) for unit, size in (("h", 3600), ("m", 60), ("s", 1)) if seconds % size == 0)
        return f"{seconds // size}{unit}"

    @property
    def label(self) -> str:
        """The name that users see: `day-USD`, `global-month-USD`, `parent-day-USD`; a parent's parent is `parent2`."""
        name = f"{self.window_name}-{self.unit}"
        if self.shared or not self.above:
            return f"global-{name}" if self.shared else name
        return f"parent{self.above if self.above > 1 else ''}-{name}"

    @property
    def counter(self) -> str:
        """What is counted, as the last part of a store's key. Another zone counts other days: it has another key."""
        zone = "" if self.calendar is None or self.zone == "UTC" else f"-{self.zone.replace('/', '.')}"
        return f"budget:{self.window_name}-{self.unit}{zone}"

    def owner(self, subject: str) -> str:
        """Return under whose name it counts, as `limits.Policy.owner` does.

        Raises:
            ValueError: The subject is not one that can be counted for.
        """
        check_subject(subject)
        if self.shared:
            return "global"
        return subject.rsplit(".", self.above)[0] if self.above else subject

    @property
    def segment_us(self) -> int:
        """Of a window that slides: a sixtieth of it, rounded up. It counts with the 60 before it."""
        return -(-self.window_us // SEGMENTS)

    def starts(self, now_s: float) -> tuple[int, ...]:
        """Return when calendar windows begin, in seconds since the epoch: the one before this one, this, and two more.

        A store whose clock is not this one finds its own window among them.
        """
        if self.calendar is None:
            return ()
        from zoneinfo import ZoneInfo  # only here: it takes 10 ms to load

        zone = ZoneInfo(self.zone)
        midnight = datetime.fromtimestamp(now_s, zone).replace(hour=0, minute=0, second=0, microsecond=0, fold=0)
        days = [_moved(midnight, self.calendar, by) for by in (-1, 0, 1, 2)]
        return tuple(int(day.timestamp()) for day in days)


def amount_of(amounts: Mapping[str, int]) -> str:
    """Spell amounts for people: `0.0123 USD, 456 tokens`."""
    return ", ".join(f"{spelled(atoms, unit)} {unit}" for unit, atoms in amounts.items())


def spelled(atoms: int, unit: str) -> str:
    """Spell an amount of a unit as a plain decimal number, without zeros at its end."""
    if unit in COUNTED:
        return str(atoms)
    sign, (whole, part) = "-" if atoms < 0 else "", divmod(abs(atoms), NANO)
    return f"{sign}{whole}.{part:09d}".rstrip("0").rstrip(".")


def _moved(midnight: datetime, calendar: Calendar, by: int) -> datetime:
    """Return the first midnight of the window that `midnight` lies in, or of the window `by` windows on."""
    if calendar == "day":
        return midnight + timedelta(days=by)
    if calendar == "week":
        return midnight + timedelta(days=7 * by - midnight.weekday())
    months = midnight.year * 12 + midnight.month - 1 + by
    return midnight.replace(year=months // 12, month=months % 12 + 1, day=1)
