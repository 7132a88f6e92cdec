"""More money for an answer that costs more than was reserved for it: asked for while it is held up, or it is cut."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Protocol

from gateway.budgets.spending import Ask, Entry, Mark, Settlement

if TYPE_CHECKING:
    from collections.abc import Mapping

    from gateway.admission import Admission
    from gateway.errors import StoreUnavailable
    from gateway.stores import Verdict
    from gateway.subject import Subject

SHARE: Final = 4
"""One part in so many of what was reserved at first is asked for at a time."""


class Held(Protocol):
    """Who waits for the money."""

    def on_more(self) -> None:
        """There is more: the answer may go on."""
        ...

    def on_no_more(self) -> None:
        """There is none: what costs no more than this must end."""
        ...


class Extension:
    """The reservations of one request behind its first one.

    Args:
        admission: Reserves and settles.
        subject: Whose request it is.
        entry: What the ledger remembers of it, should nobody settle it.
        first: What was reserved for it at first, in atoms by unit.
        held: Who waits.
    """

    __slots__ = (
        "_admission",
        "_asked",
        "_entry",
        "_first",
        "_held",
        "_over",
        "_subject",
        "_taken",
        "reserved",
    )

    def __init__(
        self, admission: Admission, subject: Subject, entry: Entry, first: Mapping[str, int], held: Held
    ) -> None:
        self._admission = admission
        self._subject = subject
        self._entry = entry
        self._held = held
        self._asked: Ask | None = None
        self._taken: list[Ask] = []
        self._over = False
        self._first = first
        self.reserved = dict(first)

    def covers(self, running: Mapping[str, int]) -> bool:
        """Whether what was spent so far, in atoms by unit, is no more than what is reserved."""
        return all(atoms <= self.reserved.get(unit, 0) for unit, atoms in running.items())

    def ask(self, running: Mapping[str, int]) -> None:
        """Ask for what was spent so far, and some more. To be called when nothing is asked for already."""
        fixed = {
            unit: max(atoms - self.reserved.get(unit, 0), 0) + self._first.get(unit, 0) // SHARE + 1
            for unit, atoms in running.items()
        }
        name = f"{self._entry.id}-{len(self._taken) + 1}"
        about = self._entry._replace(id=name, reserved=fixed, each={}).text()
        self._asked = Ask(name, fixed, about=about)
        self._admission.reserve_more(self._subject, self._asked, self)

    @property
    def is_asking(self) -> bool:
        """Whether an answer is still to come."""
        return self._asked is not None

    def on_verdict(self, verdict: Verdict) -> None:
        """See `stores.Waiter`."""
        asked, self._asked = self._asked, None
        assert asked is not None  # noqa: S101 - this is the answer to it
        if verdict.admitted:
            self._taken.append(asked)
            for unit, atoms in asked.fixed.items():
                self.reserved[unit] = self.reserved.get(unit, 0) + atoms
        if self._over:
            self.close()
        elif verdict.admitted:
            self._held.on_more()
        else:
            self._held.on_no_more()

    def on_store_loss(self, error: StoreUnavailable) -> None:
        """See `stores.Waiter`."""
        del error
        self._asked = None
        if not self._over:
            self._held.on_no_more()

    def close(self) -> None:
        """Give all of it back. To be called when the request itself has been settled."""
        self._over = True
        taken, self._taken = self._taken, []
        for ask in taken:
            self._admission.settle(self._subject, ask, 0, Settlement({}, Mark.EXACT, ""))
