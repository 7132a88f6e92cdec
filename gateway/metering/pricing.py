"""What requests to one target cost, by its cost table."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

from gateway.errors import PriceUnknown
from gateway.metering import hosts
from gateway.metering.brings import pictures_tokens, tools_tokens
from gateway.metering.catalogue import Catalogue
from gateway.metering.costs import USUAL_COMPLETION, plain_path
from gateway.metering.fees import bills_searches, most_nano, most_searches
from gateway.metering.fields import is_plain, masks, names_mask, names_tier, wants_long
from gateway.metering.fixed import FixedQuote
from gateway.metering.llm import LlmQuote, Terms, may_think_unseen, percent_of
from gateway.metering.measured import MeasuredQuote
from gateway.metering.rates import PICO_IN_NANO, Rates, Tariff, is_cheaper
from gateway.metering.readers import name_of
from gateway.metering.requests import LEAST_OUTPUT, LIMITS, Wanted, asks_usage, read, spelled_out
from gateway.metering.shapes import MAX_TOKENS, Shape, is_free, shape_of
from gateway.scope import is_ambiguous, names_another, queries_another

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from gateway.metering import Pricing, Quote
    from gateway.metering.costs import CostTable

CONTEXT_TOKENS: Final = 1_000_000
"""How long a model's input can be at most, where nobody has said."""

MAX_PATH_BYTES: Final = 1024
"""No path of a language model's API is as long."""

_ASKED: Final = frozenset((Shape.CHAT, Shape.COMPLETIONS))
"""Streams of these say their usage only if asked."""
_NO_DEARER: Final = frozenset(("", "flex", "batch", "standard_only"))
"""Service tiers that take no more than the usual price, whether or not that of the tier is known."""
_USUAL_CACHES: Final = (True, False, False)
"""What `Rates.dearest_input` takes, of a request that says nothing else of itself."""
MAX_KNOWN: Final = 1024
"""So many terms are remembered, of about 1 kB each."""


@lru_cache(maxsize=1024)  # of paths up to `MAX_PATH_BYTES`
def _shape_of(base: bytes, path: bytes) -> tuple[Shape, str, bool] | None:
    """See `shape_of`, and `masks`; None as well if some server could read another path.

    Args:
        base: The target's path.
        path: What follows that in a POST; a query may be behind it.
    """
    plain, _, query = path.partition(b"?")
    plain = plain or b"/"
    shaped = None if is_ambiguous(plain) else shape_of(b"POST", base + plain)
    return None if shaped is None else (*shaped, masks(query))


