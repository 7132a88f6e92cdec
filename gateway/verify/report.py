"""What a run found, as a person and as a program read it. Pure."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Final, NamedTuple

from gateway.verify.judge import judge, read_policies
from gateway.verify.tally import ADMITTED, RATE_LIMITED, UNANSWERED, UNDECIDED, UNREACHABLE

if TYPE_CHECKING:
    from gateway.verify.faults import Outage
    from gateway.verify.judge import Finding
    from gateway.verify.tally import Tally

SETTLE_US: Final = 1_000_000
"""How long after an outage a gateway may take to notice its end."""


class Result(NamedTuple):
    """All that a run found.

    Args:
        tally: The sum of all counts.
        findings: One for each limit that the gateway told of.
        outages: What was done to Redis.
        recovered_us: For each outage, how long after its end requests were still not decided.
        took_s: How long requests were sent, in seconds.
        is_cut: Whether that was shorter than asked for, because all the requests allowed were sent.
    """

    tally: Tally
    findings: tuple[Finding, ...]
    outages: tuple[Outage, ...]
    recovered_us: tuple[int, ...]
    took_s: float
    is_cut: bool

    @property
    def over(self) -> int:
        """The worst over-admission of any limit."""
        return max((finding.over for finding in self.findings), default=0)

    @property
    def usable(self) -> float | None:
        """Which share could be had of the limit that was the tightest, while Redis answered; None: not known."""
        shares = [finding.usable for finding in self.findings if finding.usable is not None]
        return max(shares) if shares and self.tally.kinds[RATE_LIMITED] else None


def conclude(
    tally: Tally, outages: tuple[Outage, ...], undecided_us: list[int], took_s: float, *, is_cut: bool
) -> Result:
    """Judge what has been counted.

    Args:
        tally: The sum; all that stated limits stated the same.
        outages: In their order.
        undecided_us: Instants at which requests were answered that could not be decided.
        took_s: How long requests were sent.
        is_cut: Whether all the requests allowed were sent before the time was over.
    """
    disturbed = [(outage.begin_us, outage.end_us + SETTLE_US) for outage in outages]
    limits = [limit for policy in tally.policies for limit in read_policies(policy)]
    findings = tuple(judge(limit, tally.admissions, disturbed) for limit in limits)
    ends = [outage.begin_us for outage in outages[1:]]
    recovered_us = tuple(
        max((at for at in undecided_us if outage.end_us <= at and (next_us is None or at < next_us)), default=0)
        for outage, next_us in zip(outages, [*ends, None], strict=False)
    )
    lasted = tuple(max(0, last - outage.end_us) for outage, last in zip(outages, recovered_us, strict=True))
    return Result(tally, findings, outages, lasted, took_s, is_cut)


def progress(tally: Tally, passed_s: float) -> str:
    """Say in a line how far it is."""
    kinds = tally.kinds
    others = sum(kinds.values()) - kinds[ADMITTED] - kinds[RATE_LIMITED]
    return (
        f"{passed_s:5.1f} s  asked {tally.asked:,}  admitted {kinds[ADMITTED]:,}  refused {kinds[RATE_LIMITED]:,}"
        f"  neither {others:,}"
    )


def as_text(result: Result) -> str:
    """Write it for a person."""
    tally = result.tally
    others = {kind: count for kind, count in tally.kinds.items() if kind not in {ADMITTED, RATE_LIMITED}}
    lines = [
        ("asked", f"{tally.asked:,} requests in {result.took_s:.1f} s{', then --most was reached' * result.is_cut}"),
        ("admitted", f"{tally.kinds[ADMITTED]:,}"),
        ("refused", f"{tally.kinds[RATE_LIMITED]:,}"),
        ("neither", ", ".join(f"{count:,} {_NEITHER.get(kind, kind)}" for kind, count in others.items()) or "0"),
    ]
    for finding in result.findings:
        name, quota, window_s = finding.limit
        lines.append((f"limit {name}", f"{quota:,} in {window_s} s; in the worst window {finding.worst_window:,}"))
    lines.append(("over-admission", f"{result.over:,}"))
    usable = "not measured: it takes refusals, and twice the window without an outage"
    lines.append(("usable", usable if result.usable is None else f"{result.usable:.1%} of the limit"))
    slowest = sorted(tally.slowest_us.items(), key=lambda item: -item[1])
    lines.append(
        ("slowest answer", ", ".join(f"{us / 1000:,.0f} ms ({_NAMES.get(kind, kind)})" for kind, us in slowest))
    )
    for outage, recovered_us in zip(result.outages, result.recovered_us, strict=True):
        lines.append((f"redis {outage.what}", _outage(outage, recovered_us)))
    lines.append(("verdict", _verdict(result)))
    return "".join(f"{name:<16}{value}\n" for name, value in lines)


_NAMES: Final = {ADMITTED: "admitted", RATE_LIMITED: "refused", UNDECIDED: "503 store_unavailable"}
_NEITHER: Final = {
    UNDECIDED: "503 store_unavailable",
    UNANSWERED: "without an answer",
    UNREACHABLE: "connections not made",
}


def _outage(outage: Outage, recovered_us: int) -> str:
    data = "" if outage.kept_data else ", without its data"
    return (
        f"for {(outage.end_us - outage.begin_us) / 1e6:.1f} s{data}; the last request that could not be decided: "
        f"{recovered_us / 1000:,.0f} ms after"
    )


def _verdict(result: Result) -> str:
    if not result.findings:
        return "nothing is known of any limit: no answer had a RateLimit-Policy"
    if not result.over:
        return "no limit was exceeded"
    forgot = sum(not outage.kept_data for outage in result.outages)
    cause = (
        f"; Redis came back without its data, which costs up to the whole limit each time ({forgot}): "
        "let it keep them (appendonly yes)"
        if forgot
        else ""
    )
    return f"EXCEEDED by {result.over:,}{cause}"


def as_json(result: Result) -> str:
    """Write it for a program, on one line."""
    tally = result.tally
    return json.dumps(
        {
            "asked": tally.asked,
            "admitted": tally.kinds[ADMITTED],
            "refused": tally.kinds[RATE_LIMITED],
            "neither": {k: count for k, count in tally.kinds.items() if k not in {ADMITTED, RATE_LIMITED}},
            "limits": [
                {
                    **finding.limit._asdict(),
                    "worst_window": finding.worst_window,
                    "over_admission": finding.over,
                }
                for finding in result.findings
            ],
            "over_admission": result.over,
            "usable": result.usable,
            "slowest_ms": {kind: us / 1000 for kind, us in tally.slowest_us.items()},
            "outages": [
                {
                    "what": outage.what,
                    "lasted_s": (outage.end_us - outage.begin_us) / 1e6,
                    "kept_data": outage.kept_data,
                    "undecided_for_ms": recovered_us / 1000,
                }
                for outage, recovered_us in zip(result.outages, result.recovered_us, strict=True)
            ],
            "took_s": result.took_s,
            "most_reached": result.is_cut,
        }
    )
