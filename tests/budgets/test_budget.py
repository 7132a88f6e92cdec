"""What a budget may be, and where windows of the calendar begin: in zones, over changes of their clocks."""

from __future__ import annotations

from datetime import datetime, timedelta
from zoneinfo import ZoneInfo

import pytest

from gateway.budgets.book import segment_of
from gateway.budgets.budget import MAX_ATOMS, NANO, Budget, Calendar, amount_of, spelled


def of(calendar: Calendar, zone: str = "UTC") -> Budget:
    return Budget(unit="USD", amount=1, calendar=calendar, zone=zone)


def second(text: str) -> int:
    return int(datetime.fromisoformat(text).timestamp())


@pytest.mark.parametrize(
    ("calendar", "zone", "now", "expected"),
    [
        ("day", "UTC", "2026-11-26T22:20:00Z", ["2026-11-25", "2026-11-26", "2026-11-27", "2026-11-28"]),
        ("day", "UTC", "2026-11-26T00:00:00Z", ["2026-11-25", "2026-11-26", "2026-11-27", "2026-11-28"]),
        ("day", "UTC", "2026-11-25T23:59:59Z", ["2026-11-24", "2026-11-25", "2026-11-26", "2026-11-27"]),
        ("week", "UTC", "2026-11-29T23:59:59Z", ["2026-11-16", "2026-11-23", "2026-11-30", "2026-12-07"]),
        ("week", "UTC", "2027-01-01T12:00:00Z", ["2026-12-21", "2026-12-28", "2027-01-04", "2027-01-11"]),
        ("month", "UTC", "2026-01-31T12:00:00Z", ["2025-12-01", "2026-01-01", "2026-02-01", "2026-03-01"]),
        ("month", "UTC", "2026-12-31T23:59:59Z", ["2026-11-01", "2026-12-01", "2027-01-01", "2027-02-01"]),
        ("month", "UTC", "2028-02-29T12:00:00Z", ["2028-01-01", "2028-02-01", "2028-03-01", "2028-04-01"]),
        ("day", "UTC", "2028-02-28T12:00:00Z", ["2028-02-27", "2028-02-28", "2028-02-29", "2028-03-01"]),
        ("day", "UTC", "2026-02-28T12:00:00Z", ["2026-02-27", "2026-02-28", "2026-03-01", "2026-03-02"]),
    ],
)
def test_where_windows_begin(calendar: Calendar, zone: str, now: str, expected: list[str]) -> None:
    assert of(calendar, zone).starts(second(now)) == tuple(second(f"{day}T00:00:00Z") for day in expected)


@pytest.mark.parametrize(
    ("zone", "now", "begins", "hours"),
    [
        # A night in which the clocks change has 23 hours, or 25. All are of the past: what is to come, laws change.
        ("Europe/Berlin", "2025-03-30T12:00:00Z", "2025-03-30T00:00:00+01:00", 23),
        ("Europe/Berlin", "2025-10-26T12:00:00Z", "2025-10-26T00:00:00+02:00", 25),
        ("America/New_York", "2025-11-02T05:30:00Z", "2025-11-02T00:00:00-04:00", 25),
        ("America/New_York", "2025-11-02T06:30:00Z", "2025-11-02T00:00:00-04:00", 25),
        ("Australia/Lord_Howe", "2025-04-06T03:00:00Z", "2025-04-06T00:00:00+11:00", 24.5),
        ("Asia/Kathmandu", "2025-07-01T18:15:00Z", "2025-07-02T00:00:00+05:45", 24),
        ("Pacific/Kiritimati", "2025-07-01T10:00:00Z", "2025-07-02T00:00:00+14:00", 24),
        ("Pacific/Pago_Pago", "2025-07-01T10:59:59Z", "2025-06-30T00:00:00-11:00", 24),
        # There is no midnight: the clocks go from 24:00 to 1:00.
        ("America/Santiago", "2025-09-07T12:00:00Z", "2025-09-07T01:00:00-03:00", 23),
        ("Asia/Beirut", "2025-03-30T12:00:00Z", "2025-03-30T01:00:00+03:00", 23),
        # There are two: at 1:00 it is 0:00 again. The day begins with the first.
        ("America/Havana", "2020-11-01T04:30:00Z", "2020-11-01T00:00:00-04:00", 25),
        ("America/Havana", "2020-11-01T05:30:00Z", "2020-11-01T00:00:00-04:00", 25),
        # At midnight it is 23:00 again: an hour more belongs to the old day.
        ("America/Santiago", "2025-04-06T03:30:00Z", "2025-04-05T00:00:00-03:00", 25),
    ],
)
def test_a_day_is_as_long_as_where_it_is(zone: str, now: str, begins: str, hours: float) -> None:
    _, start, end, _ = of("day", zone).starts(second(now))
    assert (start, (end - start) / 3600) == (second(begins), hours)


