"""What a token may be used for: whole segments, compared as they were sent."""

from __future__ import annotations

import pytest

from gateway.errors import OutOfScope
from gateway.scope import Scope


def allows(scope: Scope, path: bytes, method: bytes = b"GET", target: str = "api") -> bool:
    try:
        scope.check(target, method, path)
    except OutOfScope:
        return False
    return True


CHAT = Scope(paths=("/v1/chat", "/v1/models/"))


@pytest.mark.parametrize(
    "path",
    [b"/v1/chat", b"/v1/chat?x=/../y", b"/v1/chat/", b"/v1/chat/x", b"/v1/chat/x%20y", b"/v1/chat/.well-known",
     b"/v1/chat/...", b"/v1/chat/a.b", b"/v1/chat/..x", b"/v1/models/", b"/v1/models/gpt", b"/v1/chat?a//b",
     b"/v1/chat/100%25", b"/v1/chat/%41%2541", b"/v1/chat/%c3%a9%C3%80", b"/v1/chat/%", b"/v1/chat/a%3f%3b%20b"],
)  # fmt: skip
def test_a_prefix_allows_itself_and_what_is_below(path: bytes) -> None:
    assert allows(CHAT, path)


@pytest.mark.parametrize(
    "path",
    [b"", b"/", b"?", b"/v1", b"/v1/", b"/v1/chatx", b"/v1/chat%2Fx", b"/v1/chat;x", b"/v1/Chat", b"/v1/%63hat",
     b"/v1/models", b"/v1/cha", b"v1/chat", b"/x/v1/chat", b"/v1/chat/../x", b"/v1/chat/..", b"/v1/chat/.",
     b"/v1/chat/./x",
     b"/v1/chat/%u002e%u002E/x", b"/v1/chat/%25u002e./x",
     b"/v1/chat/%2e%2e/x", b"/v1/chat/.%2E/x", b"/v1/chat/%2e", b"/v1/chat/%252e%252e/x", b"/v1/chat/%25252e./x",
     b"/v1/chat/..;/x", b"/v1/chat/..;a=b/x", b"/v1/chat/..%3b/x", b"/v1/chat/..%20/x", b"/v1/chat/..%00/x",
     b"/v1/chat/x%00",
     b"/v1/chat//x", b"//v1/chat", b"/v1//chat", b"/v1/chat/..%2fx", b"/v1/chat/%2F..%2Fx", b"/v1/chat/..\\x",
     b"/v1/chat/%25%32%65%25%32%65/x", b"/v1/chat/%%32%65%%32e/x", b"/v1/chat/%2%65./x", b"/v1/chat/x%25%32f..",
     b"/v1/chat/%25%32%35%32e./x", b"/v1/chat/%25252541", b"/v1/chat/" + b"%25" * 99 + b"2541",
     b"/v1/chat/%c0%ae%C0%AE/x", b"/v1/chat/..%c0%afx", b"/v1/chat/..%c1%9cx", b"/v1/chat/%e0%80%ae./x",
     b"/v1/chat/..%5cx", b"/v1/chat/%5C..", b"/v1/chat/%255c..", b"/v1/chat/..?x"],
)  # fmt: skip
def test_nothing_that_could_be_read_as_another_path_is_allowed(path: bytes) -> None:
    assert not allows(CHAT, path)


@pytest.mark.parametrize("path", [b"/v1/../x", b"//", b"/a%2fb", b"", b"/v1/%2e%2e/x"])
def test_who_may_everything_may_spell_it_as_he_likes(path: bytes) -> None:
    assert not Scope().is_narrow
    assert allows(Scope(methods=("GET",)), path)


def test_methods_are_compared_as_they_are() -> None:
    scope = Scope(methods=("GET", "POST"))
    assert [method for method in (b"GET", b"POST", b"HEAD", b"get", b"DELETE") if allows(scope, b"/", method)] == [
        b"GET",
        b"POST",
    ]


def test_targets_are_names() -> None:
    assert allows(Scope(targets=("api",)), b"/")
    assert not allows(Scope(targets=("other",)), b"/")


def test_a_refusal_says_what_is_allowed() -> None:
    for scope, said in (
        (Scope(targets=("other",)), "target, only for other"),
        (Scope(methods=("POST", "PUT")), "method, only POST, PUT"),
        (Scope(paths=("/chat",)), "path, only /chat and"),
    ):
        with pytest.raises(OutOfScope, match=said):
            scope.check("api", b"GET", b"/x")


@pytest.mark.parametrize(
    "lists",
    [
        {"targets": ()},
        {"targets": ("a b",)},
        {"methods": ("get",)},
        {"methods": ("G ET",)},
        {"methods": ("GET",) * 17},
        {"paths": ("v1",)},
        {"paths": ("",)},
        {"paths": ("/a?b",)},
        {"paths": ("/a#b",)},
        {"paths": ("/a b",)},
        {"paths": ("/é",)},
        {"paths": ("/a\n",)},
        {"paths": ("/%zz",)},
        {"paths": ("/a/../b",)},
        {"paths": ("/a//b",)},
        {"paths": ("/a%2fb",)},
        {"paths": ("/" + "a" * 256,)},
    ],
)
def test_what_is_no_scope(lists: dict[str, tuple[str, ...]]) -> None:
    with pytest.raises(ValueError, match=r"token|target|method|path"):
        Scope(**lists)


PARENT = Scope(targets=("api",), methods=("GET", "POST"), paths=("/v1/chat", "/v1/models/"))


def test_what_is_not_said_stays() -> None:
    child = PARENT.narrowed(Scope())
    assert (child.targets, child.methods, child.paths) == (PARENT.targets, PARENT.methods, PARENT.paths)
    assert Scope().narrowed(Scope(methods=("GET",))).is_narrow
    assert PARENT.narrowed(Scope(paths=("/v1/chat/x", "/v1/models/"))).methods == PARENT.methods


@pytest.mark.parametrize(
    "lists",
    [
        {"targets": ("api", "other")},
        {"methods": ("DELETE",)},
        {"methods": ("GET", "HEAD")},
        {"paths": ("/",)},
        {"paths": ("/v1",)},
        {"paths": ("/v1/chatx",)},
        {"paths": ("/v1/models",)},
        {"paths": ("/v1/chat", "/v2")},
    ],
)
def test_narrowing_never_widens(lists: dict[str, tuple[str, ...]]) -> None:
    with pytest.raises(ValueError, match="allows only"):
        PARENT.narrowed(Scope(**lists))
