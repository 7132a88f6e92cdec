"""Requests to language models: bounded by what is sent and by a limit of the output, metered by the answer's usage.

A token of text has at least one byte, and JSON only makes text longer, so the bytes of a request's body are no fewer
than the tokens of its input: as far as all of that is in the body. What is not is reserved for beside it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Final

from gateway.budgets.budget import NANO
from gateway.budgets.spending import Mark
from gateway.metering import Cost
from gateway.metering.answers import JsonReader, said_of_text
from gateway.metering.costs import UnitPrice
from gateway.metering.decoding import gzip_of
from gateway.metering.events import EventReader
from gateway.metering.fees import FeeReader
from gateway.metering.fields import SERVICE_TIER, Fields, answered, upstream_id
from gateway.metering.fixed import FixedMeter
from gateway.metering.measured import number, priced
from gateway.metering.readers import KEPT_BYTES, Said
from gateway.metering.requests import Changes, rewritten
from gateway.metering.shapes import tier_of_gemini, usual_is_none
from gateway.tuples import new

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from gateway.metering.rates import Counts, Tariff
    from gateway.metering.readers import Reader
    from gateway.metering.requests import Wanted
    from gateway.metering.shapes import Shape

    FindTariff = Callable[[str, str, str], Tariff | None]
    """By model, service tier and speed, at the time of the request."""

SLACK_TOKENS: Final = 256
"""Of an answer that ended early: how many more output tokens than bytes of text have passed may be billed.

