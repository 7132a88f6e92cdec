"""Programs from the system's packages that some tests run."""

from __future__ import annotations

import asyncio
import os
import shutil

import pytest

from tests.kit.upstream import soon

_PATH = os.pathsep.join((os.environ.get("PATH", os.defpath), "/usr/sbin"))


def program(name: str, package: str = "") -> str:
    """Return a program's path, or skip the test; or fail it, where nothing may be skipped.

    Args:
        name: What it is called. Daemons of Debian are in a place that is not on every user's path.
        package: Of Debian; "" where it is called the same.
    """
    found = shutil.which(name, path=_PATH)
    if found is None:
        reason = f"{name} is not installed (Debian package: {package or name})"
        if os.environ.get("GATEWAY_TESTS_NO_SKIP") == "1":
            pytest.fail(reason)
        pytest.skip(reason)
    return found


async def run(*command: str, given: bytes = b"") -> tuple[int, bytes, bytes]:
    """Run a program to its end; return its exit code and what it wrote on stdout and stderr."""
    process = await asyncio.create_subprocess_exec(
        *command, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    try:
        out, err = await soon(process.communicate(given))
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode is not None
    return process.returncode, out, err
