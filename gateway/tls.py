"""The TLS that a gateway speaks, with its clients and with its targets, as its settings say and its files are."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

# `gateway.certificates` is imported only where there is TLS: ssl takes 10 ms to load.
if TYPE_CHECKING:
    from gateway.certificates import ReloadedTls
    from gateway.config import KeyPair, Settings, Target
    from gateway.proxy.clock import Clock

    _MadeOf = tuple[str | None, str | None, str | None]
    """The CA file, None for the system's roots; the certificate to show, if any; its key, if in a file of its own."""

_log = logging.getLogger("gateway")


class SpokenTls:
    """Makes what TLS is needed, once for all targets that need the same, and has the clock look at its files.

    Args:
        clock: The process's coarse time.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._own: ReloadedTls | None = None
        self._of_targets: dict[_MadeOf, ReloadedTls] = {}

    def with_clients(self, pair: KeyPair | None) -> ReloadedTls | None:
        """Make the TLS of clients on TCP, once; None, plain HTTP, where there is no certificate.

        Raises:
            ValueError: The certificate and its key cannot be read, or do not belong together.
        """
        if pair is None:
            return None
        from gateway.certificates import ReloadedTls, server_context

        self._own = tls = ReloadedTls("the certificate", pair.files, lambda: server_context(*pair), self._clock)
        _check_mode(pair)
        self._clock.watched.add(tls)
        return tls

    def renew(self, settings: Settings) -> None:
        """Make ready for the targets of a configuration. If that fails, all stays as it was.

        Raises:
            OSError: A CA file cannot be read, or has no certificate in it (an SSLError).
            ValueError: A certificate to show and its key cannot be read, or do not belong together.
        """
        before = self._of_targets
        made: dict[_MadeOf, ReloadedTls] = {}
        for target in (settings.target, *(others.keyed[0] for others in settings.targets)):
            of = _made_of(target)
            if not target.tls or of in made:
                continue
            kept = before.get(of)
            if kept is not None and kept.is_current:
                made[of] = kept
            else:
                made[of] = self._make(of)
                _check_mode(target.client)
        self._of_targets = made
        self._clock.watched.difference_update(before.values())
        self._clock.watched.update(made.values())

    def with_target(self, target: Target) -> ReloadedTls | None:
        """Return the TLS of a target of the last configuration; None for plain HTTP."""
        return self._of_targets[_made_of(target)] if target.tls else None

    def reload(self) -> None:
        """Read all files that have changed, now; see `ReloadedTls.reload`."""
        for tls in (self._own, *self._of_targets.values()):
            if tls is not None:
                tls.reload()

    def _make(self, of: _MadeOf) -> ReloadedTls:
        from gateway.certificates import ReloadedTls, client_context, client_files

        files = client_files(*of)
        what = f"the TLS with upstreams ({', '.join(files) or 'without roots'})"
        return ReloadedTls(what, files, lambda: client_context(*of), self._clock)


def _made_of(target: Target) -> _MadeOf:
    return (target.ca_file, *(target.client or (None, None)))


def _check_mode(pair: KeyPair | None) -> None:
    from gateway.certificates import is_open_to_others

    if pair is not None and is_open_to_others(pair.key_file):
        _log.warning("%s, a private key, is open to other users of this machine: chmod 600", pair.key_file)
