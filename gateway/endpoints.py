"""The gateway's own endpoints: `/register`, `/tokens`, `/admin/…`, `/usage`, `/metrics`, `/dashboard`, probes."""

from __future__ import annotations

import hmac
import json
import re
import time
from functools import partial
from ipaddress import IPv4Address
from typing import TYPE_CHECKING, Any, Final

from gateway.config.values import lifetime_s
from gateway.errors import BadRequest, Draining, MethodNotAllowed, NotAllowed, NotFound
from gateway.http1.message import CRLF
from gateway.readiness import Readiness
from gateway.registrations import Registrations
from gateway.scope import Scope
from gateway.shared_counts import SharedCounts
from gateway.usage import Stream, UsageView, rfc3339

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from gateway.admission import Admission
    from gateway.http1.message import RequestHead
    from gateway.metrics import Metrics
    from gateway.proxy.context import Answer
    from gateway.proxy.peer import Peer
    from gateway.stores import Store
    from gateway.subject import Subject
    from gateway.tokens import Claims
    from gateway.usage import Told

_JSON: Final = ("Content-Type", "application/json")
_NO_STORE: Final = ("Cache-Control", "no-store")
_TOKENS: Final = b"/admin/tokens/"
_LEDGER: Final = b"/admin/ledger/"
_REQUESTS: Final = b"/usage/requests/"
_THIS_MACHINE: Final = re.compile(rb"https?://(?:localhost|127(?:\.[0-9]{1,3}){3}|\[::1\])(?::[0-9]{1,5})?/")
_FORWARDED: Final = re.compile(rb"(?i)\r\n(?:forwarded|x-forwarded-[a-z]+|x-real-ip|via):")
_NAMES_A_PORT: Final = re.compile(rb":[0-9]*\Z")
_SCOPE: Final = ("targets", "methods", "paths")
_LISTS: Final = ("limits", "budgets", *_SCOPE)
_REGISTER_TAKES: Final = (
    'an object with any of "name" (text), "ttl" ("30d"), "limits" (["60/minute"]), "budgets" (["5 USD/day"]), '
    '"targets" (["api"]), "methods" (["GET"]) and "paths" (["/models"])'
)


