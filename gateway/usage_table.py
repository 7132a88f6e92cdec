"""`/admin/usage` for people to read: as lines of text, and as a table with bars. Pure, but that a table takes rich."""

from __future__ import annotations

from datetime import datetime
from decimal import Decimal
from itertools import accumulate
from typing import TYPE_CHECKING, Any, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from rich.console import Console, ConsoleOptions, RenderableType
    from rich.text import Text

Told = dict[str, Any]
"""What `/admin/usage` answers, or one of its members."""

STORM_RETRIES: Final = 3.0
"""So many refused requests a second, and more, that an SDK had sent again: it does not wait as it is told to."""
BAR_CELLS: Final = 12
MAX_ROWS: Final = 20
TABLE_LINES: Final = 4
"""Of the table's own: above and below it, the columns' names, and what is under these."""
WIDE: Final = 100
"""Columns of a terminal that has room for all there is; a narrower one has the latency in the first line alone."""
WIDE_REST: Final = 72
NARROW_REST: Final = 52
"""What the other columns take, of a name the beginning; limits get what is left of the terminal's."""
WIDER: Final = 116
SPENT: Final = 14
"""What the column of money takes, where some was spent, of a terminal that wide; else it stands below the name."""
_DIGITS: Final = 4
"""Of an amount that is told in short."""


class Row(NamedTuple):
    """One token's usage, and how much of it is new.

    Args:
        label: Its name, or its id.
        per_s, refused_per_s, retries_per_s: Requests a second since the last look; 0 at the first.
        told: All that is known of it.
    """

    label: str
    per_s: float
    refused_per_s: float
    retries_per_s: float
    told: Told

    @property
    def is_storm(self) -> bool:
        """Whether an SDK sends the same again and again, faster than limits let it through."""
        return self.retries_per_s >= STORM_RETRIES


def seconds_between(before: Told | None, now: Told) -> float:
    """Return how far two looks are apart; 0 where there is but one."""
    if before is None:
        return 0.0
    return (datetime.fromisoformat(now["at"]) - datetime.fromisoformat(before["at"])).total_seconds()


def rows(before: Told | None, now: Told) -> list[Row]:
    """Return a row for each token: those with the most requests a second first, then those with the most in all."""
    known = {} if before is None else {token["id"]: token for token in before["tokens"]}
    seconds = seconds_between(before, now)
    found = []
    for token in now["tokens"]:
        old = known.get(token["id"])
        found.append(
            Row(
                _label(token),
                _rate(old, token, seconds, _requests),
                _rate(old, token, seconds, refused),
                _rate(old, token, seconds, _retries),
                token,
            )
        )
    return sorted(found, key=lambda row: (-row.per_s, -row.told["requests"]))


def total_row(before: Told | None, now: Told) -> Row:
    """Return the same of all together."""
    old, totals, seconds = before and before["totals"], now["totals"], seconds_between(before, now)
    return Row(
        "all",
        _rate(old, totals, seconds, _requests),
        _rate(old, totals, seconds, refused),
        _rate(old, totals, seconds, _retries),
        totals,
    )


def refused(counts: Told) -> int:
    """Return how many requests were refused, for whatever reason."""
    return sum(counts["refused"].values())


def _requests(counts: Told) -> int:
    return int(counts["requests"])


def _retries(counts: Told) -> int:
    return int(counts["retries"])


def as_text(now: Told) -> str:
    """Return a whole report, as text without a line end behind it."""
    totals = now["totals"]
    flying = f"{totals['in_flight']} in flight"
    lines = [f"{now['at']}: {_instances(now)}", _joined(_outcomes(totals), flying, _latency(totals), _spent(totals))]
    for name, target in now["targets"].items():
        lines.append(f"target {name}: {_joined(_outcomes(target), _latency(target), _spent(target))}")
    lines += [
        f"token {row.label}: {_joined(_outcomes(row.told), _limits(row.told), _spent(row.told))}"
        for row in rows(None, now)
    ]
    return "\n".join(lines)


def as_line(before: Told | None, now: Told) -> str:
    """Return what is new since the last look, in one line."""
    total = total_row(before, now)
    line = (
        f"{now['at'][11:19]} {total.per_s:.1f} requests/s, {total.refused_per_s:.1f} refused/s, "
        f"{total.told['in_flight']} in flight, {_latency(total.told)}"
    )
    if total.told["cost"]:
        line += f", {', '.join(_in_short(total.told))} spent"
    busiest = rows(before, now)[:3]
    if busiest:
        line += "; busiest: " + ", ".join(f"{row.label} {row.per_s:.1f}/s" for row in busiest)
    storms = [row.label for row in busiest if row.is_storm]
    return line + (f"; RETRY STORM: {', '.join(storms)}" if storms else "")


