"""The image, without a container runtime: what the Dockerfile says is done in a directory, and run as it would be.

What is left out is the base image: the interpreter is one of this machine's that any user can execute.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import pytest

from tests.e2e import fetch, request
from tests.kit.process import Program, children
from tests.kit.programs import BUILD_S, program
from tests.kit.upstream import soon

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

ROOT = Path(__file__).parents[2]
DOCKERFILE = ROOT / "Dockerfile"
IGNORED = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
PLACE = "/opt/gateway"
"""The only path that both stages know."""
ANY_USER = "12345:12345"


@dataclass
class Image:
    """A stage of the Dockerfile, as far as it has been done.

    Args:
        root: The directory that stands for `/`.
        environ: What `ENV` has set, and the base's own.
    """

    root: Path
    environ: dict[str, str]
    cwd: str = "/"
    user: str = "0:0"
    entrypoint: list[str] = field(default_factory=list)
    healthcheck: list[str] = field(default_factory=list)

    def at(self, path: str) -> Path:
        """Return where a path of the image's is here."""
        return self.root / os.path.join(self.cwd, path).lstrip("/")  # noqa: PTH118 - of the image, not of this machine

    def here(self, text: str) -> str:
        """Return a text with `PLACE` where it is here."""
        return text.replace(PLACE, f"{self.root}{PLACE}")

    def everything(self) -> dict[str, int]:
        """Return when each file and directory was changed."""
        return {str(path): path.lstat().st_mtime_ns for path in (self.root, *self.root.rglob("*"))}


def instructions() -> list[tuple[str, str]]:
    text = re.sub(r"^#.*\n", "", DOCKERFILE.read_text(encoding="utf-8"), flags=re.MULTILINE)
    lines = re.sub(r"\\\n\s*", " ", text).splitlines()
    return [(name, rest) for name, _, rest in (line.partition(" ") for line in lines if line.strip())]


def interpreter() -> str:
    """Return an interpreter that any user can execute: a developer's own may lie in a home directory."""
    for candidate in (sys.executable, "/usr/local/bin/python3", "/usr/bin/python3"):
        path = Path(candidate).resolve()
        if path.exists() and all(parent.stat().st_mode & 0o001 for parent in (path, *path.parents)):
            is_new = "import sys; sys.exit(sys.version_info < (3, 11))"
            if subprocess.run([path, "-c", is_new], check=False).returncode == 0:
                return str(path)
    return program("python3 that any user can execute", "python3")


def built(directory: Path) -> Image:
    """Do what the Dockerfile says, and return its last stage."""
    programs = directory / "base"
    programs.mkdir()
    (programs / "python").symlink_to(interpreter())
    (programs / "pip").write_text(f'#!/bin/sh\nexec {sys.executable} -m pip "$@"\n', encoding="utf-8")
    (programs / "pip").chmod(0o755)
    root = directory / "image"
    stages: dict[str, Path] = {}
    image: Image | None = None
    for name, rest in instructions():
        if name == "FROM":
            if image is not None:
                root.rename(directory / "before")
            root.mkdir()
            image = Image(root, {"PATH": f"{programs}:/usr/bin:/bin", "HOME": "/"})
            if " AS " in rest:
                stages[rest.rpartition(" AS ")[2]] = directory / "before"
            continue
        assert image is not None
        step(image, name, rest, stages)
    assert image is not None
    return image


def step(image: Image, name: str, rest: str, stages: dict[str, Path]) -> None:
    match name:
        case "WORKDIR":
            image.cwd = rest
            image.at(".").mkdir(parents=True, exist_ok=True)
        case "COPY":
            copy(image, rest.split(), stages)
        case "RUN":
            kept = {key: value for key, value in os.environ.items() if key.startswith("PIP_")}
            environ = {**kept, **image.environ, "HOME": str(image.root.parent)}
            where = image.at(".")
            subprocess.run(["sh", "-c", image.here(rest)], cwd=where, env=environ, check=True, timeout=BUILD_S)
        case "ENV":
            for setting in shlex.split(rest):
                key, _, value = setting.partition("=")
                image.environ[key] = image.here(value).replace("$PATH", image.environ["PATH"])
        case "USER":
            image.user = rest
        case "ENTRYPOINT":
            image.entrypoint = json.loads(rest)
        case "HEALTHCHECK":
            image.healthcheck = json.loads(rest.partition(" CMD ")[2])
        case _:
            assert name == "EXPOSE", f"what {name} does is not known here"