class Endpoints:
    """Answers requests to the gateway itself.

    Args:
        admission: Issues tokens, and knows how their limits stand.
        store: Asked whether it answers.
        metrics: What became of requests.
        admin_key: Guards `/register` and `/admin/…`; None: local peers only.
        is_draining: Whether the gateway is stopping.
        shared: Has the counts of all workers; None: there are no others.
        names: By what names it listens, in lower case.
        pace_of: Tells of how fast a token spends; None: nobody looks at that.
    """

    def __init__(
        self,
        admission: Admission,
        store: Store,
        metrics: Metrics,
        admin_key: bytes | None,
        is_draining: Callable[[], bool],
        *,
        shared: SharedCounts | None = None,
        names: frozenset[bytes] = frozenset(),
        pace_of: Callable[[str], Told | None] = lambda _: None,
    ) -> None:
        self._admission = admission
        self._store = store
        self._readiness = Readiness(store)
        self._registrations = Registrations(store)
        self._view = UsageView(admission, store.usage, metrics, pace_of)
        self._shared = shared or SharedCounts(metrics)
        self._admin_key = admin_key
        self._names = names
        self._is_draining = is_draining

    async def __call__(self, head: RequestHead, body: bytes, peer: Peer) -> Answer | Stream:
        """Answer one request.

        Args:
            head: Its head.
            body: All of its body.
            peer: Whose it is.

        Raises:
            GatewayError: The refusal to send instead.
        """
        # The exact bytes decide: no spelling of /register that some router would fold into it mints a token.
        match head.target.partition(b"?")[0]:
            case b"/register" if head.target == b"/register":
                _need(head, b"POST")
                return await self._register(head, body, peer)
            case b"/tokens" if head.target == b"/tokens":
                _need(head, b"POST")
                return await self._make_child(head, body, peer)
            case b"/admin/tokens":
                _need(head, b"GET", b"HEAD")
                self._need_right(head, "This endpoint", peer)
                return await self._tokens()
            case path if path.startswith(_TOKENS):
                _need(head, b"DELETE")
                self._need_right(head, "This endpoint", peer)
                return await self._revoke(path[len(_TOKENS) :])
            case b"/admin/usage":
                _need(head, b"GET", b"HEAD")
                self._need_right(head, "This endpoint", peer)
                return await _once_or_streamed(head, self._view.all, None)
            case path if path == b"/admin/ledger" or path.startswith((_LEDGER, _REQUESTS)):
                return await self._of_ledger(head, path, peer)
            case b"/usage":
                _need(head, b"GET", b"HEAD")
                return await self._usage(head)
            case b"/metrics":
                _need(head, b"GET", b"HEAD")
                return await self._scrape(head, peer)
            case path if path == b"/dashboard" or path.startswith(b"/dashboard/"):
                _need(head, b"GET", b"HEAD")
                return _dashboard(path)
            case b"/healthz":
                _need(head, b"GET", b"HEAD")
                return _json(200, {"status": "ok"})
            case b"/readyz":
                _need(head, b"GET", b"HEAD")
                return await self._ready()
        raise NotFound("No endpoint and no target has this path; the API is under /api/.")

    async def _register(self, head: RequestHead, body: bytes, peer: Peer) -> Answer:
        is_admin = self._is_admin(head.bearer)
        if not is_admin:
            # Before anything else, so that guesses at the key are counted, too.
            await self._registrations.count(peer.name)
        self._need_right(head, "Registering", peer, by_dashboard=False)
        return _issued(self._admission.issue, body if is_admin else b"")

    async def _make_child(self, head: RequestHead, body: bytes, peer: Peer) -> Answer:
        """Make a narrower token from the caller's."""
        parent = self._admission.authenticate(head.bearer, time.time())
        await self._registrations.count(peer.name, "tokens")
        await self._admission.look(parent)  # the store knows whether it, or one that it was made from, is revoked
        return _issued(partial(self._admission.issue_child, parent), body)

    async def _tokens(self) -> Answer:
        """List what was issued."""
        tokens = await self._admission.tokens()
        for one in tokens:
            one["issued_at"], one["expires_at"] = rfc3339(one["issued_at"]), rfc3339(one["expires_at"])
        return _json(200, {"tokens": tokens})

    async def _revoke(self, path: bytes) -> Answer:
        """End a token on every instance. One that the register does not know may have been issued offline."""
        token_id = path.decode("latin-1")
        try:
            await self._admission.revoke(token_id, None, now_s=time.time())
        except ValueError:
            raise NotFound("This is no token's id.") from None
        return _json(200, {"id": token_id, "revoked": True})

    def _need_right(self, head: RequestHead, what: str, peer: Peer, *, by_dashboard: bool = True) -> None:
        """Refuse all but admins and, where there is no admin key, programs and the dashboard on this machine."""
        if self._is_admin(head.bearer):
            return
        if self._admin_key is not None:
            raise NotAllowed(f"{what} takes the admin key as 'Authorization: Bearer KEY'.")
        if not peer.is_local or _comes_through_a_proxy(head):
            raise NotAllowed(
                f"{what} is for peers on the gateway's own machine, not for a proxy's, as long as no ADMIN_KEY is set."
            )
        if not self._is_asked_by_its_name(head, peer):
            raise NotAllowed(
                f"{what} takes an ADMIN_KEY, or else a Host that is an address, localhost or a name in GATEWAY_LISTEN: "
                "any other could be a web page's, made to point here."
            )
        if _comes_from_a_page(head) and not (by_dashboard and _comes_from_the_dashboard(head)):
            raise NotAllowed(f"{what}, used from a web page, takes an ADMIN_KEY.")

    async def _usage(self, head: RequestHead) -> Answer | Stream:
        """Tell a token's holder how its limits stand and what became of its requests. Nothing is charged."""
        bearer = head.bearer

        def still() -> Subject:  # a stream may last longer than its token
            return self._admission.authenticate(bearer, time.time())

        return await _once_or_streamed(head, lambda: self._view.of(still()), still().id)

    async def _of_ledger(self, head: RequestHead, path: bytes, peer: Peer) -> Answer:
        from gateway import ledger_pages  # with all that an entry is: for those who look at it

        ledger = ledger_pages.ledger_of(self._store)
        if path.startswith(_REQUESTS):
            _need(head, b"GET", b"HEAD")
            subject = self._admission.authenticate(head.bearer, time.time())
            await self._admission.look(subject)  # the store knows whether it is revoked
            request = path[len(_REQUESTS) :].decode("latin-1")
            return _json(200, await ledger_pages.of_request(ledger, subject.id, request))
        if path.startswith(_LEDGER):
            _need(head, b"DELETE")
            self._need_right(head, "This endpoint", peer)
            return _json(200, await ledger_pages.release(ledger, path[len(_LEDGER) :].decode("latin-1")))
        _need(head, b"GET", b"HEAD")
        self._need_right(head, "This endpoint", peer)
        query = head.target.partition(b"?")[2].decode("latin-1")
        return _json(200, await ledger_pages.page(ledger, query))

    async def _scrape(self, head: RequestHead, peer: Peer) -> Answer:
        """Tell Prometheus; it needs no key on this machine."""
        is_near = peer.is_local and not _comes_through_a_proxy(head)
        if not is_near or _comes_from_a_page(head) or not self._is_asked_by_its_name(head, peer):
            self._need_right(head, "This endpoint", peer)
        from gateway.prometheus import scraped  # where there is one that asks

        content_type, text = await scraped(self._shared.all())
        return 200, [("Content-Type", content_type), _NO_STORE], text

    def _is_asked_by_its_name(self, head: RequestHead, peer: Peer) -> bool:
        """Whether `Host` says nothing that a page could have made a browser say (DNS rebinding).

        Such a page is, to the browser, of the same origin: of what it asks by GET there may be no other sign. No page
        has an address for its name, nor one below `localhost` (RFC 6761 §6.3); and none reaches a unix socket.
        """
        name = _NAMES_A_PORT.sub(b"", head.host.lower()).rstrip(b".")
        if not name or peer.name == "unix" or name in self._names:
            return True
        return name.startswith(b"[") or name == b"localhost" or name.endswith(b".localhost") or _is_ipv4(name)

    def _is_admin(self, bearer: bytes | None) -> bool:
        key = self._admin_key
        return key is not None and bearer is not None and hmac.compare_digest(key, bearer)

    async def _ready(self) -> Answer:
        if self._is_draining():
            raise Draining("This instance is stopping.")
        await self._readiness.check()
        return _json(200, {"status": "ready"})


