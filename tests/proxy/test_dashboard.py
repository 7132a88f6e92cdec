"""`/dashboard`, over the wire: what is served, with which fields, and when its page needs no key."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from gateway import dashboard
from tests.proxy.test_endpoints import ADMIN, ADMIN_KEY, ELSEWHERE, PAGES, ask

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.kit.playbook import Client, Playbook
    from tests.kit.wire import Message

ROOT = Path(__file__).parents[2]
MOST_BYTES = 150_000
OWN_PAGE = (b"Sec-Fetch-Site: same-origin", b"Referer: http://127.0.0.1:3000/dashboard")


def got(client: Client, target: bytes, method: bytes = b"GET") -> Message:
    ask(client, method, target)
    return client.answer(method)


def loaded(page: Message) -> list[bytes]:
    """The files that the page names."""
    return [b"/" + path for path in re.findall(rb'(?:src|href)="(dashboard/[^"]*)"', page.body)]


def test_the_page_and_its_files_are_served_to_anybody(make_play: Callable[..., Playbook]) -> None:
    client = make_play(admin_key=ADMIN_KEY.decode()).connect(ELSEWHERE)
    page = got(client, b"/dashboard")
    assert (page.status, page.value(b"content-type")) == (200, b"text/html; charset=utf-8")
    assert page.value(b"cache-control") == b"no-store"
    bodies = [page.body]
    for path in loaded(page):
        answer = got(client, path)
        kind = b"text/css; charset=utf-8" if path.endswith(b".css") else b"text/javascript; charset=utf-8"
        assert (answer.status, answer.value(b"content-type")) == (200, kind), path
        # Its path changes with what is in it, so it may be kept.
        assert answer.value(b"cache-control") == b"public, max-age=31536000, immutable"
        bodies.append(answer.body)
    assert len(bodies) == 10
    assert sum(len(body) for body in bodies) < MOST_BYTES


def test_the_page_names_every_file_that_its_scripts_import(play: Playbook) -> None:
    paths = loaded(got(play.client, b"/dashboard"))
    imports = {name for path in paths for name in re.findall(rb'from "\./(.*?)"', got(play.client, path).body)}
    assert imports < {path.rpartition(b"/")[2] for path in paths}
    assert len(imports) == 5


def test_nothing_is_loaded_from_elsewhere_and_nothing_is_inline(play: Playbook) -> None:
    page = got(play.client, b"/dashboard")
    assert page.value(b"content-security-policy") == (
        b"default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; "
        b"base-uri 'none'; frame-ancestors 'none'; form-action 'none'; require-trusted-types-for 'script'"
    )
    assert page.value(b"x-content-type-options") == b"nosniff"
    assert not re.search(rb"<style|\bstyle=|<script>|\bon[a-z]+=", page.body)
    for path in loaded(page):
        answer = got(play.client, path)
        assert answer.value(b"x-content-type-options") == b"nosniff"
        assert answer.value(b"content-security-policy") == page.value(b"content-security-policy")


def test_head_is_get_without_the_content(play: Playbook) -> None:
    whole = got(play.client, b"/dashboard")
    head = got(play.client, b"/dashboard", b"HEAD")
    assert (head.status, head.body) == (200, b"")
    assert head.value(b"content-length") == b"%d" % len(whole.body)


@pytest.mark.parametrize("method", [b"POST", b"DELETE", b"OPTIONS"])
def test_other_methods_are_refused(play: Playbook, method: bytes) -> None:
    ask(play.client, method, b"/dashboard")
    play.client.problem(405, "method_not_allowed")


@pytest.mark.parametrize(
    "name",
    [b"index.html", b"__init__.py", b"../endpoints.py", b"..%2f..%2fendpoints.py", b"uPlot.LICENSE", b"", b"page.js/"],
)
def test_nothing_else_of_the_package_is_served(play: Playbook, name: bytes) -> None:
    ask(play.client, b"GET", b"/dashboard/" + dashboard.VERSION.encode() + b"/" + name)
    play.client.problem(404, "not_found")


@pytest.mark.parametrize("path", [b"/dashboard/page.js", b"/dashboard/0123456789abcdef/page.js", b"/dashboards"])
def test_files_of_another_version_are_not_there(play: Playbook, path: bytes) -> None:
    ask(play.client, b"GET", path)
    play.client.problem(404, "not_found")


def test_a_slash_behind_it_leads_to_the_page(play: Playbook) -> None:
    answer = got(play.client, b"/dashboard/")
    assert (answer.status, answer.value(b"location")) == (308, b"../dashboard")
    assert got(play.client, b"/dashboard?from=mail").status == 200


# --- the page asks ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "origin", [b"http://127.0.0.1:3000", b"http://localhost:3000", b"http://[::1]:3000", b"https://localhost"]
)
def test_without_an_admin_key_the_page_of_this_machine_is_answered(play: Playbook, origin: bytes) -> None:
    own = (b"Origin: " + origin, b"sec-fetch-site: same-origin", b"Referer: " + origin + b"/dashboard")
    ask(play.client, b"GET", b"/admin/tokens", *own)
    assert play.client.answer().status == 200
    token_id = play.admission.authenticate(play.token, play.context.clock.wall_s).id
    ask(play.client, b"DELETE", b"/admin/tokens/" + token_id.encode(), *own)
    assert json.loads(play.client.answer().body) == {"id": token_id, "revoked": True}


@pytest.mark.parametrize(
    "lines",
    [
        *((line,) for line in PAGES),
        (b"Sec-Fetch-Site: same-origin", b"Referer: http://rebound.example:3000/dashboard"),
        (b"Sec-Fetch-Site: same-origin", b"Referer: http://localhost.rebound.example/dashboard"),
        (b"Sec-Fetch-Site: same-origin", b"Referer: http://localhost@rebound.example/"),
        (b"Sec-Fetch-Site: same-origin", b"Referer: http://192.168.0.1/127.0.0.1/"),
        (b"Sec-Fetch-Site: same-site", b"Referer: http://127.0.0.1:8080/dashboard"),
        (b"Sec-Fetch-Site: cross-site", b"Referer: http://127.0.0.1:3000/dashboard"),
        (b"Origin: http://127.0.0.1:3000", b"Referer: http://127.0.0.1:3000/dashboard"),
        (*OWN_PAGE, b"Referer: http://rebound.example/"),
        (*OWN_PAGE, b"Sec-Fetch-Site: cross-site"),
    ],
)
def test_any_other_page_is_refused(play: Playbook, lines: tuple[bytes, ...]) -> None:
    ask(play.client, b"GET", b"/admin/tokens", *lines)
    play.client.problem(403, "not_allowed")


def test_the_page_needs_the_admin_key_where_there_is_one(make_play: Callable[..., Playbook]) -> None:
    client = make_play(admin_key=ADMIN_KEY.decode()).client
    ask(client, b"GET", b"/admin/tokens", *OWN_PAGE)
    client.problem(403, "not_allowed")
    ask(client, b"GET", b"/admin/tokens", *OWN_PAGE, ADMIN)
    assert client.answer().status == 200


def test_the_page_is_no_way_in_from_another_machine(play: Playbook) -> None:
    client = play.connect(ELSEWHERE)
    ask(client, b"GET", b"/admin/tokens", *OWN_PAGE)
    client.problem(403, "not_allowed")


def test_the_page_makes_no_tokens(play: Playbook) -> None:
    ask(play.client, b"POST", b"/register", *OWN_PAGE)
    play.client.problem(403, "not_allowed")


# --- how it is installed ---------------------------------------------------------------------------------------------


def test_a_gateway_whose_page_nobody_opens_does_not_have_it_in_memory() -> None:
    code = "import sys, gateway.cli, gateway.server, gateway.endpoints; print('gateway.dashboard' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_the_chart_library_is_there_with_its_licence() -> None:
    folder = ROOT / "gateway" / "dashboard"
    assert re.match(
        r"/\*! https://github.com/leeoniya/uPlot \(v[0-9.]+\) \*/", (folder / "uPlot.iife.min.js").read_text()
    )
    assert (folder / "uPlot.LICENSE").read_text().startswith("The MIT License (MIT)\n\nCopyright (c) 2022 Leon Sorokin")
