"""The page at `/dashboard`, and the files that it loads. None holds anything secret: that comes from `/admin/usage`.

What the browser runs is in the files beside this one; `page.js` is where to begin. This module is imported, and reads
them, at the first request: a gateway whose page nobody opens has them neither in memory nor in its start.
"""

from __future__ import annotations

import hashlib
from importlib import resources
from typing import Final

from gateway.errors import NotFound

_TYPES: Final = {
    "page.css": "text/css; charset=utf-8",
    "uPlot.min.css": "text/css; charset=utf-8",
    "page.js": "text/javascript; charset=utf-8",
    "charts.js": "text/javascript; charset=utf-8",
    "feed.js": "text/javascript; charset=utf-8",
    "format.js": "text/javascript; charset=utf-8",
    "history.js": "text/javascript; charset=utf-8",
    "tables.js": "text/javascript; charset=utf-8",
    "uPlot.iife.min.js": "text/javascript; charset=utf-8",
}
# Everything is this gateway's own: nothing inline, no other host, in nobody's frame, and no form that is sent.
_POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; "
    "base-uri 'none'; frame-ancestors 'none'; form-action 'none'; require-trusted-types-for 'script'"
)
_FIELDS: Final = (
    ("Content-Security-Policy", _POLICY),
    ("X-Content-Type-Options", "nosniff"),
    # The gateway itself is told, which is how it knows its own page where there is no ADMIN_KEY.
    ("Referrer-Policy", "same-origin"),
    ("Cross-Origin-Resource-Policy", "same-origin"),
)
_FOLDER: Final = resources.files("gateway.dashboard")
_FILES: Final = {name: _FOLDER.joinpath(name).read_bytes() for name in _TYPES}
VERSION: Final = hashlib.sha256(b"".join(_FILES.values())).hexdigest()[:16]
"""Is in the path of each file, so that a browser may keep it for good and still gets those of a newer gateway."""
_PAGE: Final = _FOLDER.joinpath("index.html").read_bytes().replace(b"VERSION", VERSION.encode())


def answer(path: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
    """Return status, fields and content.

    Args:
        path: `/dashboard`, or something below it, without a query.

    Raises:
        NotFound: There is no such file, or it is another version's.
    """
    if path == b"/dashboard":
        fields = [("Content-Type", "text/html; charset=utf-8"), ("Cache-Control", "no-store")]
        return 200, [*fields, *_FIELDS], _PAGE
    if path == b"/dashboard/":  # the page's addresses are relative, so that it may stand behind another path
        return 308, [("Location", "../dashboard"), ("Cache-Control", "no-store"), *_FIELDS], b""
    version, _, name = path.removeprefix(b"/dashboard/").decode("latin-1").partition("/")
    if version != VERSION or name not in _FILES:
        raise NotFound("The dashboard has no such file. After an update of the gateway, load the page again.")
    fields = [("Content-Type", _TYPES[name]), ("Cache-Control", "public, max-age=31536000, immutable")]
    return 200, [*fields, *_FIELDS], _FILES[name]
