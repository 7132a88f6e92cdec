"""What a ledger writes down: here, in this process, as long as it lives. `state_file` has the same in a file."""

from __future__ import annotations

from collections import OrderedDict
from operator import attrgetter
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol

from gateway.budgets.spending import Entry, with_granted
from gateway.stores.ledger import page_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from gateway.budgets.spending import About
    from gateway.stores.accounts import Account, Segments

MAX_LINES: Final = 10_000
"""About 1300 bytes each; of more, the oldest are forgotten. As texts they would have half of that, and each would take
longer to be written than all else that a settlement does."""


class Reservation(NamedTuple):
    """What is held, or was assumed, for a request.

    Args:
        token: Whose.
        about: `Ask.about`.
        accounts: Where.
        granted: Output tokens that were granted beside what `about` says.
    """

    token: str
    about: About
    accounts: Sequence[Account]
    granted: int = 0

    @property
    def text(self) -> str:
        """What the ledger is told of it."""
        return with_granted(self.about, self.granted)


class Line(NamedTuple):
    """A line of the ledger: what `Settlement.entry` says, and what a store knows of it."""

    request: str
    token: str
    about: About
    mark: str
    at_us: int

    def is_of(self, token: str | None) -> bool:
        """Return whether it is of this token, or of one made from it; None: of any."""
        return token is None or self.token == token or self.token.startswith(f"{token}.")

    def entry(self) -> Entry:
        """Return what it tells."""
        return Entry.read(self.about or Entry(self.request, 0, self.token), self.mark, self.at_us)


class Known(NamedTuple):
    """What was written down by a process before: accounts as it left them, and its reservations by request."""

    accounts: Sequence[Account]
    open: Mapping[str, Reservation]
    assumed: Mapping[str, Reservation]


class Journal(Protocol):
    """Keeps what has happened. What raises StoreUnavailable has written nothing down.

    Attributes:
        keeps_sums: Whether it is told of reservations, and of what accounts will have spent, before it happens.
    """

    keeps_sums: bool

    def begin(self) -> Known:
        """Return what is known from before. Raises StoreUnavailable, with the reason."""
        ...

    def assume(self, known: Known, lines: Iterable[Line]) -> None:
        """Write down accounts as they are now, with nothing open. Raises StoreUnavailable."""
        ...

    def reserve(self, request: str, reservation: Reservation, atoms: Sequence[int]) -> None:
        """Write a reservation down, with what is held in which of its accounts. Raises StoreUnavailable."""
        ...

    def settle(self, request: str, sums: Sequence[tuple[Account, Segments]], line: Line | None) -> None:
        """Write down that one is settled, with what accounts will have spent by then. Raises StoreUnavailable."""
        ...

    def forget(self, account: Account) -> None:
        """Take note that an account counts nothing any more."""
        ...

    def line(self, request: str) -> Line | None:
        """Return what is known of a request that was settled. Raises StoreUnavailable."""
        ...

    def reader(self, since_us: int, token: str | None, limit: int | None) -> Callable[[], list[Line]]:
        """Return what reads lines in any thread, oldest first; see `Ledger.entries`. That raises StoreUnavailable."""
        ...

    def revoke(self, token: str, until_s: int) -> None:
        """Write down that a token is revoked until then, in seconds since the epoch. Raises StoreUnavailable."""
        ...

    def revoked(self, now_s: int) -> Mapping[str, int]:
        """Return who was revoked in a process before, and until when, and forget whose time is over.

        Raises:
            StoreUnavailable: That cannot be done.
        """
        ...

    def check(self) -> None:
        """Raise StoreUnavailable if nothing can be written down: where that has failed, it is tried."""
        ...

    def end(self) -> None:
        """Write nothing down any more."""
        ...


class MemoryJournal:
    """Remembers the last lines, and has no need to write down anything else."""

    __slots__ = ("_lines", "keeps_sums")

    def __init__(self) -> None:
        self.keeps_sums = False
        self._lines: OrderedDict[str, Line] = OrderedDict()

    def begin(self) -> Known:
        """See `Journal`."""
        return Known((), {}, {})

    def assume(self, known: Known, lines: Iterable[Line]) -> None:
        """See `Journal`."""

    def reserve(self, request: str, reservation: Reservation, atoms: Sequence[int]) -> None:
        """See `Journal`."""

    def settle(self, request: str, sums: Sequence[tuple[Account, Segments]], line: Line | None) -> None:
        """See `Journal`."""
        lines = self._lines
        if request in lines:  # its new line stands last
            del lines[request]
        if line is not None:
            lines[request] = line
            if len(lines) > MAX_LINES:
                lines.popitem(last=False)

    def forget(self, account: Account) -> None:
        """See `Journal`."""

    def line(self, request: str) -> Line | None:
        """See `Journal`."""
        return self._lines.get(request)

    def reader(self, since_us: int, token: str | None, limit: int | None) -> Callable[[], list[Line]]:
        """See `Journal`."""
        lines = [line for line in self._lines.values() if line.at_us >= since_us and line.is_of(token)]
        return lambda: page_of(sorted(lines, key=attrgetter("at_us")), limit)

    def revoke(self, token: str, until_s: int) -> None:
        """See `Journal`."""

    def revoked(self, now_s: int) -> Mapping[str, int]:
        """See `Journal`."""
        return {}

    def check(self) -> None:
        """See `Journal`."""

    def end(self) -> None:
        """See `Journal`."""
