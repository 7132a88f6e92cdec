from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tests.kit.playbook import Playbook

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@pytest.fixture
def make_play() -> Iterator[Callable[..., Playbook]]:
    plays: list[Playbook] = []

    def make(**config: Any) -> Playbook:
        plays.append(Playbook(**config))
        return plays[-1]

    yield make
    for play in plays:
        play.close()


@pytest.fixture
def play(make_play: Callable[..., Playbook]) -> Playbook:
    return make_play()
