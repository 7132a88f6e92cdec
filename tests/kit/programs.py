"""Programs from the system's packages that some tests run."""

from __future__ import annotations

import asyncio
import functools
import os
import shutil
import subprocess
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

BUILD_S = 300.0
"""For a build with a cold cache, on a machine that does ten other things."""

PROGRAM_S = 60.0
"""For a program: to start an SDK of three thousand modules has taken 17 s beside other tests."""

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


@functools.cache
def node_has_fetch() -> bool:
    """Tell whether there is a Node with fetch: it is too large to install, so its tests are there only where it is."""
    node = shutil.which("node", path=_PATH)
    return node is not None and subprocess.run([node, "-e", "fetch"], capture_output=True, check=False).returncode == 0


def has_go() -> bool:
    """Tell whether there is a Go; as with Node, tests of it are there only where it is."""
    return shutil.which("go", path=_PATH) is not None


def go_build(source: Path, into: Path) -> str:
    """Build a Go program of one file and return its path. With a cold cache that takes half a minute."""
    built = into / source.stem
    # It needs nothing but Go's own library, without C; nothing is to be fetched, no toolchain either.
    environ = {**os.environ, "CGO_ENABLED": "0", "GOPROXY": "off", "GOTOOLCHAIN": "local", "GOFLAGS": ""}
    # Unoptimised: it is built in two thirds of the time, and runs for an instant.
    options = ("-gcflags=all=-N -l", "-ldflags=-s -w", "-o", str(built))
    subprocess.run([program("go"), "build", *options, str(source)], env=environ, check=True, timeout=BUILD_S)
    return str(built)


async def run(*command: str, given: bytes = b"", env: Mapping[str, str] | None = None) -> tuple[int, bytes, bytes]:
    """Run a program to its end; return its exit code and what it wrote on stdout and stderr.

    Args:
        command: Its path or name, and its arguments.
        given: On its stdin.
        env: Its whole environment; None: this process's.
    """
    process = await asyncio.create_subprocess_exec(
        *command,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env=env,
    )
    try:
        async with asyncio.timeout(PROGRAM_S):
            out, err = await process.communicate(given)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode is not None
    return process.returncode, out, err
