"""The scripts of a checkout, and the files that packaging reads."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SCRIPTS = ["tools/run", "tools/test", ".ci/run"]


def run(script: Path, *arguments: str, cwd: Path, **environ: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(script), *arguments],
        cwd=cwd,
        env={"PATH": os.environ["PATH"], "HOME": os.environ.get("HOME", "/"), **environ},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A checkout whose .venv is whole as far as tools/run can tell: its `gateway` is this interpreter's."""
    root = tmp_path / "a checkout"
    shutil.copytree(ROOT / "tools", root / "tools")
    shutil.copy(ROOT / "pyproject.toml", root)
    programs = root / ".venv" / "bin"
    programs.mkdir(parents=True)
    (programs / "python").symlink_to(sys.executable)
    gateway = programs / "gateway"
    gateway.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m gateway "$@"\n', encoding="utf-8")
    gateway.chmod(0o755)
    mark_installed(root)
    return root


def mark_installed(root: Path) -> None:
    fingerprint = 'cd -P -- "$1" && . ./tools/venv.sh && fingerprint | tee .venv/.installed-test >.venv/.installed-run'
    subprocess.run(["sh", "-c", fingerprint, "sh", str(root)], check=True)


@pytest.fixture
def programs(tmp_path: Path) -> Path:
    """A whole path: what the scripts themselves need, and an apt-get that writes down what it is asked for."""
    directory = tmp_path / "programs"
    directory.mkdir()
    for name in ("sh", "dirname", "cksum", "cat", "env", "flock"):
        if found := shutil.which(name):
            (directory / name).symlink_to(found)
    stub(directory / "id", "echo 0")
    stub(directory / "apt-get", f'echo "$*" >>"{tmp_path}/asked"')
    return directory


def stub(path: Path, command: str) -> None:
    path.write_text(f"#!/bin/sh\n{command}\n", encoding="utf-8")
    path.chmod(0o755)


@pytest.mark.parametrize("script", [*SCRIPTS, "tools/venv.sh"])
def test_scripts_are_posix_shell(script: str) -> None:
    subprocess.run(["sh", "-n", str(ROOT / script)], check=True)


@pytest.mark.parametrize("script", SCRIPTS)
def test_scripts_can_be_executed(script: str) -> None:
    assert os.access(ROOT / script, os.X_OK)


def test_run_without_a_target_says_what_to_set(checkout: Path) -> None:
    result = run(checkout / "tools" / "run", cwd=Path("/"), PYTHONPATH=str(ROOT))
    assert (result.returncode, result.stdout) == (2, "")
    assert "TARGET_API_URL: is not set" in result.stderr
    assert "./tools/run demo" in result.stderr
    assert result.stderr.count("\n") == 1


def test_run_keeps_arguments_and_directory(checkout: Path, tmp_path: Path) -> None:
    (tmp_path / "my gateway.toml").write_text('target_api_url = "http://127.0.0.1:1"\n', encoding="utf-8")
    result = run(
        checkout / "tools" / "run", "check-config", "--config", "my gateway.toml", cwd=tmp_path, PYTHONPATH=str(ROOT)
    )
    assert (result.returncode, result.stderr) == (0, "")
    assert "http://127.0.0.1:1" in result.stdout


@pytest.mark.parametrize("change", ["pyproject", "python", "stamp"])
def test_a_stale_or_half_made_environment_is_not_used(checkout: Path, change: str) -> None:
    if change == "pyproject":
        with (checkout / "pyproject.toml").open("a", encoding="utf-8") as pyproject:
            pyproject.write("\n# changed\n")
    elif change == "python":
        (checkout / ".venv" / "bin" / "python").unlink()
    else:
        (checkout / ".venv" / ".installed-run").unlink()
    tools = checkout / "no python"
    tools.mkdir()
    for name in ("sh", "dirname", "cksum", "cat", "flock"):
        if found := shutil.which(name):
            (tools / name).symlink_to(found)
    result = run(checkout / "tools" / "run", "demo", cwd=checkout, PATH=str(tools))
    assert result.returncode == 1
    assert "no Python 3.11 or newer found" in result.stderr


def test_what_the_tests_drive_is_installed_where_it_is_missing(checkout: Path, programs: Path, tmp_path: Path) -> None:
    result = run(checkout / "tools" / "test", "--version", cwd=checkout, PATH=str(programs))
    assert (result.returncode, result.stdout[:7]) == (0, "pytest ")
    update, install = (tmp_path / "asked").read_text(encoding="utf-8").splitlines()
    assert update == "update -qq"
    packages = set(install.split(" ")) - {"install", "-y", "-qq", "--no-install-recommends"}
    # It is looked for beside the path, too, and may be there.
    assert packages | {"nginx"} == {"redis-server", "curl", "valgrind", "nginx", "wrk", "apache2-utils", "chromium"}


def test_nothing_is_installed_where_all_is_there(checkout: Path, programs: Path, tmp_path: Path) -> None:
    for name in ("redis-server", "curl", "valgrind", "nginx", "wrk", "ab", "chromium"):
        stub(programs / name, "exit 1")
    result = run(checkout / "tools" / "test", "--version", cwd=checkout, PATH=str(programs))
    assert (result.returncode, result.stdout[:7]) == (0, "pytest ")
    assert not (tmp_path / "asked").exists()


def test_what_cannot_be_installed_is_said_and_the_tests_run(checkout: Path, programs: Path) -> None:
    stub(programs / "apt-get", "exit 100")
    result = run(checkout / "tools" / "test", "--version", cwd=checkout, PATH=str(programs))
    assert (result.returncode, result.stdout[:7]) == (0, "pytest ")
    assert re.search(
        r"^test: could not install .* apache2-utils chromium: the tests that need it are skipped$", result.stderr, re.M
    )


def test_a_skip_fails_the_run_where_none_is_allowed(tmp_path: Path) -> None:
    shutil.copy(ROOT / "tests" / "conftest.py", tmp_path)
    (tmp_path / "test_it.py").write_text(
        "import pytest\n\ndef test_good(): pass\n\n@pytest.mark.skip\ndef test_not_run(): pass\n", encoding="utf-8"
    )
    for no_skip, code in (("1", 1), ("", 0)):
        result = subprocess.run(
            [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--rootdir", str(tmp_path), str(tmp_path)],
            env={**os.environ, "GATEWAY_TESTS_NO_SKIP": no_skip},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )
        assert result.returncode == code
        assert "skipped: test_it.py::test_not_run" in result.stdout


def test_the_image_runs_without_root_and_without_a_shell() -> None:
    dockerfile = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    final = dockerfile[dockerfile.rindex("\nFROM ") :]
    assert re.search(r"^USER \d+:\d+$", final, re.MULTILINE)
    assert 'ENTRYPOINT ["gateway"]' in final
    assert 'CMD ["gateway", "healthcheck"]' in final
    assert "RUN " not in final
    copied = re.findall(r"^COPY (?!--from)(.*) \S+$", dockerfile, re.MULTILINE)
    for name in " ".join(copied).split():
        assert (ROOT / name).exists(), name
        assert f"!{name}" in (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
