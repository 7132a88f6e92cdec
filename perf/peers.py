"""What a user would run instead of the gateway, and the mock upstream behind all of them."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

from perf.lab import ROOT, Lab, Server, which
from perf.upstream import ANSWER, BIG_BYTES

if TYPE_CHECKING:
    from collections.abc import Callable

NGINX: Final = "nginx"
HAPROXY: Final = "HAProxy"
NGINX_LUA: Final = "nginx + Lua + Redis"
EVENT_UPSTREAM: Final = "mock upstream (perf/upstream.py)"

_MODULES: Final = Path("/usr/lib/nginx/modules")
_LUA: Final = Path("/usr/share/lua/5.1")
_LUA_NEEDS: Final = {
    _MODULES / "ngx_http_lua_module.so": "libnginx-mod-http-lua",
    _LUA / "nginx" / "redis.lua": "lua-nginx-redis",
    _LUA / "resty" / "core.lua": "lua-resty-core",
    _LUA / "resty" / "lrucache.lua": "lua-resty-lrucache",
}


def start_upstream(lab: Lab) -> Server:
    """Start the mock upstream: nginx if there is one, else our own."""
    nginx = which("nginx")
    if nginx is None:
        return start_event_upstream(lab)
    with (lab.directory / "big.bin").open("wb") as big:
        # A hole: it is read from memory, and takes no place on the disk.
        big.truncate(BIG_BYTES)
    return lab.start("mock upstream (nginx)", _nginx(nginx), conf="upstream.nginx.conf", answer=ANSWER)


def start_event_upstream(lab: Lab) -> Server:
    """Start the mock upstream that stamps the events it sends."""
    return lab.start(EVENT_UPSTREAM, [sys.executable, "-m", "perf.upstream", "@{port}"], cwd=ROOT)


def missing() -> dict[str, str]:
    """Say which peers cannot be measured here: by name, the Debian packages they need."""
    found = {}
    if which("nginx") is None:
        found[NGINX] = "nginx"
    if which("haproxy") is None:
        found[HAPROXY] = "haproxy"
    lacking = [package for path, package in _LUA_NEEDS.items() if not path.exists()]
    lacking += [program for program in ("nginx", "redis-server") if which(program) is None]
    if lacking:
        found[NGINX_LUA] = " ".join(lacking)
    return found


def peers(lab: Lab, redis: Server | None) -> dict[str, Callable[[Server], Server]]:
    """Return what starts each peer that is installed, given its upstream."""
    lacking = missing()
    nginx, haproxy = which("nginx"), which("haproxy")
    found: dict[str, Callable[[Server], Server]] = {}
    if redis is not None and nginx is not None and NGINX_LUA not in lacking:
        port = redis.port
        found[NGINX_LUA] = lambda upstream: lab.start(
            NGINX_LUA,
            _nginx(nginx),
            conf="nginx-lua-redis.conf",
            upstream=upstream.port,
            redis=port,
            modules=_MODULES,
            lua=_LUA,
        )
    if haproxy is not None:
        command = [haproxy, "-db", "-f", "@{conf}"]

        def start_haproxy(upstream: Server) -> Server:
            # Without it, HAProxy keeps events back until the kernel's timer of 200 ms; plain answers do without it.
            wish = "option http-no-delay" if upstream.name == EVENT_UPSTREAM else ""
            return lab.start(HAPROXY, command, conf="haproxy.cfg", upstream=upstream.port, for_events=wish)

        found[HAPROXY] = start_haproxy
    if nginx is not None:
        found[NGINX] = lambda upstream: lab.start(NGINX, _nginx(nginx), conf="nginx.conf", upstream=upstream.port)
    return found


def _nginx(binary: str) -> list[str]:
    return [binary, "-p", "@{directory}", "-e", "stderr", "-c", "@{conf}"]
