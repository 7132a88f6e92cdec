"""What a soak has found: what came to the upstream, held against what clients were told."""

from __future__ import annotations

import collections
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tools.soak_clients import NOT_SENT
from tools.soak_upstream import BEGUN, OTHER_KEY, PROBE, SPOILT, WHOLE

if TYPE_CHECKING:
    from pathlib import Path

    from tools.soak_clients import Tally


@dataclass
class Report:
    """What a soak has found; what `--json` prints."""

    seconds: int
    seed: int
    requests: int = 0
    outcomes: dict[str, int] = field(default_factory=dict)
    kinds: dict[str, dict[str, int]] = field(default_factory=dict)
    codes: dict[str, int] = field(default_factory=dict)
    faults: dict[str, int] = field(default_factory=dict)
    at_rest: dict[str, list[dict[str, int]]] = field(default_factory=dict)
    """By gateway: what it held after the warming up, and at the end."""
    violations: dict[str, int] = field(default_factory=dict)
    examples: list[str] = field(default_factory=list)

    def text(self) -> str:
        """Return it for people."""
        lines = [f"{self.requests:,} requests in {self.seconds} s (seed {self.seed}): {listed(self.outcomes)}"]
        lines += [f"  {kind}: {listed(outcomes)}" for kind, outcomes in sorted(self.kinds.items())]
        lines += [f"the gateway's own answers: {listed(self.codes)}", f"faults: {listed(self.faults)}"]
        for name, (before, after) in self.at_rest.items():
            lines.append(
                f"{name}, at rest: {before['descriptors']} descriptors, then {after['descriptors']}; "
                f"{before['rss_bytes'] / 1e6:.1f} MB, then {after['rss_bytes'] / 1e6:.1f} MB"
            )
        lines += [f"VIOLATION, {count} times: {what}" for what, count in self.violations.items()]
        lines += [f"  {example}" for example in self.examples]
        return "\n".join([*lines, "violations: " + (str(sum(self.violations.values())) if self.violations else "none")])


def listed(counts: dict[str, int]) -> str:
    """Return counts as words, the largest first."""
    return ", ".join(f"{count:,} {what}" for what, count in sorted(counts.items(), key=lambda one: -one[1])) or "none"


def compare(ledger: Path, tally: Tally) -> None:
    """Note what is wrong with what came to the upstream.

    Args:
        ledger: What the upstream has noted.
        tally: What the clients have.
    """
    noted: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
    methods: dict[str, str] = {}
    for line in ledger.read_text(encoding="ascii").splitlines():
        what, method, name = line.split(" ")
        noted[name][what] += 1
        methods[name] = method
    noted.pop(PROBE, None)
    for name, counts in noted.items():
        kind, outcome = tally.outcomes.get(name, ("nobody's", "left"))
        checks = {
            "a request that nobody sent": name not in tally.outcomes,
            "a POST sent twice": methods[name] == "POST" and counts[BEGUN] > 1,
            "a request sent more than twice": counts[BEGUN] > 2,
            "sent though it was refused": outcome in NOT_SENT,
            "sent with another key": counts[OTHER_KEY] > 0,
            "spoilt on its way up": counts[SPOILT] > 0,
            "whole upstream, cut by the client": name in tally.never_whole and counts[WHOLE] > 0,
        }
        for what, is_so in checks.items():
            if is_so:
                tally.violation(what, f"{kind} {name}: {dict(counts)}, {outcome}")
    for name, (kind, outcome) in tally.outcomes.items():
        if outcome == "whole" and name not in noted:
            tally.violation("answered, but never sent", f"{kind} {name}")