class _Fitting:
    """A table that is drawn for the terminal's size, whatever that is then: rich's `ConsoleRenderable`."""

    __slots__ = ("_before", "_now", "_trouble")

    def __init__(self, before: Told | None, now: Told, trouble: str) -> None:
        self._before = before
        self._now = now
        self._trouble = trouble

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        from rich.text import Text  # see `_table`

        trouble = Text(self._trouble, "bold red")
        if self._trouble:
            yield trouble
        total, shown, columns = total_row(self._before, self._now), rows(self._before, self._now), options.max_width
        head, most = _head(total, self._now), shown[:MAX_ROWS]
        # What is below the screen's end is not seen.
        around = [*([trouble] if self._trouble else []), head, _foot(total, len(shown))]
        lines = options.max_height - TABLE_LINES - sum(len(one.wrap(console, columns)) for one in around)
        heights = accumulate(_height(row, columns) for row in most)
        most = most[: max(sum(height <= lines for height in heights), 1)]
        yield head
        yield _table(most, columns, has_cost=bool(total.told["cost"]))
        yield _foot(total, len(shown) - len(most))


def as_table(before: Told | None, now: Told, trouble: str = "") -> RenderableType:
    """Return a table for a terminal: limits and budgets as bars, money, requests a second, refusals, storms marked.

    Args:
        before: The look before; None: there was none.
        now: What to show.
        trouble: Why that is not news; it stands above the table.
    """
    return _Fitting(before, now, trouble)


def _head(total: Row, now: Told) -> Text:
    from rich.text import Text  # see `_table`

    return Text.assemble(
        (f"{total.per_s:.1f}", "bold"),
        " requests/s   ",
        (f"{total.refused_per_s:.1f}", "bold yellow" if total.refused_per_s else "bold"),
        f" refused/s   {total.told['in_flight']} in flight   {_latency(total.told)}   {_instances(now)}   ",
        (now["at"][11:19], "dim"),
    )


def _foot(total: Row, left: int) -> Text:
    from rich.text import Text  # see `_table`

    reasons = ", ".join(f"{reason} {count}" for reason, count in total.told["refused"].items())
    spent = ", ".join(_in_short(total.told))
    foot = Text(f"spent so far: {spent}   " if spent else "", "bold")
    return foot.append(f"refused so far: {reasons or 'none'}" + (f"   {left} more tokens" if left else ""), "dim")


def _height(row: Row, columns: int) -> int:
    """Count the lines of a row in `_table`."""
    spent, bars = len(row.told["cost"]), len(row.told["limits"]) + len(row.told["budgets"])
    return max(1 + row.is_storm + spent * (columns < WIDER), spent, bars)


def _table(shown: Sequence[Row], columns: int, *, has_cost: bool) -> RenderableType:
    from rich import box  # as the others: only who watches has to load it
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, expand=True, pad_edge=False, padding=(0, 1, 0, 0))
    is_wide = columns >= WIDE
    has_column = columns >= WIDER and has_cost
    rest = (WIDE_REST if is_wide else NARROW_REST) + (SPENT if has_column else 0)
    limits_cells = max(columns - rest, BAR_CELLS + 1)
    # Only a column that may wrap is made narrower: names are cut, which are not, and numbers never.
    table.add_column("token")
    table.add_column("limits", overflow="ellipsis", no_wrap=True, max_width=limits_cells)
    names = ("req/s", "total", "refused", "flight", *(("p50 ms", "p99 ms") if is_wide else ()))
    for name in (*(("spent",) if has_column else ()), *names):
        table.add_column(name, justify="right", no_wrap=True)
    for row in shown:
        told = row.told
        label = Text(row.label, overflow="ellipsis", no_wrap=True)
        if told.get("revoked"):
            label.append(" revoked", "dim")
        if not has_column:
            for amount in _in_short(told):
                label.append(f"\n{amount}", "dim")
        if row.is_storm:
            label.append("\nRETRY STORM", "bold red")
        quantiles = told["latency_ms"]
        table.add_row(
            label,
            Text("\n").join([*map(_bar, told["limits"]), *map(_budget_bar, told["budgets"])]),
            *(("\n".join(_in_short(told)),) if has_column else ()),
            f"{row.per_s:.1f}",
            str(told["requests"]),
            Text(str(refused(told)), "yellow" if row.refused_per_s else ""),
            str(told["in_flight"]),
            *((_ms(quantiles["p50"]), _ms(quantiles["p99"])) if is_wide else ()),
        )
    return table


