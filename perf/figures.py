"""The measurements behind each figure of the comparison. All of them go through the systems in turns."""

from __future__ import annotations

import statistics
import time
from collections import defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Protocol

from perf.client import request
from perf.lab import Lab, Refused, Server
from perf.measure import AGREEMENT, GENERATOR_MOST, PACE_KEPT, Sample, disagreement, not_the_bottleneck, sample, warm_up
from perf.peers import start_event_upstream, start_upstream
from perf.upstream import BIG_BYTES

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

DIRECT: Final = "direct"
CONNECTIONS: Final = 32
BIG_TIMES: Final = 5
EVENT_INTERVAL_MS: Final = 5


@dataclass(frozen=True)
class Figure:
    """One row of the table: a value for each system."""

    key: str
    label: str
    decimals: int
    values: Mapping[str, float]
    doubts: Mapping[str, Sequence[str]]
    """Why the value of a system cannot be believed; there is an entry only for those."""
    rounds: Mapping[str, Sequence[float]]
    """What the values are the medians of."""


class Field:
    """The systems of a comparison, started when they are first needed.

    Args:
        lab: Runs them.
        redis: The Redis that some of them use.
        starters: By name, what starts each system in front of an upstream.
    """

    def __init__(self, lab: Lab, redis: Server | None, starters: Mapping[str, Callable[[Server], Server]]) -> None:
        self._lab = lab
        self._redis = redis
        self._starters = starters
        self._upstreams: dict[str, Server] = {}
        self._started: dict[tuple[str, str], Server] = {}
        self.systems = list(starters)
        self.saturated: dict[str, list[Sample]] = defaultdict(list)
        """Each system with all the load that it takes."""

    def upstream(self, *, events: bool = False) -> Server:
        """The mock upstream, or the one that stamps events."""
        kind = "events" if events else "plain"
        if kind not in self._upstreams:
            start = start_event_upstream if events else start_upstream
            self._upstreams[kind] = start(self._lab)
        return self._upstreams[kind]

    def server(self, system: str, *, events: bool = False) -> Server:
        """A running system in front of one of the upstreams, or that upstream itself for `direct`."""
        if system == DIRECT:
            return self.upstream(events=events)
        key = (system, "events" if events else "plain")
        if key not in self._started:
            self._started[key] = server = self._starters[system](self.upstream(events=events))
            warm_up(server)
        return self._started[key]

    def start_once(self, system: str) -> float:
        """Start one more of a system, end it, and return the seconds from start to listening."""
        server = self._starters[system](self.upstream())
        server.stop()
        return server.start_s

    @property
    def chain(self) -> list[Server]:
        """What the systems wait for."""
        return [self.upstream(), *([] if self._redis is None else [self._redis])]

    def saturate(self, system: str, seconds: float) -> Sample:
        """Measure a system with all the load that it takes, and keep that."""
        one = sample(self.server(system), self.chain, connections=CONNECTIONS, seconds=seconds)
        self.saturated[system].append(one)
        return one

    def idle(self, system: str) -> str | None:
        """Say why a gateway was not saturated, or None if it was.

        Only of the gateway is it claimed; a peer that had idle time did at least as well as is said.
        """
        return not_the_bottleneck(system, self.saturated[system]) if system.startswith("gateway") else None


class Measurement(Protocol):
    """Something measured in turns."""

    @property
    def keys(self) -> tuple[str, ...]:
        """Of the figures that come out of it."""

    @property
    def cells(self) -> list[str]:
        """The systems that it measures, in order."""

    def measure(self, cell: str, number: int) -> str:
        """Measure a cell once; say what came out, for progress."""

    def figures(self) -> list[Figure]:
        """Return what has been found so far, with the doubts about it."""