@pytest.mark.parametrize("zone", ["UTC", "Europe/Berlin", "America/Santiago", "America/Havana", "Pacific/Apia"])
@pytest.mark.parametrize("calendar", ["day", "week", "month"])
def test_every_moment_lies_in_the_window_of_its_date(calendar: Calendar, zone: str) -> None:
    budget, place = of(calendar, zone), ZoneInfo(zone)
    known: dict[int, str] = {}
    for hour in range(0, 420 * 24 * 2, 13):
        moment = datetime.fromtimestamp(second("2027-12-30T00:17:00Z") + hour * 1800, place)
        now_s = int(moment.timestamp())
        before, start, end, after = budget.starts(now_s)
        assert before < start <= now_s < end < after
        date = moment.date()
        first = {"day": date, "week": date - timedelta(days=date.weekday()), "month": date.replace(day=1)}[calendar]
        assert known.setdefault(start, str(first)) == str(first)
        # A store whose clock is a little ahead, or behind, finds the window that it has itself.
        for ahead_s in (-3600, 3600):
            own = budget.starts(now_s + ahead_s)[1]
            assert segment_of(budget, (now_s + ahead_s) * 1_000_000, (before, start, end, after)) == own
    assert len(set(known.values())) == len(known)


def test_a_window_that_slides_has_no_beginnings() -> None:
    assert Budget(unit="USD", amount=1, window_us=60_000_000).starts(0) == ()


@pytest.mark.parametrize(
    "wrong",
    [
        {"amount": 0, "calendar": "day"},
        {"amount": -1, "calendar": "day"},
        {"amount": MAX_ATOMS, "calendar": "day"},
        {"amount": 1},
        {"amount": 1, "calendar": "day", "window_us": 60_000_000},
        {"amount": 1, "window_us": 1},
        {"amount": 1, "window_us": -60_000_000},
        {"amount": 1, "window_us": (31 * 86_400 + 1) * 1_000_000},
    ],
)
def test_what_is_no_budget(wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=r"budget|window"):
        Budget(unit="USD", **wrong)  # type: ignore[arg-type]


def test_names_and_whose_it_is() -> None:
    day = Budget(unit="USD", amount=1, calendar="day", zone="Europe/Berlin", above=1)
    assert (day.label, day.counter, day.owner("a.b.c")) == ("parent-day-USD", "budget:day-USD-Europe.Berlin", "a.b")
    shared = Budget(unit="tokens", amount=1, window_us=90_000_000, shared=True)
    assert (shared.label, shared.counter, shared.owner("a")) == ("global-90s-tokens", "budget:90s-tokens", "global")
    assert Budget(unit="USD", amount=1, window_us=86_400_000_000, above=2).label == "parent2-24h-USD"
    with pytest.raises(ValueError, match="subject"):
        day.owner("global.a")


@pytest.mark.parametrize(
    ("atoms", "unit", "text"),
    [
        (1, "USD", "0.000000001"),
        (NANO, "USD", "1"),
        (12_300_000, "USD", "0.0123"),
        (-NANO // 2, "credits", "-0.5"),
        (0, "USD", "0"),
        (MAX_ATOMS - 1, "USD", "9007199.254740991"),
        (456, "tokens", "456"),
        (10 * NANO, "USD", "10"),
    ],
)
def test_amounts_are_spelled_exactly_and_shortly(atoms: int, unit: str, text: str) -> None:
    assert spelled(atoms, unit) == text


def test_several_amounts() -> None:
    assert amount_of({"USD": 12_300_000, "tokens": 456}) == "0.0123 USD, 456 tokens"


def test_a_month_that_begins_twice_begins_with_the_first() -> None:
    for now in ("2020-11-01T04:30:00Z", "2020-11-01T05:30:00Z", "2020-11-30T23:00:00Z"):
        assert of("month", "America/Havana").starts(second(now))[1] == second("2020-11-01T00:00:00-04:00")