@lru_cache(maxsize=1024)
def _dearest(rates: Rates, percent: int, caches: tuple[bool, bool, bool]) -> tuple[int, Mapping[str, int]]:
    """Return the most that a token of a request can cost, in picodollars times `percent`, and what one of its answer.

    Args:
        rates: The model's.
        percent: Of them.
        caches: What `Rates.dearest_input` takes.
    """
    written, written_1h, media = caches
    per_input = rates.dearest_input(written=written, written_1h=written_1h, media=media)
    return per_input * percent, {"USD": -(-rates.dearest_output * percent // (100 * PICO_IN_NANO)), "tokens": 1}


def pricing_of(table: CostTable, url: str, *, clamp: bool) -> Pricing:
    """Make the pricing of a target.

    Args:
        table: What it says of costs.
        url: The target's, which tells the provider.
        clamp: Whether a request's output may be limited to what money is left for (`BUDGET_CLAMP`).
    """
    return LlmPricing(table, url, clamp=clamp) if table.llm else PlainPricing(table)


class PlainPricing:
    """See `Pricing`: prices by method and path, and costs that are measured on the answer."""

    __slots__ = ("_table", "needs_body")

    def __init__(self, table: CostTable) -> None:
        self.needs_body = False
        self._table = table

    def quote(self, method: bytes, path: bytes, lines: Sequence[bytes], body: bytes | None, now_s: float) -> Quote:
        """See `Pricing`."""
        del now_s
        table = self._table
        price = fixed_price(table, method, path, lines)
        if price is not None:
            return FixedQuote(price, body)
        if table.measured is not None:
            return MeasuredQuote(table.measured, table.reserve or {}, body)
        return unknown(table, body, "this method and path", 'give it one in `fixed`, or all others with "* /*"')


class LlmPricing:
    """See `Pricing`: prices by token, and by method and path for what is paid otherwise."""

    # fmt: off
    __slots__ = (
        "_base", "_catalogue", "_clamp", "_folded", "_is_mistral", "_is_openai", "_is_routed", "_known", "_minute",
        "_own", "_table", "needs_body",
    )
    # fmt: on

    def __init__(self, table: CostTable, url: str, *, clamp: bool) -> None:
        self.needs_body = True
        self._table = table
        self._clamp = clamp
        self._base = urlsplit(url).path.rstrip("/").encode()
        self._catalogue = Catalogue(url)
        self._known: dict[tuple[object, ...], Terms] = {}  # by all that they depend on
        self._minute = 0.0
        self._own = {name: Tariff(rates) for name, rates in (table.prices or {}).items()}
        self._folded = {name.casefold(): tariff for name, tariff in self._own.items()}
        self._is_mistral = hosts.is_mistral(url)
        self._is_routed = hosts.tells_cost(url)
        self._is_openai = hosts.is_openai(url)

    def quote(self, method: bytes, path: bytes, lines: Sequence[bytes], body: bytes | None, now_s: float) -> Quote:
        """See `Pricing`."""
        table = self._table
        if table.fixed and (price := fixed_price(table, method, path, lines)) is not None:
            return FixedQuote(price, body)
        if len(path) > MAX_PATH_BYTES:
            plain, _, query = path.partition(b"?")
            path = plain + b"?fields" if masks(query) else plain  # all of a query that has a say
        shaped = _shape_of(self._base, path) if method == b"POST" and len(path) <= MAX_PATH_BYTES else None
        if shaped is None or (lines and names_another(lines)):
            plain = path.partition(b"?")[0] or b"/"
            if is_free(method, plain, lines):
                return FixedQuote({}, body)
            return unknown(table, body, "this method and path", "give it one in `fixed`")
        shape, named, is_masked = shaped
        if is_masked or lines:
            self._look_at(lines, is_masked=is_masked)
        if body is None or (lines and not is_plain(lines)):
            what, mend = "a request that is compressed or longer than 1 MiB, or not in UTF-8", "set `reserve`"
            held = FixedQuote(table.reserve, body) if table.reserve else unknown(table, body, what, mend)
            return self._unread(shape, named, body, now_s, held)
        wanted = read(shape, body)
        if wanted is None:
            what, mend = "a request whose JSON cannot be read", "send it as a JSON object in UTF-8"
            return self._unread(shape, named, body, now_s, unknown(table, body, what, mend))
        if shape is Shape.GEMINI and b":stream" in path:
            wanted = wanted._replace(streams=True)
        # By name, each would take as long as all of them.
        _, _, _, _, streams, _, _, _, _, _, _, _, _, tier, speed, geo, _ = wanted
        strips = streams and shape in _ASKED and not self._is_mistral and not asks_usage(wanted)
        if tier or speed or geo:  # of any length
            terms = self._terms(shape, named, strips, wanted, now_s)
        else:
            minute, known, asked = now_s // 60, self._known, (shape, named, strips, wanted[1:])
            if minute != self._minute or len(known) >= MAX_KNOWN:
                self._minute = minute  # within which no price changes
                known.clear()
            try:
                terms = known[asked]
            except KeyError:
                terms = known[asked] = self._terms(shape, named, strips, wanted, now_s)
        tokens, rate = len(body), terms.rate
        if rate is not None:
            return LlmQuote(terms, {"USD": -(-tokens * rate // PICO_IN_NANO), "tokens": tokens}, body, wanted)
        fixed, each = self._bounds(terms, wanted, lines, spelled_out(body, wanted))
        if terms.most and each != terms.each:
            terms = replace(terms, each=each)
        return LlmQuote(terms, fixed, body, wanted)

    def _look_at(self, lines: Sequence[bytes], *, is_masked: bool) -> None:
        """Refuse what Google's APIs take for another request; where that is allowed, its answer counts all the same.

        Raises:
            PriceUnknown: It is one, and is not allowed.
        """
        if is_masked or names_mask(lines):
            unknown(self._table, None, "a request for a part of the answer", "leave `fields` and X-Goog-FieldMask out")
        if names_tier(lines):
            unknown(self._table, None, "a request of this tier", "leave X-Vertex-AI-LLM-Shared-Request-Type out")

    def _terms(self, shape: Shape, named: str, strips: bool, wanted: Wanted, now_s: float) -> Terms:  # noqa: FBT001
        """Return what a request is quoted and metered by. Its members are not looked at.

        Raises:
            PriceUnknown: Its price is not known, and that is refused.
        """
        table, find = self._table, partial(self._find, now_s)
        model, tier, speed = named or wanted.model, wanted.tier, wanted.speed
        tariff, notice = find(model, tier, speed), ""
        if (tier or speed) and tariff is not None:
            usual = find(model, "", speed) or tariff
            if is_cheaper(tariff, usual):
                tariff, tier = usual, ""  # a discount counts when the answer confirms it
            elif (tier not in _NO_DEARER and tariff == usual) or (speed and tariff == find(model, tier, "")):
                what = f"the model '{name_of(model)}' at the service tier or speed that is asked for"
                unknown(table, None, what, "leave it out")
        if tariff is None:
            tariff, notice = self._unknown(model)
        limited = wanted.limit
        if limited is None:
            is_short = shape is Shape.COMPLETIONS and self._is_openai
            limited = min(table.max_output, USUAL_COMPLETION) if is_short else table.max_output
        # No answer is longer; and stores can count what that costs.
        most = min(limited * wanted.choices, MAX_TOKENS) if shape in LIMITS else 0
        least = most
        limit = self._limit_of(shape, model) if most else ""
        if limit:
            # A budget for thinking must be below the limit.
            least = max(LEAST_OUTPUT, wanted.thinking_tokens + 1 if wanted.thinking_tokens else 0)
            least = min(most, least * wanted.choices)
        brings = wanted.tools or wanted.open or wanted.pictures or wanted.predicts
        fees = wanted.fees or bills_searches(model)
        counts = brings or fees or shape.of_anthropic or tariff.tiers or tariff.base.request
        rate, each = _dearest(tariff.base, 100, _USUAL_CACHES)
        return Terms(
            shape=shape,
            model=model,
            tier=tier,
            speed=speed,
            geo=wanted.geo,
            find=find,
            tariff=tariff,
            bounded=self._clamp or wanted.limit is not None,
            hidden=wanted.unseen or may_think_unseen(model),
            fees=fees,
            grows=wanted.grows,
            strips=strips,
            several=wanted.choices > 1,
            routed=self._is_routed,
            each=each if most else {},
            most=most,
            least=least,
            # Nothing can be taken out of a stream that is compressed, nor can it be ended early.
            accepts=b"identity" if wanted.streams else b"gzip, identity",
            limit=limit,
            notice=notice,
            rate=None if counts else rate // 100,
        )

    def _find(self, now_s: float, model: str, tier: str, speed: str) -> Tariff | None:
        own = self._own
        if own:
            # An API that takes a model's name in any case would else serve it at the price of a pattern.
            folded, known = model.casefold(), self._folded
            tariff = (
                own.get(model)
                or known.get(folded)
                or next(
                    (tariff for name, tariff in known.items() if name.endswith("*") and folded.startswith(name[:-1])),
                    None,
                )
            )
            if tariff is not None:
                return tariff
        return self._catalogue.find(model, tier, speed, now_s) if model else None

    def _unknown(self, model: str) -> tuple[Tariff, str]:
        """Return what a model costs whose price nobody has said.

        Raises:
            PriceUnknown: That is refused.
        """
        table, shown = self._table, name_of(model)
        what = f"the model '{shown}'" if shown else "a request that names no model, or several"
        if table.unknown_price == "deny":
            one = "name one model, and none in `models` or `fallbacks`"
            mend = f'set one in [prices."{shown}"]' if shown else one
            raise PriceUnknown(f"There is no price for {what}, so nothing was sent to the API; to allow it, {mend}.")
        if table.unknown_price == "default":
            return Tariff(Rates(0, 0, request=(table.default or {}).get("USD", 0) * PICO_IN_NANO)), ""
        return Tariff(Rates(0, 0)), f"There is no price for {what}: its tokens cost nothing."

    def _limit_of(self, shape: Shape, model: str) -> str:
        if not self._clamp:
            return ""
        if shape is Shape.CHAT and not self._is_openai and not hosts.is_of_openai(model):
            return "max_tokens"
        return LIMITS[shape][0]

    def _bounds(
        self, terms: Terms, wanted: Wanted, lines: Sequence[bytes], body: bytes
    ) -> tuple[dict[str, int], Mapping[str, int]]:
        """Return what is reserved for a request but for its output, and what for each token of that."""
        tokens, reserve, unbounded, tariff = len(body), self._table.reserve, 0, terms.tariff
        assert tariff is not None  # noqa: S101 - `_terms` finds one
        if wanted.tools:
            tokens += tools_tokens(terms.shape, body)
        more = wanted.open or wanted.pictures > 0
        if more:
            context = tariff.context or CONTEXT_TOKENS
            # A model that has a price for longer requests takes them, from clients that ask for it.
            if tariff.tiers and context <= tariff.tiers[-1][0] and wants_long((*lines, body)):
                context = max(context, CONTEXT_TOKENS)
            seen, data_bytes = pictures_tokens(terms.shape, terms.model, wanted.members, wanted.pictures)
            unbounded = context if wanted.open else min(seen, context)
            tokens += 0 if reserve else unbounded - data_bytes
        # What is reserved for may have any number of tokens.
        rates = tariff.rates(1 << 62 if more and reserve else tokens) if tariff.tiers else tariff.base
        percent, (written, written_1h, _) = 100, _USUAL_CACHES
        if terms.shape.of_anthropic:
            percent, written, written_1h = percent_of(wanted.geo), b"cache" in body, b'1h"' in body
        per_input, each = _dearest(rates, percent, (written, written_1h, more))
        pico = tokens * per_input // 100 + rates.request
        if wanted.predicts:  # what of it is not taken is billed as output, beyond the limit
            pico += len(body) * rates.dearest_output
        fixed = {"USD": -(-pico // PICO_IN_NANO), "tokens": tokens}
        if terms.fees and not reserve:
            fixed["USD"] += most_nano(terms.shape, body, stored="prompt" in wanted.members)
        if terms.shape.of_anthropic and not reserve and b'"web_search' in body:
            fixed["USD"] += -(-most_searches(body) * rates.search // PICO_IN_NANO)  # which its usage says
        if more and reserve:
            for unit, atoms in {"tokens": unbounded, **reserve}.items():
                fixed[unit] = fixed.get(unit, 0) + atoms
        return fixed, each

    def _unread(self, shape: Shape, model: str, body: bytes | None, now_s: float, held: FixedQuote) -> Quote:
        """Quote a request that is not read: its answer may say what it cost, and must be counted if it does.

        Args:
            shape: Its own.
            model: As its path names it; "" if that does not.
            body: What is sent, if it is not too long.
            now_s: As of `quote`.
            held: What is reserved for it.
        """
        find = partial(self._find, now_s)
        tariff = find(model, "", "") if model else None
        tokens = CONTEXT_TOKENS if tariff is None else tariff.context or CONTEXT_TOKENS
        # What nothing is held of is not counted.
        fixed = {"USD": 1, "tokens": 1 if held.notice else tokens, **held.fixed}
        terms = Terms(
            shape=shape,
            model=model,
            tier="",
            speed="",
            geo="",
            find=find,
            tariff=tariff,
            bounded=False,
            hidden=True,
            fees=False,
            grows=True,
            strips=False,
            several=True,
            routed=self._is_routed,
            each={},
            most=0,
            least=0,
            accepts=b"identity",
            limit="",
            notice=held.notice,
            rate=None,
        )
        return LlmQuote(terms, fixed, body, None)


def fixed_price(table: CostTable, method: bytes, path: bytes, lines: Sequence[bytes]) -> Mapping[str, int] | None:
    """Return the price of the first pattern that fits; None if none does, or some server could read another request.

    Args:
        table: Has the patterns.
        method: The request's.
        path: Its path, with its query.
        lines: Its field lines.
    """
    fixed = table.fixed
    if not fixed or fixed[0].fits_all:
        return fixed[0].price if fixed else None
    plain, _, query = path.partition(b"?")
    if is_ambiguous(plain) or names_another(lines) or queries_another(query):
        return None
    path = plain_path(plain or b"/")
    return next((one.price for one in fixed if one.fits(method, path)), None)


def unknown(table: CostTable, body: bytes | None, what: str, mend: str) -> FixedQuote:
    """Quote a request whose price nobody has said.

    Raises:
        PriceUnknown: That is refused.
    """
    if table.unknown_price == "deny":
        raise PriceUnknown(f"There is no price for {what}, so nothing was sent to the API; to allow it, {mend}.")
    if table.unknown_price == "default":
        return FixedQuote(table.default or {}, body)
    return FixedQuote({}, body, notice=f"There is no price for {what}: it is free.")
