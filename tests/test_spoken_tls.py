"""Which TLS a gateway speaks with its targets, from one configuration to the next."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
import trustme

from gateway.config import Config
from gateway.proxy.clock import Clock
from gateway.tls import SpokenTls
from tests.kit.script import ScriptLoop

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from gateway.config import Settings


def settings_with(ca_file: Path) -> Settings:
    return Config(target_api_url="https://api.test", target_ca_file=str(ca_file)).settings


@pytest.fixture
def clock() -> Iterator[Clock]:
    loop = ScriptLoop()
    yield Clock(loop)
    loop.close()


@pytest.fixture
def ca_file(tmp_path: Path) -> Path:
    path = tmp_path / "ca.pem"
    trustme.CA().cert_pem.write_to_path(str(path))
    return path


def test_a_configuration_that_fails_leaves_what_there_was(clock: Clock, ca_file: Path) -> None:
    tls = SpokenTls(clock)
    settings = settings_with(ca_file)
    tls.renew(settings)
    before = tls.with_target(settings.target)
    assert before is not None
    missing = replace(settings.target, ca_file=str(ca_file.with_name("missing")))
    with pytest.raises(OSError, match="No such file"):
        tls.renew(replace(settings, target=missing))
    assert tls.with_target(settings.target) is before
    assert before in clock.watched


def test_what_is_used_no_more_is_looked_at_no_more(clock: Clock, ca_file: Path, tmp_path: Path) -> None:
    tls = SpokenTls(clock)
    settings = settings_with(ca_file)
    tls.renew(settings)
    before = tls.with_target(settings.target)
    tls.renew(settings)
    assert tls.with_target(settings.target) is before
    other = tmp_path / "other.pem"
    trustme.CA().cert_pem.write_to_path(str(other))
    changed = replace(settings, target=replace(settings.target, ca_file=str(other)))
    tls.renew(changed)
    assert clock.watched == {tls.with_target(changed.target)}
