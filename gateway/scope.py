"""What a token may be used for: targets, methods and paths. Pure.

Paths are compared as they were sent, byte for byte, under the target's prefix. Nothing is decoded: what some server
could read as another path than these bytes spell is refused, not resolved.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final
from urllib.parse import unquote_to_bytes

from gateway.errors import OutOfScope

if TYPE_CHECKING:
    from collections.abc import Sequence

MAX_NAMES: Final = 16
"""In each list of a token."""
MAX_PATH_CHARACTERS: Final = 256

_METHOD: Final = re.compile(r"[A-Z0-9!#$%&'*+.^_`|~-]{1,32}")
_TARGET: Final = re.compile(r"[A-Za-z0-9_-]{1,64}")
# RFC 3986's pchar and '/'. What it leaves out, no client may send in a path either.
_PATH: Final = re.compile(r"/(?:[A-Za-z0-9._~!$&'()*+,;=:@/-]|%[0-9A-Fa-f]{2})*")
# Empty segments and backslashes; dot segments, also with what servers cut off behind them ("..;x", "..%20"); escaped
# dots, separators and ends of strings, also as %u002e, or in UTF-8 of more bytes than they need (RFC 3629 §10).
_AMBIGUOUS: Final = re.compile(
    rb"(?i)//|\\|/\.{1,2}(?![A-Z0-9._~-])|%(?:u00)?(?:2e|2f|5c|00)|%(?:c0|e0%80)%a[ef]|%(?:c1|e0%81)%9c"
)
# What servers read another method or path from, CGI's spelling included: behind a proxy, they trust it to drop them.
# gunicorn and a well-known recipe for Flask take what is in the last one away from the path.
_METHOD_FIELD: Final = re.compile(rb"(?i)\r\nx[-_](?:http[-_])?method(?:[-_]override)?:[ \t]*([^\r]*)")
_PATH_FIELD: Final = re.compile(rb"(?i)\r\n(?:x[-_](?:original|rewrite)[-_]url|(?:x[-_])?script[-_]name):")
# Symfony, Laravel and Express read it there (RFC 3986 §3.4), PHP's spellings included; in a form's body, nobody looks.
_METHOD_MEMBER: Final = re.compile(rb"(?i)(?:\A|[&;])[ +]*[_.[]method=([^&;]*)")
_OTHER_FIELD: Final = re.compile(rb"%b|%b" % (_METHOD_FIELD.pattern, _PATH_FIELD.pattern.removeprefix(b"(?i)")))
_MAX_ESCAPES: Final = 3
"""How often something may be escaped within itself ("%2541"): servers in a row have decoded twice."""


class Scope:
    """What a token allows; a list that is None allows all of its kind.

    Args:
        targets: Names of targets.
        methods: As they are sent; case matters (RFC 9110 §9.1), and `GET` does not bring `HEAD` along.
        paths: Prefixes of whole segments: `/v1/chat` allows `/v1/chat` and `/v1/chat/x`, not `/v1/chatx`; one that ends
            with `/` allows only what is below it.

    Raises:
        ValueError: An entry cannot be one of its kind, or a list is empty or too long.
    """

    __slots__ = ("_exact", "_methods", "_starts", "methods", "paths", "targets")

    def __init__(
        self,
        targets: Sequence[str] | None = None,
        methods: Sequence[str] | None = None,
        paths: Sequence[str] | None = None,
    ) -> None:
        _check("target", targets, _TARGET, "of letters, digits, '-' and '_', e.g. api")
        _check("method", methods, _METHOD, "in capital letters, e.g. POST")
        _check("path", paths, _PATH, "as a URL has it, from its '/' on, e.g. /v1/chat")
        for path in paths or ():
            if len(path) > MAX_PATH_CHARACTERS:
                raise ValueError(f"a path has at most {MAX_PATH_CHARACTERS} characters")
            if is_ambiguous(path.encode()):
                raise ValueError("a path has no dot segments, empty segments or escaped '/', '\\' and '.'")
        self.targets = None if targets is None else tuple(targets)
        self.methods = None if methods is None else tuple(methods)
        self.paths = None if paths is None else tuple(paths)
        self._methods = None if methods is None else frozenset(method.encode() for method in methods)
        self._exact = frozenset(path.encode() for path in paths or ())
        self._starts = tuple(path.encode() if path.endswith("/") else path.encode() + b"/" for path in paths or ())

    @property
    def is_narrow(self) -> bool:
        """Whether there is anything that it does not allow."""
        return any(names is not None for names in (self.targets, self.methods, self.paths))

    def check(self, target: str, method: bytes, path: bytes) -> None:
        """Raise unless a request may be made.

        Args:
            target: The target's name.
            method: As sent.
            path: As sent, what follows the target's prefix; a query may be behind it.

        Raises:
            OutOfScope: It may not; it names what is allowed, and nothing that was sent.
        """
        if self.targets is not None and target not in self.targets:
            raise OutOfScope(f"This token is not for this target, only for {_listed(self.targets)}.")
        if self._methods is not None:
            if method not in self._methods:
                raise OutOfScope(f"This token does not allow this method, only {_listed(self.methods)}.")
            if not self._methods.issuperset(_methods_in(path.partition(b"?")[2])):
                raise OutOfScope(f"This token allows only {_listed(self.methods)}, and the query names another.")
        if self.paths is not None:
            path = path.partition(b"?")[0] or b"/"
            if is_ambiguous(path):
                raise OutOfScope(
                    "This token allows only certain paths, and this one could be read in two ways: "
                    "it has dot segments, empty segments or escaped separators."
                )
            if path not in self._exact and not path.startswith(self._starts):
                raise OutOfScope(f"This token does not allow this path, only {_listed(self.paths)} and what is below.")

    def check_fields(self, fields: bytes) -> None:
        """Raise if a request has a field from which some servers would read a method or a path that is not allowed.

        Args:
            fields: All field lines, each with CRLF before it.

        Raises:
            OutOfScope: It has one.
        """
        if self._methods is not None:
            for found in _METHOD_FIELD.finditer(fields):
                if found[1].rstrip(b" \t") not in self._methods:
                    raise OutOfScope(f"This token allows only {_listed(self.methods)}, and a field names another.")
        if self.paths is not None and _PATH_FIELD.search(fields):
            raise OutOfScope("This token allows only certain paths, and a field names one to servers that heed it.")

    def narrowed(self, to: Scope) -> Scope:
        """Return a scope within this one; what is None in the other stays as it is.

        Raises:
            ValueError: It would allow something that this one does not.
        """
        within = Scope(
            self.targets if to.targets is None else to.targets,
            self.methods if to.methods is None else to.methods,
            self.paths if to.paths is None else to.paths,
        )
        _check_within("targets", within.targets, self.targets)
        _check_within("methods", within.methods, self.methods)
        if self.paths is not None:
            for path in within.paths or ():
                plain = path.encode()
                if plain not in self._exact and not plain.startswith(self._starts):
                    raise ValueError(f"the token it is made from allows only {_listed(self.paths)}")
        return within


def is_ambiguous(path: bytes) -> bool:
    """Whether some server could read another path, however often it decodes it."""
    for _ in range(_MAX_ESCAPES):
        if _AMBIGUOUS.search(path):
            return True
        plain = path if b"%" not in path else unquote_to_bytes(path)
        if plain == path:
            return False
        path = plain
    return True


def _methods_in(query: bytes) -> list[bytes]:
    """Return what some servers would read in a query as the method."""
    return _METHOD_MEMBER.findall(unquote_to_bytes(query)) if query else []


def queries_another(query: bytes) -> bool:
    """Whether some servers would read another method than the request's in its query."""
    return bool(_methods_in(query))