An upstream goes on until it notices that nobody reads: some make a thousand tokens a second, and are far away.
"""

_DOLLARS: Final = UnitPrice("USD", NANO)
UNANSWERED: Final = frozenset((504, 524))
"""A server before the model has not waited for it (RFC 9110 §15.6.5): the model may have answered, and billed."""


# Models that may think before they write, unseen.
_THINKING: Final = re.compile(
    r"(?i)(?:^|[/.-])o[1-9](?:-|$)|gpt-[5-9]|gpt-oss|codex|claude-[a-z]+-[5-9]|gemini-(?:2\.5|[3-9])|grok-[3-9]|"
    r"reason|think|magistral|deep-research|(?:^|[/-])r1(?:-|$)"
)


@dataclass(frozen=True, slots=True)
class Terms:
    """What requests are quoted and metered by that ask for the same of the same model, whatever they say.

    Args:
        shape: Of the request.
        model: As it names it; "" where that is not known.
        tier, speed, geo: Likewise.
        find: Finds the prices of models, of the request's and of the answer's.
        tariff: The request's prices; None where its model is not known.
        bounded: Whether the upstream is told to make no more output than was granted.
        hidden: Whether it can make output that does not show.
        fees: Whether something may be billed that no usage tells of.
        grows: As of `Wanted`.
        strips: Whether the client has not asked for the event that says the usage.
        several: Whether it asks for several answers in one.
        routed: Whether the upstream's answers say what they cost.
        each, most, least, accepts, notice: As of `Quote`.
        limit: The name of the output's limit, where that may be set or lowered; "" where it may not.
        rate: What a byte of the request can cost, in picodollars, where nothing else of it counts; None: something may.
    """

    shape: Shape
    model: str
    tier: str
    speed: str
    geo: str
    find: FindTariff
    tariff: Tariff | None
    bounded: bool
    hidden: bool
    fees: bool
    grows: bool
    strips: bool
    several: bool
    routed: bool
    each: Mapping[str, int]
    most: int
    least: int
    accepts: bytes
    limit: str
    notice: str
    rate: int | None

    def reserved(self, fixed: Mapping[str, int], granted: int) -> dict[str, int]:
        """Return all that was reserved, in atoms by unit."""
        return {unit: atoms + self.each.get(unit, 0) * granted for unit, atoms in fixed.items()}

    def served(self, tier: str) -> Terms:
        """Return those of a request that was answered at another tier than it asked for, perhaps."""
        tier = usual_is_none(tier)
        return replace(self, tier=tier, tariff=self.find(self.model, tier, self.speed) or self.tariff)

    def cost(self, fixed: Mapping[str, int], granted: int, said: Said, id_: str, *, whole: bool) -> Cost:
        """Return what a request whose answer is over cost.

        Args:
            fixed: As of `Quote`.
            granted: Output tokens.
            said: What the answer says of itself.
            id_: The upstream's, by the answer's fields; "" if none names one.
            whole: Whether the answer came to its end, and could be read to it.
        """
        counts, final, _, _, named, _, _, named_id, _, _ = said
        model, id_ = self.model or named, id_ or named_id
        if counts is not None and (whole or final):
            cost = self.exact(said, counts)
            if cost is not None:
                return new(Cost, (cost, Mark.EXACT, units_of(counts), model, id_))
        cost = self.reserved(fixed, granted) if whole else self.passed(fixed, granted, said)
        return Cost(cost, Mark.ESTIMATED, model=model, upstream_id=id_)

    def exact(self, said: Said, counts: Counts) -> dict[str, int] | None:
        """Return what so many tokens cost; None if their prices are not known."""
        tariff, (_, _, _, _, _, said_tier, said_speed, _, geo, _) = self.tariff, said
        if self.routed and (nano := self.billed(said)) is not None:
            return {"USD": nano, "tokens": counts[0] + counts[1]}
        # Without a name, it is one of several models, or the default's price was taken.
        if tariff is None or said_tier or said_speed or not self.model:
            tier = usual_is_none(said_tier) if said_tier else self.tier
            speed = usual_is_none(said_speed) if said_speed else self.speed
            if tariff is None or tier != self.tier or speed != self.speed or not self.model:
                tariff = self.find(self.model or said.model, tier, speed) or tariff
            if tariff is None:
                return None
        percent = percent_of(geo or self.geo) if self.shape.of_anthropic else 100
        return {"USD": tariff.nano(counts, percent), "tokens": counts[0] + counts[1]}

    def billed(self, said: Said) -> int | None:
        """Return the cost that an answer states, calls of tools included, in nano-USD; None where it states none."""
        return routed_nano(*said.cost) if self.routed and said.cost is not None else None

    def passed(self, fixed: Mapping[str, int], granted: int, said: Said) -> dict[str, int]:
        """Return what has been spent by what passed of an answer that is not over, at the most."""
        output = said.text_bytes + SLACK_TOKENS + (0 if said.counts is None else said.counts.output)
        if self.hidden or not said.text_bytes or may_think_unseen(said.model):  # a deployment has a name of its own
            output = max(output, granted)
        if self.bounded:
            output = min(output, granted)
        each, counts = self.each, said.counts
        if not each:
            return dict(fixed)
        # Some say 0 for the input until they say all of it.
        begun = (
            None if counts is None or not counts.input or self.grows else self.exact(said, counts._replace(output=0))
        )
        spent = fixed if begun is None else begun
        return {unit: atoms + each.get(unit, 0) * output for unit, atoms in spent.items()}


class LlmQuote:
    """See `Quote`.

    Args:
        terms: What it is metered by.
        fixed: See `Quote`.
        body: The request's.
        wanted: What that asks for; None if it was not read.
    """

    # fmt: off
    __slots__ = (
        "_body", "_terms", "_wanted", "accepts", "each", "fixed", "least", "limited", "model", "most", "notice",
    )
    # fmt: on

    def __init__(self, terms: Terms, fixed: Mapping[str, int], body: bytes | None, wanted: Wanted | None) -> None:
        self._terms = terms
        self._body = body
        self._wanted = wanted
        self.fixed = fixed
        self.model = terms.model
        self.each = terms.each
        self.most = terms.most
        self.least = terms.least
        self.accepts = terms.accepts
        self.notice = terms.notice
        self.limited = 0

    def body(self, granted: int) -> bytes | None:
        """See `Quote`."""
        wanted, body = self._wanted, self._body
        if wanted is None or body is None:
            return body
        terms = self._terms
        lowers = terms.limit and (granted < self.most or wanted.limit is None)
        if not lowers and not terms.strips and not wanted.ambiguous:
            return body
        self.limited = max(granted // wanted.choices, 1) if lowers else 0
        return rewritten(terms.shape, body, wanted, Changes(terms.limit, self.limited, terms.strips))

    def meter(
        self, granted: int, status: int, lines: Sequence[bytes], form: bytes = b"", content: bytes = b""
    ) -> LlmMeter | FixedMeter:
        """See `Quote`."""
        if not 200 <= status <= 299:
            cost = self.unanswered(granted, 0) if status in UNANSWERED else Cost({}, Mark.EXACT, model=self.model)
            return FixedMeter(cost._replace(upstream_id=upstream_id(lines)))
        terms = self._terms
        if terms.tier and terms.shape.of_gemini and (tier := Fields(lines).get(SERVICE_TIER)):
            terms = terms.served(tier_of_gemini(tier.decode("latin-1")))
        coding, is_stream, id_ = answered(lines, form)
        if not content or coding or is_stream or terms.fees or len(content) > KEPT_BYTES:
            return LlmMeter(terms, self.fixed, granted, coding, id_, is_stream=is_stream)
        said = said_of_text(terms.shape, content, named=bool(terms.model and id_))
        return FixedMeter(terms.cost(self.fixed, granted, said, id_, whole=not said.failed))

    def unanswered(self, granted: int, elapsed_ms: int) -> Cost:
        """See `Quote`."""
        del elapsed_ms
        return Cost(self._terms.reserved(self.fixed, granted), Mark.ESTIMATED, model=self.model)


class LlmMeter:
    """See `Meter`.

    Args:
        terms: What the request is metered by.
        fixed: As of `Quote`.
        granted: Output tokens.
        coding: The answer's, as `answered` reads it.
        id_: Likewise.
        is_stream: Likewise.
    """

    __slots__ = ("_fees", "_fixed", "_granted", "_gzip", "_id", "_reader", "_terms")

    def __init__(
        self, terms: Terms, fixed: Mapping[str, int], granted: int, coding: bytes, id_: str, *, is_stream: bool
    ) -> None:
        self._terms = terms
        self._fixed = fixed
        self._granted = granted
        self._id = id_
        self._gzip = gzip_of(coding) if coding else None
        self._reader: Reader
        if coding and coding != b"identity" and self._gzip is None:
            self._reader = Blind()
        elif is_stream:
            strips = terms.strips and self._gzip is None
            self._reader = EventReader(terms.shape, strips=strips, several=terms.several)
        else:
            self._reader = JsonReader(terms.shape, named=bool(terms.model and id_))
        self._fees: FeeReader | None = None
        if terms.fees:
            self._reader = self._fees = FeeReader(self._reader, terms.shape, is_stream=is_stream)

    def feed(self, content: bytes) -> bytes:
        """See `Meter`."""
        if self._gzip is None:
            return self._reader.feed(content)
        for part in self._gzip.decode(content):
            self._reader.feed(part)
        return content

    def finish(self) -> bytes:
        """See `Meter`."""
        held = self._reader.finish()
        return held if self._gzip is None else b""

    def running(self, elapsed_ms: int) -> Mapping[str, int]:
        """See `Meter`."""
        del elapsed_ms
        return self._terms.passed(self._fixed, self._granted, self._reader.said())

    def result(self, *, whole: bool, elapsed_ms: int) -> Cost:
        """See `Meter`."""
        del elapsed_ms
        said, gzip = self._reader.said(), self._gzip
        is_read = whole and not said.failed and (gzip is None or not gzip.lost)
        cost = self._terms.cost(self._fixed, self._granted, said, self._id, whole=is_read)
        if self._fees is None or (cost.mark is Mark.EXACT and self._terms.billed(said) is not None):
            return cost
        usd = cost.cost.get("USD", 0) + self._fees.nano(whole=whole)
        return cost._replace(cost={**cost.cost, "USD": usd}, mark=Mark.ESTIMATED)

    def cut_event(self) -> bytes | None:
        """See `Meter`."""
        return b"" if self._gzip is not None else self._reader.cut_event()


class Blind:
    """See `Reader`: of an answer that is coded in a way that nobody was asked for."""

    __slots__ = ()

    def feed(self, content: bytes) -> bytes:
        """See `Meter`."""
        return content

    def finish(self) -> bytes:
        """See `Meter`."""
        return b""

    def said(self) -> Said:
        """See `Reader`."""
        return Said()

    def cut_event(self) -> bytes:
        """See `Meter`."""
        return b""


def units_of(counts: Counts) -> dict[str, int]:
    """Return counts by kind, as the ledger has them."""
    asked, said, cached, written, _, _, _, _, _, _, searches = counts
    units = {"input": asked, "output": said}
    if cached:
        units["cached"] = cached
    if written:
        units["cache_write"] = written
    if searches:
        units["searches"] = searches
    return units


def routed_nano(cost: object, is_byok: object, details: object) -> int | None:
    """Return what an answer cost by OpenRouter's, x.ai's or Perplexity's account, in nano-USD; None if that is no cost.

    Args:
        cost: The usage's, in USD; or Perplexity's, which has the sum in `total_cost`.
        is_byok: Whether that is only OpenRouter's own share: the rest is billed by who answered.
        details: `upstream_inference_cost` is the rest.

    Source: https://openrouter.ai/docs/use-cases/usage-accounting, https://docs.x.ai/developers/cost-tracking,
    https://docs.perplexity.ai/api-reference/chat-completions-post
    """
    if isinstance(cost, dict):
        cost = cost.get("total_cost")
    said = [cost, details.get("upstream_inference_cost") if isinstance(details, dict) else None][: 2 if is_byok else 1]
    usd = [number(str(one) if isinstance(one, float) else one) for one in said]
    nano = [priced(_DOLLARS, one)["USD"] for one in usd if one is not None]
    return sum(nano) if len(nano) == len(said) else None


def percent_of(geo: str) -> int:
    """Return what of the usual price Anthropic takes for where a model runs.

    Source: https://platform.claude.com/docs/en/build-with-claude/data-residency#pricing
    """
    return 100 if geo in {"", "global", "not_available"} else 110


@lru_cache(maxsize=1024)
def may_think_unseen(model: str) -> bool:
    """Whether a model of this name may make output that does not show."""
    return _THINKING.search(model) is not None