def _bar(limit: Told) -> Any:  # noqa: ANN401 - rich's
    from rich.text import Text  # see `as_table`

    share = min(limit["used"] / limit["limit"], 1.0)
    full = round(share * BAR_CELLS) if limit["used"] else 0
    style = _style(share)
    shadow = " shadow" if limit["shadow"] else ""
    return Text.assemble(
        ("█" * full, style),
        ("░" * (BAR_CELLS - full), "dim"),
        f" {limit['used']}/{limit['limit']} {limit['name']}{shadow}",
    )


def _budget_bar(budget: Told) -> Any:  # noqa: ANN401 - rich's
    """Draw what is spent, and behind it what is held."""
    from rich.text import Text  # see `as_table`

    amount, spent, held = (Decimal(budget[name]) for name in ("limit", "spent", "held"))
    share = min((spent + held) / amount, Decimal(1))
    used = round(share * BAR_CELLS)
    full = min(round(spent / amount * BAR_CELLS), used)
    waiting = f"+{_rounded(budget['held'])}" if held else ""
    return Text.assemble(
        ("█" * full, _style(float(share))),
        ("▒" * (used - full), _style(float(share))),
        ("░" * (BAR_CELLS - used), "dim"),
        f" {_rounded(budget['spent'])}{waiting}/{budget['limit']} {budget['name']}",
    )


def _style(share: float) -> str:
    return "red" if share >= 1 else "yellow" if share >= 0.8 else "green"


def _in_short(counts: Told) -> list[str]:
    """Spell what was spent, by unit, with as many digits as can be read at a glance."""
    return [f"{_rounded(amount)} {unit}" for unit, amount in counts["cost"].items()]


def _rounded(amount: str) -> str:
    number = Decimal(amount)
    places = max(_DIGITS - 1 - number.adjusted(), 2) if number else 0
    text = f"{number:.{places}f}"
    return text.rstrip("0").rstrip(".") if places else text


def _spent(counts: Told) -> str:
    amounts = [f"{amount} {unit}" for unit, amount in counts["cost"].items()]
    return f"{', '.join(amounts)} spent" if amounts else ""


def _joined(*parts: str) -> str:
    return "; ".join(filter(None, parts))


def _instances(now: Told) -> str:
    count = now["instances"]
    return f"{count} instance{'' if count == 1 else 's'}"


def _label(token: Told) -> str:
    """A name may hold anything: a terminal's control sequences among it."""
    return "".join(one if one.isprintable() else "?" for one in token["name"] or "") or str(token["id"])


def _rate(old: Told | None, new: Told, seconds: float, count: Callable[[Told], int]) -> float:
    """Return a rate; a token that was not among the busiest has none yet, and counts that began anew have 0."""
    if old is None or seconds <= 0:
        return 0.0
    return max(count(new) - count(old), 0) / seconds


def _outcomes(counts: Told) -> str:
    reasons = ", ".join(f"{reason} {count}" for reason, count in counts["refused"].items())
    return (
        f"{counts['requests']} requests: {counts['passed']} passed, "
        f"{refused(counts)} refused{f' ({reasons})' if reasons else ''}, "
        f"{counts['upstream_errors']} upstream errors, {counts['failed']} failed, {counts['retries']} retries"
    )


def _latency(counts: Told) -> str:
    quantiles = counts["latency_ms"]
    return f"p50 {_ms(quantiles['p50'])} ms, p99 {_ms(quantiles['p99'])} ms"


def _ms(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.1f}" if value < 100 else f"{value:.0f}"


def _limits(token: Told) -> str:
    if token.get("revoked"):
        return "revoked"
    told = [f"{limit['name']} {limit['used']}/{limit['limit']}" for limit in token["limits"]] or ["no limits"]
    for budget in token["budgets"]:
        held = "" if budget["held"] == "0" else f" ({budget['held']} more held)"
        told.append(f"{budget['name']} {budget['spent']}/{budget['limit']}{held}")
    return ", ".join(told)