@dataclass
class _Values:
    """Values by cell and round, which become one figure.

    Args:
        key: The figure's.
        label: The figure's.
        what: Names the values in a doubt.
        is_added: Whether the figure is what a system adds to `direct` in the same round.
    """

    key: str
    label: str
    what: str
    decimals: int = 0
    is_added: bool = False
    seen: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))

    def figure(
        self, doubts: Mapping[str, str | None] | None = None, base: Mapping[str, Sequence[float]] | None = None
    ) -> Figure:
        """Make the figure.

        Args:
            doubts: Those that the values themselves do not show; `None` where there is none.
            base: By system and round, what is taken off; None: `direct`, where the figure is what is added.
        """
        rounds: dict[str, list[float]] = {}
        found: dict[str, list[str]] = defaultdict(list)
        for cell, values in self.seen.items():
            if cell == DIRECT:
                continue
            own = {cell: values, **({DIRECT: self.seen[DIRECT]} if self.is_added else {})}
            for name, measured in own.items():
                apart = disagreement(measured)
                if apart > AGREEMENT:
                    found[cell].append(f"{self.what} of {name} differs by {apart:.0%} from round to round")
            if doubts is not None and (doubt := doubts[cell]) is not None:
                found[cell].append(doubt)
            direct = base[cell] if base is not None else self.seen[DIRECT] if self.is_added else [0.0] * len(values)
            rounds[cell] = [value - off for value, off in zip(values, direct, strict=True)]
            if base is not None and (apart := disagreement(rounds[cell])) > AGREEMENT:
                found[cell].append(f"what {cell} adds differs by {apart:.0%} from round to round")
            if statistics.median(rounds[cell]) <= 0:
                found[cell].append(f"not slower than {DIRECT}, so it is noise")
        medians = {cell: statistics.median(values) for cell, values in rounds.items()}
        return Figure(self.key, self.label, self.decimals, medians, dict(found), rounds)


class Saturated:
    """As many requests as the system takes, on 32 connections: CPU per request, requests per second, memory."""

    keys = ("cpu", "rate", "rss")

    def __init__(self, field_: Field, seconds: float) -> None:
        self._field, self._seconds = field_, seconds
        self.cells = list(field_.systems)
        self._cpu = _Values("cpu", f"CPU per request, {CONNECTIONS} connections, µs", "CPU per request", 1)
        self._rate = _Values("rate", f"requests/s, {CONNECTIONS} connections", "requests/s")
        self._rss = _Values("rss", "memory (RSS) after that, MB", "memory", 1)

    def measure(self, cell: str, number: int) -> str:
        """See `Measurement`."""
        one = self._field.saturate(cell, self._seconds)
        self._cpu.seen[cell].append(one.cpu_us)
        self._rate.seen[cell].append(one.load.rate)
        self._rss.seen[cell].append(one.rss_bytes / 1e6)
        return (
            f"{one.cpu_us:.1f} us of CPU, {one.load.rate:,.0f} req/s, had work for {one.wanted:.0%} of the time; "
            f"{one.load.generator} took {one.load.generator_share:.0%} of a core"
        )

    def figures(self) -> list[Figure]:
        """See `Measurement`."""
        idle = {cell: self._field.idle(cell) for cell in self._rate.seen}
        return [self._cpu.figure(), self._rate.figure(idle), self._rss.figure()]


class Single:
    """One connection, one request at a time: what the system adds to the median."""

    keys = ("p50",)

    def __init__(self, field_: Field, seconds: float) -> None:
        self._field, self._seconds = field_, seconds
        self.cells = [DIRECT, *field_.systems]
        self._p50 = _Values("p50", "added p50, 1 connection, µs", "p50", is_added=True)

    def measure(self, cell: str, number: int) -> str:
        """See `Measurement`."""
        one = sample(self._field.server(cell), self._field.chain, connections=1, seconds=self._seconds)
        self._p50.seen[cell].append(one.p(50))
        return f"p50 {one.p(50):,.0f} us"

    def figures(self) -> list[Figure]:
        """See `Measurement`."""
        return [self._p50.figure()]


class Paced:
    """Half of what the system takes, at random moments, on 32 connections: what it adds to the slowest hundredth."""

    keys = ("p99",)

    def __init__(self, field_: Field, seconds: float) -> None:
        self._field, self._seconds = field_, seconds
        self.cells = list(field_.systems)
        self._rates: dict[str, float] = {}
        self._p99 = _Values("p99", f"added p99, {CONNECTIONS} connections, half of saturation, µs", "p99")
        self._direct: dict[str, list[float]] = defaultdict(list)
        self._kept: dict[str, list[float]] = defaultdict(list)
        self._busy: dict[str, list[float]] = defaultdict(list)

    def measure(self, cell: str, number: int) -> str:
        """See `Measurement`."""
        server, chain = self._field.server(cell), self._field.chain
        if cell not in self._rates:
            if not self._field.saturated[cell]:
                self._field.saturate(cell, self._seconds)
            self._rates[cell] = statistics.median(one.load.rate for one in self._field.saturated[cell]) / 2
        rate = self._rates[cell]
        # Upstream and generator have delays of their own at this rate: the two are measured next to each other.
        direct, one = (
            sample(each, chain, connections=CONNECTIONS, seconds=self._seconds, rate=rate)
            for each in (self._field.upstream(), server)
        )
        self._kept[cell].append(one.load.rate / rate)
        self._busy[cell].append(one.load.generator_share)
        self._p99.seen[cell].append(one.p(99))
        self._direct[cell].append(direct.p(99))
        return (
            f"{one.load.rate:,.0f} req/s, p99 {one.p(99):,.0f} us, direct {direct.p(99):,.0f} us; the generator was "
            f"{one.load.late_us:,.0f} us late at p99 and took {one.load.generator_share:.0%} of a core"
        )

    def figures(self) -> list[Figure]:
        """See `Measurement`."""
        broken: dict[str, str | None] = {}
        for cell in self._p99.seen:
            kept, busy = statistics.median(self._kept[cell]), statistics.median(self._busy[cell])
            # Half of what was not all is not half of saturation.
            broken[cell] = self._field.idle(cell)
            if broken[cell] is not None:
                continue
            if kept < PACE_KEPT:
                broken[cell] = f"only {kept:.0%} of the requests that were due could be sent"
            elif busy > GENERATOR_MOST:
                broken[cell] = f"the load generator took {busy:.0%} of a core: what is late may be its own"
        return [self._p99.figure(broken, base=self._direct)]


