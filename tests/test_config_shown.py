"""What a configuration says of itself: everything but its secrets."""

from __future__ import annotations

import dataclasses
import re
from typing import TYPE_CHECKING

import pytest

from gateway.config import SETTINGS, Config
from gateway.config.describing import describe
from gateway.errors import ConfigError

if TYPE_CHECKING:
    from pathlib import Path

URL = "https://api.example.com/v1"


def config(**changes: object) -> Config:
    return Config(**{"target_api_url": URL, **changes})  # type: ignore[arg-type]


CANARIES = {
    "target_api_key": "sk-canary-target-0123456789",
    "redis_url": "redis://canary-user:canary-redis-passphrase@redis.example:6380/2",
    "token_secret": "canary-token-secret-0123456789abcdef,canary-token-former-0123456789abcdef",
    "admin_key": "canary-admin-key-0123456789abcdef",
}


def assert_no_canary(text: str) -> None:
    for secret in re.findall(r"[\w-]*canary[\w-]*", " ".join(CANARIES.values())):
        for start in range(len(secret) - 7):
            assert secret[start : start + 8] not in text
    assert "canary" not in text
    assert "sk-" not in text


def test_describe_says_everything_and_no_secret() -> None:
    described = dict(describe(config(**CANARIES)))
    assert list(described) == [setting.environment for setting in SETTINGS.values()]
    assert_no_canary("\n".join(described.values()))
    assert described["TARGET_API_KEY"] == "set (27 characters)"
    assert described["TOKEN_SECRET"] == "set (36 characters), then set (36 characters)"
    assert described["REDIS_URL"] == "redis://redis.example:6380/2, password set (23 characters)"
    assert described["TARGET_API_URL"] == URL
    assert dict(describe(config(target_api_key=10**20)))["TARGET_API_KEY"] == "set (21 characters)"  # a file's number
    assert described["RATE_LIMIT"] == "60 in 60 s"
    assert described["CONNECT_TIMEOUT"] == "5.0 s"
    assert described["MAX_BODY"] == "no limit"
    assert described["ON_STORE_LOSS"] == "deny"  # REDIS_URL is among them
    assert dict(describe(config(on_store_loss="allow")))["ON_STORE_LOSS"] == "allow (no matter without REDIS_URL)"


def test_limits_of_all_kinds_are_described() -> None:
    described = dict(
        describe(config(rate_limit="10/second;bucket,60;shadow", concurrency_limit="5", rate_limit_mode="shadow"))
    )
    assert described["RATE_LIMIT"] == "10 at once, then one each 0.1 s, 60 in 60 s (shadow: never refuses)"
    assert described["CONCURRENCY_LIMIT"] == "5 in flight"
    assert described["GLOBAL_CONCURRENCY_LIMIT"] == "no limit"
    assert described["RATE_LIMIT_MODE"] == "shadow"


def test_repr_holds_no_secret() -> None:
    found = config(**CANARIES)
    assert_no_canary(repr(found))
    assert_no_canary(repr(found.settings))


@pytest.mark.parametrize("name", list(CANARIES))
def test_a_secret_in_the_wrong_place_is_not_repeated(name: str) -> None:
    for setting in ("target_api_url", "target_api_auth", "redis_url", "token_secret", "admin_key"):
        with pytest.raises(ConfigError) as caught:
            config(**{setting: CANARIES[name] + "\x01"})
        assert_no_canary(str(caught.value))


def test_a_redis_address_is_shown_without_its_credentials() -> None:
    shown = [
        dict(describe(config(redis_url=url)))["REDIS_URL"]
        for url in ("redis://:can%3fary@h/1", "unix://user:canary@/run/redis.sock?db=3", "rediss://[::1]")
    ]
    shown += [
        dict(describe(config(redis_url=url)))["REDIS_URL"]
        for url in ("redis+sentinel://me:canary@a,b:7/main/1", "redis+cluster://:canary@a,b:7")
    ]
    assert shown == [
        "redis://h:6379/1, password set (7 characters)",
        "unix:///run/redis.sock, password set (6 characters)",
        "rediss://[::1]:6379/0, password not set",
        "redis+sentinel://a:26379,b:7/main/1, password set (6 characters)",
        "redis+cluster://a:6379,b:7, password set (6 characters)",
    ]


def test_the_table_and_the_fields_are_the_same_settings_in_the_same_order() -> None:
    fields = [field.name for field in dataclasses.fields(Config) if field.init]
    assert fields == [*SETTINGS, "targets", "prices"]


def test_every_example_in_a_message_would_work(tmp_path: Path) -> None:
    for name, setting in SETTINGS.items():
        of_a_file = "PEM" in setting.takes or name == "state_file"
        if setting.example and not setting.example.startswith("$(") and not of_a_file:
            lasting = {} if name == "redis_url" else {"state_file": str(tmp_path / "state.db")}
            config(**{**lasting, name: setting.example})


def test_a_config_can_be_changed_and_is_validated_again() -> None:
    assert dataclasses.replace(config(), rate_limit="7").settings.limits[0].quota == 7
    with pytest.raises(ConfigError):
        dataclasses.replace(config(), rate_limit="many")
