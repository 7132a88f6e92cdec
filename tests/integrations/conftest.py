"""What both integrations are tried with."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.kit.upstream import Upstream

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


@pytest.fixture
async def upstream() -> AsyncIterator[Upstream]:
    async with Upstream() as running:
        yield running
