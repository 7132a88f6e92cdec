"""Configuration: what resolves to what, what is refused with which words, and that no secret is ever shown."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import trustme

from gateway import cpus
from gateway.config import Address, Config, UnixAddress, load
from gateway.errors import ConfigError

if TYPE_CHECKING:
    from pathlib import Path

URL = "https://api.example.com/v1"
SECRET, OTHER_SECRET = "0123456789abcdef" * 2, "fedcba9876543210" * 2


def config(**changes: object) -> Config:
    return Config(**{"target_api_url": URL, **changes})  # type: ignore[arg-type]


def refusal(**changes: object) -> str:
    with pytest.raises(ConfigError) as caught:
        config(**changes)
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 1000
    assert message.startswith(caught.value.setting + ": ")
    assert "; it takes " in message
    assert ", e.g. " in message
    return message


def from_environment(**environ: str) -> Config:
    return load(arguments={}, environ={"TARGET_API_URL": URL, **environ}, file=None)


def from_file(path: Path, text: str) -> Config:
    file = path / "gateway.toml"
    file.write_text(text, encoding="utf-8")
    return load(arguments={}, environ={}, file=file)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("5s", 5),
        ("100ms", 0.1),
        ("2m", 120),
        ("1h", 3600),
        ("30d", 2592000),
        ("7", 7),
        (7, 7),
        (0.5, 0.5),
        ("1.5s", 1.5),
    ],
)
def test_durations(text: str | float, seconds: float) -> None:
    assert config(connect_timeout=text).settings.connect_timeout_s == pytest.approx(seconds)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "5 s",
        "\u0665s",
        True,
        ["5s"],
        None,
        5j,
        *["s", "-5s", "+5s", "1e3", "5S", "5min", "0", "0ms", "inf", "nan", "4000d"],
    ],
)
def test_durations_that_are_refused(text: object) -> None:
    refusal(connect_timeout=text)


def test_a_drain_of_zero_is_a_stop_at_once() -> None:
    assert config(drain_timeout="0").settings.drain_timeout_s == 0


def test_token_lifetimes() -> None:
    assert config().settings.token_ttl_s == 2592000
    assert config(token_ttl="0").settings.token_ttl_s is None
    assert config(token_ttl=60).settings.token_ttl_s == 60
    assert "whole number" in refusal(token_ttl="100ms")


@pytest.mark.parametrize(
    ("text", "size"),
    [
        (10485760, 10485760),
        ("10485760", 10485760),
        ("10MB", 10**7),
        ("10MiB", 10 * 2**20),
        ("1GiB", 2**30),
        ("8kb", 8000),
    ],
)
def test_sizes(text: str | int, size: int) -> None:
    assert config(max_body=text).settings.max_body == size


@pytest.mark.parametrize("text", ["", "0", "-1", "10M", "10 MB", "1.5MB", "MB", "1TB", True, 1.5])
def test_sizes_that_are_refused(text: object) -> None:
    refusal(max_body=text)


@pytest.mark.parametrize(
    ("text", "addresses"),
    [
        ("127.0.0.1:3000", [("127.0.0.1", 3000)]),
        ("0.0.0.0:80, [::]:80", [("0.0.0.0", 80), ("::", 80)]),
        ("localhost:0,localhost:0", [("localhost", 0), ("localhost", 0)]),
        ("[fe80::1%eth0]:65535", [("fe80::1%eth0", 65535)]),
    ],
)
def test_addresses(text: str, addresses: list[tuple[str, int]]) -> None:
    assert config(gateway_listen=text).settings.listen == tuple(Address(*address) for address in addresses)


@pytest.mark.parametrize(
    ("text", "addresses"),
    [
        ("unix:/run/gateway.sock", [UnixAddress("/run/gateway.sock", 0o600)]),
        ("unix:/run/a.sock;mode=0660,[::1]:1", [UnixAddress("/run/a.sock", 0o660), Address("::1", 1)]),
        ("unix:/a b;mode=777", [UnixAddress("/a b", 0o777)]),
    ],
)
def test_unix_sockets(text: str, addresses: list[Address | UnixAddress]) -> None:
    assert config(gateway_listen=text).settings.listen == tuple(addresses)


@pytest.mark.parametrize(
    "text",
    [
        "",
        *[
            "unix:",
            "unix:gateway.sock",
            "unix:@abstract",
            "unix://run/",
            "unix:/",
            "unix:/a\nb",
            "unix:/" + "a" * 107,
            "unix:/" + "é" * 54,
            "unix:/a;",
            "unix:/a;mode=",
            "unix:/a;mode=888",
            "unix:/a;mode=1777",
            "unix:/a;user=www",
            "unix:/a,unix:/a;mode=660",
            "3000",
            ":3000",
            "*:3000",
            "127.0.0.1",
            "::1:3000",
            "[::1]",
            "[localhost]:1",
            "h:65536",
            "h:x",
            "h:1,",
            "h:1,h:1",
            "h:-1",
        ],
    ],
)
def test_addresses_that_are_refused(text: str) -> None:
    refusal(gateway_listen=text)


def test_secrets() -> None:
    settings = config(token_secret=f"{SECRET}, {OTHER_SECRET}", admin_key=SECRET).settings
    assert settings.token_secrets == (SECRET.encode(), OTHER_SECRET.encode())
    assert settings.admin_key == SECRET.encode()


@pytest.mark.parametrize(
    "text", ["", "hunter2", SECRET[:31], f"{SECRET},", f"{SECRET},{SECRET}", SECRET + "é", SECRET + "\n" + SECRET]
)
def test_secrets_that_are_refused(text: str) -> None:
    message = refusal(token_secret=text)
    assert "hunter" not in message
    assert SECRET[:8] not in message


def test_an_admin_key_is_one_secret() -> None:
    assert "too short" in refusal(admin_key="hunter2")
    assert "spaces" in refusal(admin_key=SECRET + " " + SECRET)


def test_limits() -> None:
    settings = config(rate_limit="10/second,60", global_rate_limit="1000/hour").settings
    assert [(policy.quota, policy.window_s, policy.shared) for policy in settings.limits] == [
        (10, 1, False),
        (60, 60, False),
    ]
    assert [(policy.quota, policy.window_s, policy.shared) for policy in settings.global_limits] == [(1000, 3600, True)]
    assert config(rate_limit=60).settings.limits == config().settings.limits
    assert config().settings.global_limits == ()


@pytest.mark.parametrize("text", ["", "many", "0", "-1", "60/fortnight", "60,,60", True, "a" * 5000])
def test_limits_that_are_refused(text: object) -> None:
    assert refusal(rate_limit=text).startswith("rate_limit: ")


def test_other_choices() -> None:
    assert config(log_level="DEBUG").settings.log_level == "debug"
    refusal(log_level="loud")
    assert config(upstream_pool="1").settings.upstream_pool == 1
    for text in ("0", "65536", "x", ""):
        refusal(upstream_pool=text)


@pytest.mark.parametrize(
    ("setting", "text"),
    [
        ("on_store_loss", "maybe"),
        *(("gateway_workers", text) for text in ("-1", "0", "257", "two")),
        ("access_log", "xml"),
    ],
)
def test_what_is_none_of_its_values_is_refused(setting: str, text: str) -> None:
    assert refusal(**{setting: text}).startswith(f"{setting}: ")


def test_several_workers_need_a_store_that_they_share() -> None:
    assert config(gateway_workers="1").settings.workers == 1
    assert config(gateway_workers=4, redis_url="redis://127.0.0.1").settings.workers == 4
    message = refusal(gateway_workers=4)
    assert message.startswith("gateway_workers: 4 ")
    assert "REDIS_URL=redis://" in message


def test_auto_is_a_worker_for_each_usable_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpus, "usable_cpus", lambda: 3)
    assert config(gateway_workers="auto", redis_url="redis://127.0.0.1").settings.workers == 3
    assert refusal(gateway_workers="auto").startswith("gateway_workers: 3 ")
    monkeypatch.setattr(cpus, "usable_cpus", lambda: 1)
    assert config(gateway_workers="auto").settings.workers == 1


def test_limits_of_all_kinds() -> None:
    settings = config(
        rate_limit="10/second;bucket,60/minute",
        global_rate_limit="1000/minute;shadow",
        concurrency_limit=5,
        global_concurrency_limit="200;shadow",
        rate_limit_mode="enforce",
    ).settings
    assert [(policy.label, policy.kind.value) for policy in settings.limits] == [
        ("second", "bucket"),
        ("minute", "window"),
    ]
    assert [(policy.label, policy.quota, policy.shadow) for policy in settings.common_limits] == [
        ("concurrency", 5, False),
        ("global-minute", 1000, True),
        ("global-concurrency", 200, True),
    ]
    assert not settings.shadow
    assert config().settings.common_limits == ()
    assert config(rate_limit_mode="shadow").settings.shadow


@pytest.mark.parametrize(
    ("setting", "value", "says"),
    [
        ("rate_limit", "60;leaky", "no known mode"),
        ("rate_limit", "60/minute,60s", "whole number"),
        ("concurrency_limit", "0", "1 to 1000000"),
        ("concurrency_limit", "5/minute", "whole number"),
        ("global_concurrency_limit", "5;bucket", "not 'shadow'"),
        ("rate_limit_mode", "off", "neither enforce nor shadow"),
    ],
)
def test_limits_that_are_none(setting: str, value: str, says: str) -> None:
    message = refusal(**{setting: value})
    assert message.startswith(f"{setting}: ")
    assert says in message
    assert message.count("e.g.") == 1


def test_who_decides_on_store_loss() -> None:
    assert config().settings.on_store_loss == "deny"
    for policy in ("deny", "local", "allow"):
        assert config(on_store_loss=policy).settings.on_store_loss == policy
    for text in ("", "Deny", "open"):
        assert "it takes deny, local or allow" in refusal(on_store_loss=text)


def test_redis_urls() -> None:
    assert config().settings.redis is None
    assert config(redis_url="redis://127.0.0.1:6379/0").settings.redis is not None
    for url in ("redis+sentinel://one:26379,two/main/0", "redis+cluster://127.0.0.1:7000"):
        assert str(config(redis_url=url).settings.redis).startswith(url.partition("one")[0])
    message = refusal(redis_url="http://user:hunter2@127.0.0.1")
    assert "hunter2" not in message


def test_the_roots_for_redis_are_looked_at_when_the_url_is_read(tmp_path: Path) -> None:
    file = tmp_path / "ca.pem"
    assert "cannot be read: No such file" in refusal(redis_url=f"rediss://h?ca_file={file}")
    file.write_text("no certificate", encoding="ascii")
    assert "no certificate in PEM form" in refusal(redis_url=f"rediss://:hunter2@h?ca_file={file}")
    trustme.CA().cert_pem.write_to_path(str(file))
    redis = config(redis_url=f"rediss+cluster://h?ca_file={file}").settings.redis
    assert redis is not None
    assert redis.ca_file == str(file)


def test_command_line_beats_environment_beats_file_beats_default(tmp_path: Path) -> None:
    file = tmp_path / "gateway.toml"
    file.write_text('rate_limit = 1\nmax_body = "1kB"\nlog_level = "error"\n', encoding="utf-8")
    found = load(
        arguments={"rate_limit": "3"},
        environ={"TARGET_API_URL": URL, "RATE_LIMIT": "2", "MAX_BODY": "2kB", "LOG_LEVEL": ""},
        file=file,
    )
    assert (found.rate_limit, found.max_body, found.log_level) == ("3", "2kB", "error")
    assert found.connect_timeout == "5s"


def test_default_addresses_differ_for_programs_and_for_libraries() -> None:
    assert from_environment().gateway_listen == "127.0.0.1:3000"
    assert config().gateway_listen == "127.0.0.1:0"


def test_no_target_says_what_to_set_and_what_needs_nothing() -> None:
    with pytest.raises(ConfigError, match=r"TARGET_API_URL: is not set; .*TARGET_API_URL=https://.*run demo"):
        load(arguments={}, environ={"TARGET_API_URL": ""}, file=None)


def test_errors_name_the_setting_as_the_user_wrote_it(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^RATE_LIMIT: .*, e\.g\. RATE_LIMIT=60/minute$"):
        from_environment(RATE_LIMIT="many")
    with pytest.raises(ConfigError, match=r"^--rate-limit: .*, e\.g\. --rate-limit 60/minute$"):
        load(arguments={"rate_limit": "many"}, environ={"TARGET_API_URL": URL}, file=None)
    with pytest.raises(ConfigError, match=r'^rate_limit in .*gateway\.toml: .*, e\.g\. rate_limit = "60/minute"$'):
        from_file(tmp_path, f'target_api_url = "{URL}"\nrate_limit = "many"\n')
    with pytest.raises(ConfigError, match=r'e\.g\. BUDGET="5 USD/day"$'):  # a shell would cut it at the space
        from_environment(BUDGET="5 USD")
    with pytest.raises(ConfigError, match=r'e\.g\. ADMIN_KEY="\$\(openssl rand -hex 32\)"$'):
        from_environment(ADMIN_KEY="short")
    with pytest.raises(ConfigError, match=r'e\.g\. admin_key = "WHAT openssl rand -hex 32 PRINTS"$'):
        from_file(tmp_path, 'admin_key = "short"\ntarget_api_url = "https://a.test"\n')


def test_a_whole_file(tmp_path: Path) -> None:
    found = from_file(
        tmp_path,
        f'\ufefftarget_api_url = "{URL}"\nrate_limit = 60\nconnect_timeout = 2.5\nupstream_pool = 8\nmax_body = 1000\n',
    ).settings
    assert (found.connect_timeout_s, found.upstream_pool, found.max_body) == (2.5, 8, 1000)


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ('rate_limits = "60"', "did you mean rate_limit?"),
        ('RATE_LIMIT = "60"', "did you mean rate_limit?"),
        ('rate-limit = "60"', "did you mean rate_limit?"),
        ("colour = 1", "colour in"),
        ("target = 1", "did you mean targets?"),
        ('"\\u001b[31m\\n\\u0085" = 1', r"\x1b[31m\n\x85 in"),  # nothing that a terminal would obey
        ('[targets."\\n"]\nurl = "https://a.test"', r"targets.\n in"),
        ("upstream_pool = " + "9" * 5000, "is not TOML"),
        ("targets = 1", "targets in"),
        ("[server]\nport = 1", "server in"),
        ("rate_limit = true", "is a boolean"),
        ('rate_limit = ["60"]', "is an array"),
        ("[rate_limit]\nquota = 60", "is a table"),
        ("rate_limit = 2026-01-01", "is a date"),
        ("rate_limit =", "is not TOML"),
        ("rate_limit = " + "[" * 5000, "is nested too deeply"),
        ("concurrency_limit = 0", "1 to 1000000"),
    ],
)
def test_files_that_are_refused(tmp_path: Path, line: str, reason: str) -> None:
    with pytest.raises(ConfigError) as caught:
        from_file(tmp_path, f'target_api_url = "{URL}"\n{line}\n')
    assert reason in str(caught.value)
    assert "gateway.toml" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_files_that_cannot_be_read_are_refused(tmp_path: Path) -> None:
    binary = tmp_path / "binary.toml"
    binary.write_bytes(b"\xff\xfe")
    for file, reason in ((tmp_path / "none.toml", "No such file"), (tmp_path, "directory"), (binary, "UTF-8")):
        with pytest.raises(ConfigError, match=reason):
            load(arguments={}, environ={}, file=file)