def copy(image: Image, words: list[str], stages: dict[str, Path]) -> None:
    if words[0].startswith("--from="):
        source, target = words[1:]
        # Moved, not copied: what the first stage holds besides has to be dispensable.
        image.at(target).parent.mkdir(parents=True, exist_ok=True)
        (stages[words[0].removeprefix("--from=")] / source.lstrip("/")).rename(image.at(target))
        return
    *sources, target = words
    for source in sources:
        assert f"!{source}" in IGNORED
        if (ROOT / source).is_dir():
            shutil.copytree(ROOT / source, image.at(target), ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / source, image.at(target))


@pytest.fixture(scope="module")
def image() -> Iterator[Image]:
    # Not pytest's tmp_path: nobody else may look into that.
    with tempfile.TemporaryDirectory(prefix="image-") as directory:
        Path(directory).chmod(0o755)
        made = built(Path(directory))
        for path in (made.root, *made.root.rglob("*")):
            if not path.is_symlink():
                path.chmod(path.stat().st_mode & ~0o222)
        yield made


def user_of(pid: int) -> int:
    return Path(f"/proc/{pid}").stat().st_uid


def checked(image: Image, url: str) -> subprocess.CompletedProcess[str]:
    """Do what the image's `HEALTHCHECK` does, and have told from where each module came."""
    environ = {**image.environ, "GATEWAY_LISTEN": urlsplit(url).netloc, "PYTHONVERBOSE": "1"}
    return subprocess.run(image.healthcheck, env=environ, check=False, capture_output=True, text=True)


def compiled(printed: str) -> list[str]:
    """Return the modules that a program compiled, which `PYTHONVERBOSE` has it tell: the others' files are quoted."""
    return re.findall(r"^# code object from (/.*)", printed, re.MULTILINE)


@contextlib.asynccontextmanager
async def container(image: Image, user: str, **environ: str) -> AsyncIterator[tuple[Program, int]]:
    """Run the entry point as a runtime does: by that user, as process 1, where nothing can be written.

    Yields:
        The program, and its id as it is seen from outside.
    """
    # Not a byte goes into any file, wherever that is.
    command = [program("prlimit", "util-linux"), "--fsize=0"]
    if os.geteuid() == 0:
        uid, _, gid = user.partition(":")
        command += ["unshare", "--pid", "--fork", "--kill-child"]
        command += ["setpriv", f"--reuid={uid}", f"--regid={gid}", "--clear-groups", "--no-new-privs"]
    process = await asyncio.create_subprocess_exec(
        *command,
        *image.entrypoint,
        env={**image.environ, "TARGET_API_URL": "http://127.0.0.1:9", "GATEWAY_LISTEN": "127.0.0.1:0", **environ},
        cwd=image.at("."),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    running = Program(process)
    try:
        await running.ready()
        yield running, (children(process.pid) or [process.pid])[0]
    finally:
        await running.kill()


def test_hadolint_has_nothing_to_say() -> None:
    hadolint = shutil.which("hadolint", path=str(Path(sys.executable).parent)) or program("hadolint")
    done = subprocess.run([hadolint, str(DOCKERFILE)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")


@pytest.mark.parametrize("user", [None, ANY_USER], ids=["the image's user", "any user"])
async def test_it_serves_whoever_runs_it_and_writes_nothing(image: Image, user: str | None) -> None:
    before = image.everything()
    user = user or image.user
    async with container(image, user, PYTHONVERBOSE="1") as (running, pid):
        assert user_of(pid) == int(user.partition(":")[0]) or os.geteuid()
        assert (await fetch(running.url, request("/healthz"))).status == 200
        # The client of Prometheus is loaded by now.
        assert b"gateway_requests_in_flight" in (await fetch(running.url, request("/metrics"))).content
        check = await asyncio.to_thread(checked, image, running.url)
        assert check.returncode == 0

        os.kill(pid, signal.SIGTERM)
        assert await running.ended() == 0
    assert "Traceback" not in running.printed
    assert image.everything() == before
    # Each start would, and each check, every few seconds; what compiling takes of memory is not given back either.
    assert (compiled(running.printed), compiled(check.stderr)) == ([], [])
    assert f"# code object from '{image.root}" in running.printed


async def test_a_ctrl_c_ends_it_though_a_client_is_there(image: Image) -> None:
    async with container(image, ANY_USER) as (running, pid):
        reader, writer = await soon(asyncio.open_connection(*urlsplit(running.url).netloc.split(":")))
        os.kill(pid, signal.SIGINT)
        assert await running.ended() == 0
        writer.close()
        assert await soon(reader.read()) == b""


def test_no_shell_starts_it(image: Image) -> None:
    script = shutil.which(image.entrypoint[0], path=image.environ["PATH"])
    assert script is not None
    assert Path(script).read_bytes().startswith(f"#!{image.root}{PLACE}/bin/python".encode())
    assert not (image.root / PLACE.lstrip("/") / "bin" / "pip").exists()
