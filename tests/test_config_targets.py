"""`[targets.NAME]` in a file: what each table resolves to, and the one line that says what is wrong with it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from gateway.config import Config, TargetSettings, load
from gateway.config.describing import describe
from gateway.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

URL = "https://api.example.com/v1"
MAPS = 'url = "https://maps.example.com/v2"\n'
CANARY = "sk-canary-0123456789"


def from_file(folder: Path, tables: str, environ: Mapping[str, str] | None = None) -> Config:
    file = folder / "gateway.toml"
    file.write_text(f'target_api_url = "{URL}"\n{tables}', encoding="utf-8")
    return load(arguments={}, environ=environ or {}, file=file)


def only(config: Config) -> TargetSettings:
    (target,) = config.settings.targets
    return target


def refusal(folder: Path, tables: str, environ: Mapping[str, str] | None = None) -> str:
    with pytest.raises(ConfigError) as caught:
        from_file(folder, tables, environ)
    message = str(caught.value)
    assert "\n" not in message
    assert f"in {folder}/gateway.toml" in message
    assert "; it takes " in message
    assert ", e.g. " in message
    assert "canary" not in message
    return message


def test_a_target_of_little(tmp_path: Path) -> None:
    target = only(from_file(tmp_path, f"[targets.maps]\n{MAPS}"))
    (keyed,) = target.keyed
    assert (keyed.prefix, keyed.url, keyed.key_line) == (b"/maps", "https://maps.example.com/v2", None)
    assert (target.limits, target.connect_timeout_s) == ((), None)


def test_a_target_of_everything(tmp_path: Path) -> None:
    target = only(
        from_file(
            tmp_path,
            f'[targets.maps]\n{MAPS}prefix = "/geo/maps"\nkey = "{CANARY}"\nauth = "header:X-Key"\n'
            'rate_limit = "10/second,100/day;bucket"\nconcurrency_limit = "7;shadow"\n'
            'connect_timeout = "2s"\nresponse_timeout = 3\nidle_timeout = "4s"\n'
            'add_headers = { X-Team = "search" }\nremove_headers = ["X-Debug"]\n',
        )
    )
    (keyed,) = target.keyed
    assert (keyed.prefix, keyed.key_line) == (b"/geo/maps", f"X-Key: {CANARY}".encode())
    assert [policy.label for policy in target.common_limits] == ["maps-second", "maps-day", "maps-concurrency"]
    assert [(policy.quota, policy.shadow) for policy in target.common_limits][2:] == [(7, True)]
    assert (target.connect_timeout_s, target.response_timeout_s, target.idle_timeout_s) == (2, 3, 4)
    assert keyed.added == (b"X-Team: search",)
    assert keyed.removed == {b"x-team", b"x-debug"}


def test_keys_from_everywhere(tmp_path: Path) -> None:
    key_file = tmp_path / "key"
    key_file.write_text("sk-file\n", encoding="ascii")
    key_file.chmod(0o600)
    config = from_file(
        tmp_path,
        f'[targets.a]\n{MAPS}key_env = "A_KEY"\n[targets.b]\n{MAPS}key_file = "{key_file}"\n'
        f'[targets.c]\n{MAPS}keys = ["one", "two"]\n',
        {"A_KEY": "sk-env"},
    )
    lines = [[keyed.key_line for keyed in target.keyed] for target in config.settings.targets]
    assert lines == [
        [b"Authorization: Bearer sk-env"],
        [b"Authorization: Bearer sk-file"],
        [b"Authorization: Bearer one", b"Authorization: Bearer two"],
    ]


def test_as_keyword_arguments() -> None:
    config = Config(target_api_url=URL, targets={"maps": {"url": "http://maps.test", "key": "k"}})
    assert only(config).keyed[0].url == "http://maps.test"
    with pytest.raises(ConfigError, match=r"^targets\.maps\.url: is not set; it takes"):
        Config(target_api_url=URL, targets={"maps": {}})
    unset = {"prefix": None, "key": None, "auth": None, "rate_limit": None, "ca_file": None, "cost": None}
    (plain,) = Config(target_api_url=URL, targets={"maps": {"url": "https://maps.test", **unset}}).settings.targets
    assert plain.keyed[0].prefix == b"/maps"
    with pytest.raises(ConfigError, match=r"^targets\.maps\.url: is not set"):
        Config(target_api_url=URL, targets={"maps": {"url": None}})
    with pytest.raises(ConfigError, match=r"^targets\.maps\.cost\.fixed: '5' is not like"):
        Config(target_api_url=URL, targets={"maps": {"url": "https://maps.test", "cost": {"fixed": {5: 5}}}})


def test_they_are_shown_without_their_secrets(tmp_path: Path) -> None:
    config = from_file(
        tmp_path,
        f'[targets.maps]\n{MAPS}keys = ["{CANARY}", "{CANARY}-2"]\nrate_limit = "5/second"\n'
        f'concurrency_limit = 6\nadd_headers = {{ X-Other-Key = "{CANARY}" }}\nremove_headers = ["X-Debug"]\n',
    )
    shown = dict(describe(config))
    assert shown["targets.maps.prefix"] == "/maps"
    assert shown["targets.maps.key"] == "set (20 characters), set (22 characters)"
    assert shown["targets.maps.rate_limit"] == "5 in 1 s"
    assert shown["targets.maps.concurrency_limit"] == "6 in flight"
    assert shown["targets.maps.add_headers"] == "X-Other-Key"
    assert "canary" not in str(shown) + repr(config) + repr(config.settings)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("http://maps.test/v1", "https://maps.test/v1"),
        ("https://maps.test/v1/", "http://MAPS.test:80/v1"),
        ("https://maps.test", "https://maps.test:443"),
        ("http://maps.test:443", "https://maps.test"),
    ],
)
def test_who_has_the_urls_of_another_in_the_proxy_form_is_told_of(one: str, other: str) -> None:
    tables = {"a": {"url": one}, "b": {"url": "https://b.test"}, "c": {"url": other}, "d": {"url": URL}}
    shown = dict(describe(Config(target_api_url=URL, targets=tables)))
    told = {name: word.partition(" ")[2] for name, word in shown.items() if name.endswith(".url")}
    first = "(in the proxy form, {} comes first: they have the same URLs)"
    assert told == {
        "targets.a.url": "",
        "targets.b.url": "",
        "targets.c.url": first.format("targets.a"),
        "targets.d.url": first.format("TARGET_API_URL"),
    }


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("http://maps.test/v1", "https://maps.test/v2"),
        ("http://maps.test/v1", "http://maps.test/v1/x"),
        ("http://maps.test:8080", "https://maps.test"),
        ("http://maps.test:8443", "https://maps.test:8080"),
    ],
)
def test_who_has_urls_of_his_own_is_not(one: str, other: str) -> None:
    shown = dict(describe(Config(target_api_url=URL, targets={"a": {"url": one}, "b": {"url": other}})))
    assert (shown["targets.a.url"], shown["targets.b.url"]) == (one, other)


@pytest.mark.parametrize(
    ("tables", "place", "reason"),
    [
        ("[targets.maps]\nurl = 1", "targets.maps.url", "http:// or https://"),
        ("[targets.maps]\nurl = true", "targets.maps.url", "is a boolean"),
        ("[targets.maps]\nkey = 'k'", "targets.maps.url", "is not set"),
        (f"[targets.maps]\n{MAPS}ulr = 'x'", "targets.maps.ulr", "did you mean url?"),
        (f"[targets.maps]\n{MAPS}rate-limit = '1'", "targets.maps.rate-limit", "did you mean rate_limit?"),
        (f"[targets.maps]\n{MAPS}colour = 'x'", "targets.maps.colour", "is not a setting of a target"),
        ("[targets]\nmaps = 'x'", "targets.maps", "is not a table"),
        (f"[targets.Maps]\n{MAPS}", "targets.Maps", "is not a name"),
        (f"[targets.api]\n{MAPS}", "targets.api", "is not a name"),
        (f"[targets.global]\n{MAPS}", "targets.global", "is not a name"),
        (f"[targets.maps]\n{MAPS}prefix = '/api'", "targets.maps.prefix", "TARGET_API_URL"),
        (
            f"[targets.a]\n{MAPS}prefix = '/x'\n[targets.b]\n{MAPS}prefix = '/x'",
            "targets.b.prefix",
            "/x is that of targets.a already",
        ),
        *(
            (f"[targets.maps]\n{MAPS}prefix = '{prefix}'", "targets.maps.prefix", "would hide the endpoint")
            for prefix in (
                *("/register", "/usage", "/healthz", "/readyz", "/metrics", "/admin", "/tokens"),
                *("/admin/x", "/tokens/x"),
            )
        ),
        (f"[targets.usage]\n{MAPS}", "targets.usage.prefix", "would hide the endpoint"),
        *(
            (f"[targets.maps]\n{MAPS}prefix = '{prefix}'", "targets.maps.prefix", "is not a path")
            for prefix in ("", "/", "maps", "/maps/", "//maps", "/a/../b", "/a?b", "/%61")
        ),
        (f"[targets.maps]\n{MAPS}prefix = ['/a']", "targets.maps.prefix", "is an array"),
        (f"[targets.maps]\n{MAPS}auth = 'digest'", "targets.maps.auth", "not a way to send a key"),
        (f"[targets.maps]\n{MAPS}auth = 'header:x-api-key: canary'", "targets.maps.auth", "and no value"),
        (f"[targets.maps]\n{MAPS}auth = 'query:key=canary'", "targets.maps.auth", "and no value"),
        (f"[targets.maps]\n{MAPS}key = 'canary canary'", "targets.maps.key", "has a space"),
        (f"[targets.maps]\n{MAPS}key = 7", "targets.maps.key", "is a number"),
        (f"[targets.maps]\n{MAPS}key = 'canary'\nkeys = ['canary']", "targets.maps.keys", "together with key"),
        (f"[targets.maps]\n{MAPS}keys = []", "targets.maps.keys", "one or more"),
        (f"[targets.maps]\n{MAPS}keys = ['canary', 'canary']", "targets.maps.keys", "twice"),
        (f"[targets.maps]\n{MAPS}key_env = 'NO_SUCH'", "targets.maps.key_env", "has no 'NO_SUCH'"),
        (f"[targets.maps]\n{MAPS}key_env = 'sk-canary'", "targets.maps.key_env", "has no such variable"),
        (f"[targets.maps]\n{MAPS}key_file = 'sk-canary'", "targets.maps.key_file", "the file cannot be read"),
        (f"[targets.maps]\n{MAPS}key_file = '/no/such'", "targets.maps.key_file", "No such file"),
        (f"[targets.maps]\n{MAPS}key_file = '/'", "targets.maps.key_file", "is not a file"),
        (f"[targets.maps]\n{MAPS}ca_file = '/no/such'", "targets.maps.ca_file", "cannot be read: No such file"),
        (f"[targets.maps]\n{MAPS}rate_limit = 'many'", "targets.maps.rate_limit", "is not a whole number"),
        (f"[targets.maps]\n{MAPS}concurrency_limit = 0", "targets.maps.concurrency_limit", "1 to 1000000 requests"),
        (f"[targets.maps]\n{MAPS}concurrency_limit = true", "targets.maps.concurrency_limit", "is a boolean"),
        (f"[targets.maps]\n{MAPS}concurrency_limit = '1/s'", "targets.maps.concurrency_limit", "not a whole number"),
        (f"[targets.maps]\n{MAPS}connect_timeout = 'soon'", "targets.maps.connect_timeout", "is not a duration"),
        (f"[targets.maps]\n{MAPS}add_headers = 1", "targets.maps.add_headers", "not a table"),
        (f"[targets.maps]\n{MAPS}add_headers = {{ Host = 'x' }}", "targets.maps.add_headers", "'Host' is no field"),
        (f"[targets.maps]\n{MAPS}add_headers = {{ 'a b' = 'x' }}", "targets.maps.add_headers", "'a b' is no field"),
        (
            f'[targets.maps]\n{MAPS}add_headers = {{ X-A = "canary\\r\\nX-B: c" }}',
            "targets.maps.add_headers",
            "X-A (masked) is not printable",
        ),
        (
            f"[targets.maps]\n{MAPS}add_headers = {{ authorization = 'canary' }}",
            "targets.maps.add_headers",
            "that of the key",
        ),
        (f"[targets.maps]\n{MAPS}remove_headers = 'X'", "targets.maps.remove_headers", "not an array"),
        (f"[targets.maps]\n{MAPS}remove_headers = ['te']", "targets.maps.remove_headers", "'te' is no field"),
        ("[targets.maps]\nurl = 'http://127.0.0.1:3000/api'", "targets.maps.url", "is this gateway itself"),
        ("[targets.maps]\nurl = 'http://u:canary@maps.test'", "targets.maps.url", "the key belongs in key"),
    ],
)
def test_tables_that_are_refused(tmp_path: Path, tables: str, place: str, reason: str) -> None:
    message = refusal(tmp_path, tables)
    assert message.startswith(f"{place} in ")
    assert reason in message


@pytest.mark.parametrize("mode", [0o644, 0o604, 0o620, 0o602])
def test_a_key_file_that_others_may_read_or_write(tmp_path: Path, mode: int) -> None:
    key_file = tmp_path / "key"
    key_file.write_text("canary", encoding="ascii")
    key_file.chmod(mode)
    message = refusal(tmp_path, f"[targets.maps]\n{MAPS}key_file = '{key_file}'")
    assert f"has mode {mode:o}" in message
    assert "chmod 600" in message


@pytest.mark.parametrize("content", [b"", b"\n", b"two\nlines", b"\xc3\xa4", b"x" * 70_000])
def test_a_key_file_without_a_key(tmp_path: Path, content: bytes) -> None:
    key_file = tmp_path / "key"
    key_file.write_bytes(content)
    key_file.chmod(0o600)
    assert refusal(tmp_path, f"[targets.maps]\n{MAPS}key_file = '{key_file}'").startswith("targets.maps.key_file in ")