def _dashboard(path: bytes) -> Answer:
    from gateway import dashboard  # a tenth of a megabyte, for those who look at it

    return dashboard.answer(path)


def _issued(issue: Callable[..., tuple[str, Claims]], body: bytes) -> Answer:
    """Issue a token as a body asks for it."""
    wishes = _read_wishes(body)
    try:
        scope = Scope(*(wishes.pop(one, None) for one in _SCOPE))
        token, claims = issue(time.time(), scope=scope, **wishes)
    except ValueError as error:
        raise BadRequest(f"No such token can be issued: {error}.") from None
    return _json(201, {"token": token, "id": claims.id, "expires_at": rfc3339(claims.expires_at_s)})


def _need(head: RequestHead, *methods: bytes) -> None:
    if head.method not in methods:
        raise MethodNotAllowed(b", ".join(methods).decode())


def _comes_from_a_page(head: RequestHead) -> bool:
    """Any page that a browser on this machine shows could otherwise mint tokens (DNS rebinding included)."""
    return bool(_values(head, b"origin") or _values(head, b"sec-fetch-site"))


def _comes_through_a_proxy(head: RequestHead) -> bool:
    """Whether a proxy or a tunnel on this machine says that it is somebody else's, who is not local then."""
    return _FORWARDED.search(head.lines) is not None


def _comes_from_the_dashboard(head: RequestHead) -> bool:
    """Whether it is from a page of this gateway's own, opened by an address that only this machine can have.

    No page can choose what a browser writes there: that it has the origin it asks, and which origin that is. One whose
    name was made to point to this machine (DNS rebinding) has that name in its `Referer`.
    """
    sites, referers = _values(head, b"sec-fetch-site"), _values(head, b"referer")
    return sites == [b"same-origin"] and len(referers) == 1 and _THIS_MACHINE.match(referers[0]) is not None


def _is_ipv4(name: bytes) -> bool:
    try:
        IPv4Address(name.decode("latin-1"))
    except ValueError:
        return False
    return True


def _values(head: RequestHead, name: bytes) -> list[bytes]:
    """Return the values of a field, in lower case."""
    lines = [line.partition(b":") for line in head.lines.lower().split(CRLF)]
    return [value.strip() for other, _, value in lines if other == name]


async def _once_or_streamed(
    head: RequestHead, make: Callable[[], Awaitable[Told]], token_id: str | None
) -> Answer | Stream:
    is_streamed = b"stream" in head.target.partition(b"?")[2].split(b"&") and head.method == b"GET"
    return Stream(make, token_id) if is_streamed else _json(200, await make())


def _json(status: int, members: dict[str, object]) -> Answer:
    return status, [_JSON, _NO_STORE], json.dumps(members).encode() + b"\n"


def _read_wishes(body: bytes) -> dict[str, Any]:
    """Read what an admin wants of a new token."""
    if not body:
        return {}
    try:
        wishes = json.loads(body)
        if not isinstance(wishes, dict) or not wishes.keys() <= {"name", "ttl", *_LISTS}:
            raise TypeError
        name, ttl = wishes.get("name"), wishes.get("ttl")
        lists = {one: wishes.get(one) for one in _LISTS}
        if name is not None and not isinstance(name, str):
            raise TypeError
        for texts in lists.values():
            if texts is not None and not (isinstance(texts, list) and all(isinstance(one, str) for one in texts)):
                raise TypeError
        if isinstance(ttl, bool) or not isinstance(ttl, str | int | None):
            raise TypeError
        return {"name": name, **lists, "ttl_s": None if ttl is None else lifetime_s(str(ttl)) or 0}
    except (TypeError, ValueError, RecursionError):
        raise BadRequest(f"The body is not {_REGISTER_TAKES}.") from None
