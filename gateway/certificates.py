"""TLS contexts made of PEM files, and made anew when the files change."""

from __future__ import annotations

import logging
import os
import ssl
from typing import TYPE_CHECKING, Final

from gateway.stamps import stamp

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from gateway.proxy.clock import Clock
    from gateway.stamps import Stamp

LOOK_EVERY_S: Final = 5.0
_OTHERS: Final = 0o027
"""Whoever is neither the owner nor in the group has no business with a key, and the group none with changing it."""

_log = logging.getLogger("gateway")


def server_context(cert: str, key: str | None) -> ssl.SSLContext:
    """Make the context of TLS with clients.

    Args:
        cert: The path of the certificate, with those that signed it behind it.
        key: The path of its key; None: it is in the same file.

    Raises:
        ValueError: They cannot be read, or do not belong together.
    """
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    _load(context, cert, key)
    context.set_alpn_protocols(["http/1.1"])
    return context


def client_context(ca_file: str | None, cert: str | None, key: str | None) -> ssl.SSLContext:
    """Make the context of TLS with an upstream, which is always verified.

    Args:
        ca_file: The path of the trusted roots; None: the system's.
        cert: The path of the certificate to show where the upstream asks for one, as in `server_context`.
        key: The path of its key, as there.

    Raises:
        OSError: The roots cannot be read, or there is none in the file (an SSLError).
        ValueError: The certificate and its key cannot be read, or do not belong together.
    """
    context = ssl.create_default_context(cafile=ca_file)
    if cert is not None:
        _load(context, cert, key)
    context.set_alpn_protocols(["http/1.1"])
    return context


def client_files(ca_file: str | None, *shown: str | None) -> list[str]:
    """Return what `client_context` reads, of the system's roots the file and the directory."""
    system = ssl.get_default_verify_paths()
    roots = (system.cafile, system.capath) if ca_file is None else (ca_file,)
    return [path for path in (*roots, *shown) if path is not None]


def _load(context: ssl.SSLContext, cert: str, key: str | None) -> None:
    files = f"{cert!r}" if key is None else f"{cert!r} and {key!r}"
    try:
        context.load_cert_chain(cert, key, password=_no_passphrase)
    except ssl.SSLError as error:
        reason = "they do not belong together" if error.reason == "KEY_VALUES_MISMATCH" else str(error)
        raise ValueError(f"in {files} there is no certificate with its key in PEM form ({reason})") from None
    except OSError as error:  # OpenSSL does not say which of the two
        raise ValueError(f"{files} cannot be read: {error.strerror}") from None


def _no_passphrase() -> str:
    """Without it, OpenSSL would ask at the terminal."""
    raise ValueError("the key is encrypted, and nobody is there to type its passphrase")


def is_open_to_others(path: str) -> bool:
    """Whether users of this machine may read a key, or change it, who should not."""
    return bool(os.stat(path).st_mode & _OTHERS)  # noqa: PTH116 - paths are text here, as ssl takes them


class ReloadedTls:
    """A TLS context that follows its files. It is one of the clock's `Watched`.

    Args:
        what: What it is, for the log.
        files: The paths that it is made of.
        make: Makes it; raises OSError or ValueError if the files do not allow it.
        clock: Says when to look again.

    Attributes:
        context: For new connections. Those that there are keep theirs.

    Raises:
        OSError, ValueError: It cannot be made.
    """

    __slots__ = ("_clock", "_files", "_make", "_made_of", "_seen", "_what", "context", "deadline_s")

    def __init__(self, what: str, files: Sequence[str], make: Callable[[], ssl.SSLContext], clock: Clock) -> None:
        self._what = what
        self._files = files
        self._make = make
        self._clock = clock
        self._made_of = self._seen = self._look()
        self.context = make()
        self.deadline_s = clock.now_s + LOOK_EVERY_S

    def on_deadline(self) -> None:
        """See `clock.Watched`."""
        self.deadline_s = self._clock.now_s + LOOK_EVERY_S
        self.reload()

    @property
    def is_current(self) -> bool:
        """Whether the context is what the files would make now."""
        return self._look() == self._made_of

    def reload(self) -> None:
        """Read the files now, if they have changed. If they are no good, what there is stays, and the log says why."""
        seen = self._look()
        if seen == self._seen:  # a store of roots takes a tenth of a second, in which nobody is served
            return
        self._seen = seen
        try:
            self.context = self._make()
        except (OSError, ValueError) as error:
            _log.warning("%s stays as it was: %s", self._what, error)
        else:
            self._made_of = seen
            _log.info("%s was read anew: new connections use it", self._what)

    def _look(self) -> list[Stamp | None]:
        return [stamp(path) for path in self._files]