def names_another(lines: Sequence[bytes]) -> bool:
    """Whether a field is there from which some servers would read another method or path than those of the request.

    Args:
        lines: The request's field lines; an element may hold several, joined.
    """
    fields = (b"\r\n" + b"\r\n".join(lines)).lower()
    # Nearly all have none of these words, and that is soon seen.
    is_suspect = b"method" in fields or b"url:" in fields or b"script" in fields
    return is_suspect and _OTHER_FIELD.search(fields) is not None


def _check(kind: str, names: Sequence[str] | None, pattern: re.Pattern[str], takes: str) -> None:
    if names is None:
        return
    if not 1 <= len(names) <= MAX_NAMES:
        raise ValueError(f"a token allows 1 to {MAX_NAMES} {kind}s, or says nothing of them")
    if any(pattern.fullmatch(name) is None for name in names):
        raise ValueError(f"a {kind} is {takes}")


def _check_within(kind: str, names: Sequence[str] | None, allowed: Sequence[str] | None) -> None:
    if allowed is not None and not set(names or ()) <= set(allowed):
        raise ValueError(f"the token it is made from allows only the {kind} {_listed(allowed)}")


def _listed(names: Sequence[str] | None) -> str:
    return ", ".join(names or ())


EVERYTHING: Final = Scope()
"""What a token allows that says nothing."""
