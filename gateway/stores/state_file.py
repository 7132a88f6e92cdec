"""`STATE_FILE`: what the embedded store knows of budgets and revocations, in SQLite, so that it outlives the process.

What happens is written down in the call that it happens in. A process that is killed loses nothing of it: it is the
kernel's by then. A machine whose power fails may lose the last moments (`synchronous=NORMAL`), and no more than that.

One process writes, and holds a lock on `STATE_FILE.lock` as long as it lives. Others may read.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import sqlite3
from pathlib import Path
from typing import TYPE_CHECKING, Final

from gateway.budgets.book import Assumed
from gateway.budgets.budget import Budget
from gateway.budgets.spending import settled_text
from gateway.errors import StoreUnavailable
from gateway.stores.accounts import Account
from gateway.stores.journal import Known, Line, Reservation

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from typing import Any

    from gateway.stores.accounts import Segments

MAX_LINES: Final = 1_000_000
MAX_AGE_US: Final = 35 * 86_400_000_000
"""Of lines: a month, and some days to compare it with an invoice."""
TRIM_EVERY: Final = 256
"""Settlements between two looks at the oldest lines, of which twice as many are deleted at most."""
BUSY_S: Final = 0.1
"""How long to wait for somebody who writes in spite of the lock: nothing else happens meanwhile."""
PAGE_BYTES: Final = 4096
WAL_PAGES: Final = 4_000
"""Until they are brought into the file proper: the disk has to be waited for then."""
WAL_SHARE: Final = 4
"""So many times that is free at least: on a disk that is full of these pages, they have no way into the file."""

_MARK: Final = 0x67776C64
"""`gwld`: says that a file is one of these (sqlite.org/fileformat2.html §1.3.18)."""
_VERSION: Final = 1
# No number of a budget is given twice (AUTOINCREMENT): `assumed` may name one that is deleted.
_SCHEMA: Final = f"""
PRAGMA application_id = {_MARK};
PRAGMA user_version = {_VERSION};
CREATE TABLE budget (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    key TEXT UNIQUE, unit TEXT NOT NULL, calendar TEXT, window_us INTEGER NOT NULL, zone TEXT
);
CREATE TABLE spent (
    budget INTEGER, segment INTEGER, atoms INTEGER NOT NULL, PRIMARY KEY (budget, segment)
) WITHOUT ROWID;
-- atoms: 'BUDGET:ATOMS', or 'BUDGET:ATOMS:SEGMENT', with a space between them
CREATE TABLE held (request TEXT PRIMARY KEY, token TEXT, about TEXT, atoms TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE assumed (request TEXT PRIMARY KEY, token TEXT, about TEXT, atoms TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE ledger (
    id INTEGER PRIMARY KEY, request TEXT UNIQUE, token TEXT, entry TEXT, mark TEXT NOT NULL, at_us INTEGER NOT NULL
);
CREATE INDEX ledger_at ON ledger (at_us);
"""
# Not in the schema: there are files of this version without it, and a gateway that does not know it has no use for it.
_REVOKED: Final = "CREATE TABLE IF NOT EXISTS revoked (token TEXT PRIMARY KEY, until_s INTEGER NOT NULL) WITHOUT ROWID"
_FIND: Final = "SELECT request, token, entry, mark, at_us FROM ledger WHERE request = ?"
_SINCE: Final = """
SELECT request, token, entry, mark, at_us FROM ledger
WHERE at_us >= ?1 AND (?2 IS NULL OR token = ?2 OR token GLOB ?2 || '.*') ORDER BY at_us, id
"""
_TRIM: Final = """
DELETE FROM ledger WHERE id IN (
    SELECT id FROM (SELECT id, at_us FROM ledger ORDER BY id LIMIT ?)
    WHERE at_us < ? OR id <= (SELECT max(id) FROM ledger) - ?
)
"""

_log = logging.getLogger("gateway.store")


class StateFile:
    """A `Journal` in a file.

    Args:
        path: Where it is, or is to be made.
    """

    __slots__ = ("_db", "_forgotten", "_is_lost", "_lock", "_path", "_until_trim", "keeps_sums")

    def __init__(self, path: str) -> None:
        # As it is found now, whatever the working directory is later; a process that comes by a link meets this lock.
        self._path = os.path.realpath(path)
        self.keeps_sums = True
        self._lock = -1
        self._db: sqlite3.Connection | None = None
        self._is_lost = False
        self._forgotten: list[int] = []
        self._until_trim = TRIM_EVERY

    def begin(self) -> Known:
        """Take the lock, make the file if there is none, and read it.

        Raises:
            StoreUnavailable: Another process has it, or it is no state file, or it cannot be read or written.
        """
        try:
            self._take_lock()
            if not Path(self._path).exists():
                self._make()
            self._db = db = sqlite3.connect(self._path, isolation_level=None, timeout=BUSY_S)
            _check(db)  # before anything is changed: it may be somebody else's
            _use_wal(db, self._path)
            return self._read()
        except (OSError, sqlite3.Error, ValueError, LookupError, TypeError) as error:
            self.end()
            reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
            if isinstance(error, LookupError):
                reason = f"it is damaged, or a time zone is not known here: {error}"
            raise StoreUnavailable(f"STATE_FILE: {self._path!r} cannot be used: {reason}") from None

    def assume(self, known: Known, lines: Iterable[Line]) -> None:
        """See `Journal`."""
        rows = {account.row: account for account in known.accounts}
        emptied = ("DELETE FROM held", "DELETE FROM spent")
        statements: list[tuple[str, Sequence[object]]] = [(one, ()) for one in (_REVOKED, *emptied)]
        statements += [("DELETE FROM budget WHERE id = ?", (row,)) for row in self._rows() if row not in rows]
        for account in known.accounts:
            statements += [_spend(account, segment, atoms) for segment, atoms in account.spent.items()]
        statements.append(("DELETE FROM assumed", ()))
        for request, one in known.assumed.items():
            kept = [(account.row, account.assumed.get(request)) for account in one.accounts]
            atoms = " ".join(f"{row}:{was.atoms}:{was.segment}" for row, was in kept if was is not None)
            statements.append(("INSERT INTO assumed VALUES (?, ?, ?, ?)", (request, one.token, one.text, atoms)))
        statements += [_write_line(line) for line in lines]
        self._write(statements)

    def reserve(self, request: str, reservation: Reservation, atoms: Sequence[int]) -> None:
        """See `Journal`."""
        accounts = reservation.accounts
        new = {account.key: account for account in accounts if not account.row}
        if new:
            self._enter(new.values())
        told = " ".join([f"{account.row}:{amount}" for account, amount in zip(accounts, atoms, strict=True)])
        values = (request, reservation.token, reservation.text, told)
        self._write([("INSERT INTO held VALUES (?, ?, ?, ?)", values)])

    def settle(self, request: str, sums: Sequence[tuple[Account, Segments]], line: Line | None) -> None:
        """See `Journal`."""
        statements: list[tuple[str, Sequence[object]]] = [("DELETE FROM held WHERE request = ?", (request,))]
        if any(request in account.assumed for account, _ in sums) or not sums:
            statements.append(("DELETE FROM assumed WHERE request = ?", (request,)))
        for account, segments in sums:
            spent = account.spent
            for segment, atoms in segments.items():
                statements.append(_spend(account, segment, atoms))
                if segment not in spent:
                    values = (account.row, next(iter(spent), segment))
                    statements.append(("DELETE FROM spent WHERE budget = ? AND segment < ?", values))
        if line is None:
            statements.append(("DELETE FROM ledger WHERE request = ?", (request,)))
        else:
            statements.append(_write_line(line))
            self._until_trim -= 1
            if self._until_trim <= 0:
                statements.append((_TRIM, (2 * TRIM_EVERY, line.at_us - MAX_AGE_US, MAX_LINES)))
        self._write(statements)
        if self._until_trim <= 0:
            self._until_trim = TRIM_EVERY

    def forget(self, account: Account) -> None:
        """See `Journal`. It is deleted when another is entered."""
        if account.row:
            self._forgotten.append(account.row)

    def line(self, request: str) -> Line | None:
        """See `Journal`."""
        try:
            found = self._open_db().execute(_FIND, (request,)).fetchone()
        except sqlite3.Error as error:
            raise self._loss(error) from None
        return None if found is None else Line(*found)

    def reader(self, since_us: int, token: str | None, limit: int | None) -> Callable[[], list[Line]]:
        """See `Journal`. With a connection of its own: it may take a second, in which others write."""

        def read() -> list[Line]:
            try:
                with contextlib.closing(sqlite3.connect(f"file:{quoted}?mode=ro", uri=True, timeout=BUSY_S)) as db:
                    lines: list[Line] = []
                    for found in db.execute(_SINCE, (since_us, token)):
                        line = Line(*found)
                        if limit is not None and len(lines) >= limit and line.at_us != lines[-1].at_us:
                            break
                        lines.append(line)
                    return lines
            except sqlite3.Error as error:
                raise self._loss(error) from None

        quoted = self._path.replace("%", "%25").replace("?", "%3f").replace("#", "%23")
        return read

    def revoke(self, token: str, until_s: int) -> None:
        """See `Journal`."""
        self._write([("INSERT OR REPLACE INTO revoked VALUES (?, ?)", (token, until_s))])

    def revoked(self, now_s: int) -> dict[str, int]:
        """See `Journal`."""
        self._write([("DELETE FROM revoked WHERE until_s <= ?", (now_s,))])
        try:
            return dict(self._open_db().execute("SELECT token, until_s FROM revoked"))
        except sqlite3.Error as error:
            raise self._loss(error) from None

    def check(self) -> None:
        """See `Journal`."""
        if self._is_lost:
            self._write([(f"PRAGMA user_version = {_VERSION}", ())])

    def end(self) -> None:
        """Close the file, then give the lock back."""
        db, self._db = self._db, None
        if db is not None:
            with contextlib.suppress(sqlite3.Error):  # what was written stays written
                db.close()
        lock, self._lock = self._lock, -1
        if lock >= 0:
            os.close(lock)

    def _take_lock(self) -> None:
        self._lock = os.open(f"{self._path}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(
                "another gateway uses it; each needs a file of its own, or all of them REDIS_URL"
            ) from None

    def _make(self) -> None:
        """Make it under another name: whoever finds the file finds all of it, or it has been damaged since."""
        for stale in ("-wal", "-shm", ".new"):
            Path(f"{self._path}{stale}").unlink(missing_ok=True)
        made = Path(f"{self._path}.new")
        os.close(os.open(made, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))
        with contextlib.closing(sqlite3.connect(made, isolation_level=None)) as db:
            _use_wal(db, self._path)
            db.executescript(f"BEGIN;{_SCHEMA}COMMIT;")
        made.rename(self._path)

    def _read(self) -> Known:
        db = self._open_db()
        accounts: dict[int, Account] = {}
        for row, key, unit, calendar, window_us, zone in db.execute("SELECT * FROM budget"):
            budget = Budget(unit=unit, amount=1, calendar=calendar, window_us=window_us, zone=zone)
            accounts[row] = account = Account(key, budget)
            account.row = row
        for row, segment, atoms in db.execute("SELECT * FROM spent ORDER BY budget, segment"):
            accounts[row].spent[segment] = atoms
            accounts[row].settled += atoms
        open_ = {request: _reservation(accounts, request, *rest) for request, *rest in db.execute("SELECT * FROM held")}
        # What the ledger no longer has is of no interest any more.
        known = "SELECT * FROM assumed WHERE request IN (SELECT request FROM ledger WHERE mark = 'assumed')"
        assumed = {request: _reservation(accounts, request, *rest) for request, *rest in db.execute(known)}
        return Known(list(accounts.values()), open_, assumed)

    def _rows(self) -> list[int]:
        return [row for (row,) in self._open_db().execute("SELECT id FROM budget")]

    def _enter(self, accounts: Iterable[Account]) -> None:
        statements: list[tuple[str, Sequence[object]]] = []
        for row in self._forgotten:
            statements += [("DELETE FROM budget WHERE id = ?", (row,)), ("DELETE FROM spent WHERE budget = ?", (row,))]
        entered = list(accounts)
        for account in entered:
            one = account.budget
            values = (account.key, one.unit, one.calendar, one.window_us, one.zone)
            statements.append(
                ("INSERT INTO budget (key, unit, calendar, window_us, zone) VALUES (?, ?, ?, ?, ?)", values)
            )
        self._write(statements)
        self._forgotten.clear()
        for account in entered:
            ((account.row,),) = self._open_db().execute("SELECT id FROM budget WHERE key = ?", (account.key,))

    def _write(self, statements: Sequence[tuple[str, Sequence[Any]]]) -> None:
        """Do all of it, or none.

        Raises:
            StoreUnavailable: None of it.
        """
        db = self._open_db()
        try:
            if len(statements) == 1:
                db.execute(*statements[0])
            else:
                db.execute("BEGIN IMMEDIATE")
                for statement, values in statements:
                    db.execute(statement, values)
                db.execute("COMMIT")
        except sqlite3.Error as error:
            with contextlib.suppress(sqlite3.Error):  # SQLite has done it itself, after some errors
                db.execute("ROLLBACK")
            raise self._loss(error) from None
        if self._is_lost:
            self._is_lost = False
            _log.warning("STATE_FILE: %s can be written again", self._path)

    def _loss(self, error: sqlite3.Error) -> StoreUnavailable:
        if not self._is_lost:
            self._is_lost = True
            _log.error(
                "STATE_FILE: %s: %s. Until it can be written, requests that cost something are refused.",
                self._path,
                error,
            )
        return StoreUnavailable("The file that budgets are kept in cannot be used.")

    def _open_db(self) -> sqlite3.Connection:
        if self._db is None:
            raise StoreUnavailable("The file that budgets are kept in is closed.")
        return self._db


def _check(db: sqlite3.Connection) -> None:
    ((mark,),) = db.execute("PRAGMA application_id")
    ((version,),) = db.execute("PRAGMA user_version")
    if mark != _MARK:
        raise ValueError("it is not a gateway's state file; name another one, or move it away")
    if version != _VERSION:
        raise ValueError(f"it is of version {version}, and this gateway knows version {_VERSION}")


def _use_wal(db: sqlite3.Connection, path: str) -> None:
    db.execute("PRAGMA journal_mode = WAL")
    db.execute("PRAGMA synchronous = NORMAL")
    disk = os.statvfs(os.path.dirname(path))  # noqa: PTH120 - pathlib has no such call
    free_pages = disk.f_bavail * disk.f_frsize // PAGE_BYTES
    db.execute(f"PRAGMA wal_autocheckpoint = {max(min(WAL_PAGES, free_pages // WAL_SHARE), 1)}")


def _reservation(accounts: dict[int, Account], request: str, token: str, about: str, atoms: str) -> Reservation:
    """Read what a row of `held` or `assumed` says, and enter it in the accounts."""
    found: list[Account] = []
    for one in atoms.split():
        row, amount, *segment = (int(number) for number in one.split(":"))
        if not segment:
            found.append(accounts[row])
            accounts[row].reserve(request, amount)
        elif (account := accounts.get(row)) is not None and segment[0] in account.spent:  # else it has left the window
            found.append(account)
            account.assumed[request] = Assumed(amount, segment[0])
    return Reservation(token, about, found)


def _spend(account: Account, segment: int, atoms: int) -> tuple[str, Sequence[object]]:
    if not atoms:
        return "DELETE FROM spent WHERE budget = ? AND segment = ?", (account.row, segment)
    return "INSERT OR REPLACE INTO spent VALUES (?, ?, ?)", (account.row, segment, atoms)


def _write_line(line: Line) -> tuple[str, Sequence[object]]:
    return "INSERT OR REPLACE INTO ledger (request, token, entry, mark, at_us) VALUES (?, ?, ?, ?, ?)", (
        line.request,
        line.token,
        settled_text(line.about),
        line.mark,
        line.at_us,
    )
