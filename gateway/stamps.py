"""What tells, without reading a file, that it is another one by now."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

Stamp = tuple[int, int, int, int, int]
"""When it was changed last, its content alone and with its mode and owner; its size, its inode, its device."""


def stamp(path: Path | str) -> Stamp | None:
    """Return what changes with a file; None if it is not there."""
    try:
        found = os.stat(path)  # noqa: PTH116 - links are followed: what is mounted as a secret is changed by a link
    except (OSError, ValueError):  # or no file can have such a name
        return None
    return found.st_mtime_ns, found.st_ctime_ns, found.st_size, found.st_ino, found.st_dev