class Bulk:
    """A 200 MB answer five times: CPU seconds per GB."""

    keys = ("bulk",)

    def __init__(self, field_: Field, times: int) -> None:
        self._field, self._times = field_, times
        self.cells = list(field_.systems)
        self._cpu = _Values("bulk", "CPU per GB of answer, s", "CPU per GB", 2)

    def measure(self, cell: str, number: int) -> str:
        """See `Measurement`."""
        server = self._field.server(cell)
        before = server.usage().cpu_s
        began = time.monotonic()
        with server.connect() as connection:
            for _ in range(self._times):
                connection.send(request("/api/big", server.token))
                status, length = connection.read_head()
                if status != 200 or length != BIG_BYTES:
                    raise Refused(f"{cell}: {status} with {length} bytes instead of 200 with {BIG_BYTES}")
                connection.skip(BIG_BYTES)
        took_s = time.monotonic() - began
        gigabytes = self._times * BIG_BYTES / 1e9
        self._cpu.seen[cell].append((server.usage().cpu_s - before) / gigabytes)
        return f"{self._cpu.seen[cell][-1]:.2f} CPU s/GB, {gigabytes / took_s:.2f} GB/s"

    def figures(self) -> list[Figure]:
        """See `Measurement`."""
        return [self._cpu.figure()]


class Events:
    """Server-sent events, one by one: what the system adds to the time from the upstream's write to the client's read.

    The client is a blocking read: nothing else runs in it, and it wakes up sooner than an event loop would.
    """

    keys = ("events", "events99")

    def __init__(self, field_: Field, seconds: float) -> None:
        self._field = field_
        self._count = max(20, int(seconds * 1000 / EVENT_INTERVAL_MS))
        self.cells = [DIRECT, *field_.systems]
        label = "delay added to a server-sent event"
        self._p50 = _Values("events", f"{label}, p50, µs", "p50 of the delay", is_added=True)
        self._p99 = _Values("events99", f"{label}, p99, µs", "p99 of the delay", is_added=True)

    def measure(self, cell: str, number: int) -> str:
        """See `Measurement`."""
        server = self._field.server(cell, events=True)
        target = f"/api/events?count={self._count}&interval_ms={EVENT_INTERVAL_MS}"
        delays_us = []
        with server.connect() as connection:
            connection.send(request(target, server.token))
            status, _ = connection.read_head()
            if status != 200:
                raise Refused(f"{cell}: not every answer was 2xx (an event stream was answered with {status})")
            for line in connection.lines():
                if line.startswith(b"data: "):
                    delays_us.append((time.monotonic_ns() - int(line.split(b" ")[1])) / 1e3)
                    if len(delays_us) == self._count:
                        break
        cuts = statistics.quantiles(delays_us, n=100, method="inclusive")
        self._p50.seen[cell].append(cuts[49])
        self._p99.seen[cell].append(cuts[98])
        return f"delay p50 {cuts[49]:,.0f} us, p99 {cuts[98]:,.0f} us of {self._count} events"

    def figures(self) -> list[Figure]:
        """See `Measurement`."""
        return [self._p50.figure(), self._p99.figure()]


class Start:
    """From the start of the process to the first connection that it accepts."""

    keys = ("start",)

    def __init__(self, field_: Field) -> None:
        self._field = field_
        self.cells = list(field_.systems)
        self._start = _Values("start", "from start to listening, ms", "the time to start")

    def measure(self, cell: str, number: int) -> str:
        """See `Measurement`."""
        took_ms = self._field.start_once(cell) * 1e3
        self._start.seen[cell].append(took_ms)
        return f"{took_ms:,.0f} ms"

    def figures(self) -> list[Figure]:
        """See `Measurement`."""
        return [self._start.figure()]
