"""The stores that all pass the same tests, each server started once for a module."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.kit.redis import RedisServer, running_redis
from tests.kit.stores import KINDS, Subject, subject

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator


@pytest.fixture(scope="module", params=KINDS)
def subject_of_kind(request: pytest.FixtureRequest) -> Iterator[Subject]:
    with subject(request.param) as one:
        yield one


@pytest.fixture
async def under_test(subject_of_kind: Subject) -> AsyncIterator[Subject]:
    """A store of each kind; what is connected ends with the test, for so does its event loop."""
    yield subject_of_kind
    await subject_of_kind.close()


@pytest.fixture
def server() -> Iterator[RedisServer]:
    """A Redis server that a test may break as it likes."""
    with running_redis() as one:
        yield one
