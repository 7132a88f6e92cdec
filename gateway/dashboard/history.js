// What the last events said: the points of the charts, and rates from counters that only ever grow.

export const SPAN_S = 300;
// Rates in figures and tables are means over this, and latency is of the requests in it; a single second is too restless
// to be read.
const MEAN_S = 5;
// Longer without an event, and the line of a chart has a gap.
const GAP_S = 3.5;

export function sum(counts) {
  return Object.values(counts ?? {}).reduce((total, one) => total + one, 0);
}

export class History {
  // Columns as uPlot wants them: seconds, then one for each line.
  points = { at: [], requests: [], refused: [], errors: [], p50: [], p90: [], p99: [] };
  #recent = [];

  // Takes an event; `at_s` is its time, in seconds.
  add(usage, at_s) {
    const before = this.#recent.at(-1);
    if (before && at_s <= before.at_s) {
      if (before.at_s - at_s < MEAN_S) return; // said before: the stream was opened again, maybe at another instance
      this.#recent = []; // the gateway's clock was set back
      for (const column of Object.values(this.points)) column.length = 0;
      this.add(usage, at_s);
      return;
    }
    const tokens = new Map(usage.tokens.map((token) => [token.id, token]));
    const targets = new Map(Object.entries(usage.targets));
    this.#recent.push({ at_s, totals: usage.totals, tokens, targets });
    while (at_s - this.#recent[0].at_s > MEAN_S + 0.5) this.#recent.shift();
    if (before && at_s - before.at_s > GAP_S) this.#push(before.at_s + 1, {});
    const second = (read) => (before ? perSecond(read(before.totals), read(usage.totals), at_s - before.at_s) : null);
    this.#push(at_s, {
      requests: second((totals) => totals.requests),
      refused: second((totals) => sum(totals.refused)),
      errors: second((totals) => totals.upstream_errors),
      ...this.latency(),
    });
  }

  // The quantiles of the last seconds, in milliseconds: those of the gateway are of all requests ever.
  latency() {
    const { bounds, counts } = this.#recent.at(-1).totals.latency_histogram_ms;
    const before = this.#recent[0].totals.latency_histogram_ms;
    const comparable = before.counts.length === counts.length; // not in the middle of an update of the gateway
    const recent = counts.map((count, at) => (comparable ? Math.max(0, count - before.counts[at]) : 0));
    return { p50: quantile(bounds, recent, 0.5), p90: quantile(bounds, recent, 0.9), p99: quantile(bounds, recent, 0.99) };
  }

  // The mean rate of a counter over the last seconds; null where it is not known.
  //   pick(event)  finds the counts in an event;  read(counts)  finds the counter in those
  rate(pick, read) {
    const [first, last] = [this.#recent[0], this.#recent.at(-1)];
    if (!first || first === last) return null;
    const [before, now] = [pick(first), pick(last)];
    return before && now ? perSecond(read(before), read(now), last.at_s - first.at_s) : null;
  }

  #push(at_s, values) {
    const full = this.points.at.length > SPAN_S;
    for (const [name, column] of Object.entries(this.points)) {
      column.push(name === "at" ? at_s : (values[name] ?? null));
      if (full) column.shift();
    }
  }
}

// Within a bucket, values are taken to lie evenly; of what is beyond the last bound, only that is known.
function quantile(bounds, counts, share) {
  const total = sum(counts);
  if (!total) return null;
  let wanted = share * total;
  for (const [at, bound] of bounds.entries()) {
    const least = at ? bounds[at - 1] : 0;
    if (counts[at] && wanted <= counts[at]) return least + ((bound - least) * wanted) / counts[at];
    wanted -= counts[at];
  }
  return bounds.at(-1);
}

// A counter that went back belongs to a process that was started anew: nothing is known.
function perSecond(before, now, seconds) {
  return now >= before ? (now - before) / seconds : null;
}
