// What an event says, put into the page. All text goes in as text: names of tokens are chosen by clients.

import { amount, bytes, count, duration, rate, seconds } from "./format.js";
import { sum } from "./history.js";

const MOST_LIMITS = 3;
const MOST_BUDGETS = 3;
const NEARLY_FULL = 0.8;

export function say(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

// Puts texts where the node's descendants name them with `data-is`.
export function fill(node, texts) {
  for (const [name, text] of Object.entries(texts)) say(node.querySelector(`[data-is="${name}"]`), text);
}

// Makes the children of `parent` those that `items` ask for. What stays is changed in place, so that focus stays.
//   still: what is there keeps its place, and what is new goes behind it
function keyed(parent, items, { key, template, update, still = false }) {
  const wanted = new Set(items.map(key));
  const there = new Map();
  for (const child of [...parent.children]) {
    if (wanted.has(child.dataset.key)) there.set(child.dataset.key, child);
    else child.remove();
  }
  let next = parent.firstElementChild;
  for (const item of items) {
    let child = there.get(key(item));
    if (!child) {
      child = document.getElementById(template).content.firstElementChild.cloneNode(true);
      child.dataset.key = key(item);
      parent.insertBefore(child, still ? null : next);
    } else if (child === next) {
      next = next.nextElementSibling;
    } else if (!still) {
      parent.insertBefore(child, next);
    }
    update(child, item);
  }
}

// --- bars ------------------------------------------------------------------------------------------------------------

function bar(row, { name, share, held = 0, used, value, most, words, level }) {
  fill(row, { name, used });
  const meter = row.querySelector(".bar");
  meter.firstElementChild.style.width = `${Math.min(100, 100 * share)}%`;
  meter.style.setProperty("--held", `${Math.max(0, Math.min(100, 100 * held))}%`);
  meter.setAttribute("aria-valuemax", most);
  meter.setAttribute("aria-valuenow", Math.min(value, most));
  meter.setAttribute("aria-valuetext", words);
  meter.setAttribute("aria-label", name);
  row.dataset.level = level;
  row.title = words;
}

export function share(limit) {
  return limit.limit > 0 ? limit.used / limit.limit : 0;
}

function limitBar(row, limit) {
  const full = limit.remaining <= 0;
  const frees = full && typeof limit.reset === "number" ? `, frees in ${seconds(limit.reset)}` : "";
  const words = `${count(limit.used)} of ${count(limit.limit)} used${frees}${limit.shadow ? "; it never refuses" : ""}`;
  bar(row, {
    name: limit.shadow ? `${limit.name} (shadow)` : limit.name,
    share: share(limit),
    used: `${count(limit.used)} / ${count(limit.limit)}${full ? " full" : ""}`,
    value: limit.used,
    most: limit.limit,
    words,
    level: full ? "full" : share(limit) >= NEARLY_FULL ? "near" : "",
  });
}

// What of a budget is spent, and what requests under way may yet cost.
function budgetBar(row, budget) {
  const [limit, spent, held, remaining] = [budget.limit, budget.spent, budget.held, budget.remaining].map(Number);
  const full = remaining <= 0;
  const frees = full && budget.reset > 0 ? `, frees in ${seconds(budget.reset)}` : "";
  bar(row, {
    name: budget.name,
    share: spent / limit,
    held: held / limit,
    used: `${amount(spent + held)} / ${amount(limit)}${full ? " full" : ""}`,
    value: spent + held,
    most: limit,
    words: `${budget.spent} of ${budget.limit} ${budget.unit} spent, ${budget.held} held${frees}`,
    level: full ? "full" : filled(budget) >= NEARLY_FULL ? "near" : "",
  });
}

function filled(budget) {
  return 1 - Number(budget.remaining) / Number(budget.limit);
}

function fullest(all, by, most) {
  const chosen = [...all].sort((one, other) => by(other) - by(one)).slice(0, most);
  return all.filter((one) => chosen.includes(one));
}

function showBars(list, limits, budgets) {
  keyed(list, [...limits, ...budgets], {
    key: (one) => ("spent" in one ? `budget ${one.name}` : one.name),
    template: "limit-row",
    update: (row, one) => ("spent" in one ? budgetBar : limitBar)(row, one),
  });
}

// --- sections --------------------------------------------------------------------------------------------------------

export function showNow(node, usage, history) {
  const totals = (event) => event.totals;
  const latency = history.latency();
  fill(node, {
    requests: rate(history.rate(totals, (counts) => counts.requests)),
    refused: rate(history.rate(totals, (counts) => sum(counts.refused))),
    errors: rate(history.rate(totals, (counts) => counts.upstream_errors)),
    in_flight: count(usage.totals.in_flight),
    p50: duration(latency.p50),
    p90: duration(latency.p90),
    p99: duration(latency.p99),
    spent: spent(usage.totals)[0],
  });
}

// Limits and budgets of all tokens together are told with each token; the newest of them are the fullest.
export function showShared(list, none, usage) {
  const ofAll = (name, by) => {
    const shared = new Map();
    for (const one of usage.tokens.flatMap((token) => token[name])) {
      const known = shared.get(one.name);
      if (one.shared && (!known || by(one) > by(known))) shared.set(one.name, one);
    }
    return [...shared.values()];
  };
  const [limits, budgets] = [ofAll("limits", (limit) => limit.used), ofAll("budgets", filled)];
  showBars(list, limits, budgets);
  none.hidden = limits.length + budgets.length > 0;
}

export function showReasons(list, none, usage) {
  const reasons = Object.entries(usage.totals.refused).filter(([, times]) => times > 0);
  const all = sum(usage.totals.refused);
  keyed(list, reasons.sort((one, other) => other[1] - one[1]), {
    key: ([reason]) => reason,
    template: "limit-row",
    update: (row, [reason, times]) =>
      bar(row, {
        name: reason,
        share: times / all,
        used: count(times),
        value: times,
        most: all,
        words: `${count(times)} of ${count(all)} refusals`,
        level: "reason",
      }),
  });
  none.hidden = reasons.length > 0;
}

// What was spent, by unit, dollars first; nothing is a dash.
function spent(counts) {
  const amounts = Object.entries(counts.cost).sort(([one], [other]) => (other === "USD") - (one === "USD"));
  return amounts.length ? amounts.map(([unit, text]) => `${amount(text)} ${unit}`) : [amount("none")];
}

function texts(counts, perSecond) {
  return {
    rate: rate(perSecond),
    requests: count(counts.requests),
    refused: count(sum(counts.refused)),
    errors: count(counts.upstream_errors),
    in_flight: count(counts.in_flight),
    p90: duration(counts.latency_ms.p90),
    spent: spent(counts).join("\n"),
  };
}

export function showTargets(body, usage, history) {
  keyed(body, Object.entries(usage.targets), {
    key: ([name]) => name,
    template: "target-row",
    update: (row, [name, counts]) =>
      fill(row, {
        name,
        ...texts(counts, history.rate((event) => event.targets.get(name), (one) => one.requests)),
        failed: count(counts.failed),
        bytes_in: bytes(counts.bytes_in),
        bytes_out: bytes(counts.bytes_out),
        p50: duration(counts.latency_ms.p50),
        p99: duration(counts.latency_ms.p99),
      }),
  });
}

// --- tokens ----------------------------------------------------------------------------------------------------------

export function nameOf(token) {
  return token.name || "unnamed";
}

// By what the columns are sorted; numbers the greatest first, names from A to Z.
const SORTS = {
  name: (token) => nameOf(token),
  filled: (token) => Math.max(0, ...own(token.limits).map(share), ...own(token.budgets).map(filled)),
  rate: (token, perSecond) => perSecond ?? -1,
  requests: (token) => token.requests,
  refused: (token) => sum(token.refused),
  retries: (token) => token.retries,
  errors: (token) => token.upstream_errors,
  p90: (token) => token.latency_ms.p90 ?? -1,
  in_flight: (token) => token.in_flight,
  spent: (token) => Number(token.cost.USD ?? Object.values(token.cost)[0] ?? -1),
};

function own(all) {
  return all.filter((one) => !one.shared);
}

// The table of tokens: sorted by a column of the reader's choice, and still while somebody points at it.
export class Tokens {
  #body;
  #by = "requests";
  #revoked = new Set();
  #last = null;
  #onRevoke;

  constructor(body, onRevoke) {
    this.#body = body;
    this.#onRevoke = onRevoke;
    for (const button of body.parentElement.querySelectorAll("[data-sort]")) {
      button.addEventListener("click", () => this.#sort(button));
    }
  }

  show(usage, history) {
    this.#last = [usage, history];
    this.#draw(this.#body.matches(":hover, :focus-within"));
  }

  revoked(id) {
    this.#revoked.add(id);
    if (this.#last) this.#draw(true);
  }

  #sort(button) {
    for (const head of this.#body.parentElement.querySelectorAll("[aria-sort]")) head.removeAttribute("aria-sort");
    this.#by = button.dataset.sort;
    button.parentElement.setAttribute("aria-sort", this.#by === "name" ? "ascending" : "descending");
    if (this.#last) this.#draw(false);
  }

  #draw(still) {
    const [usage, history] = this.#last;
    const rates = new Map(
      usage.tokens.map(({ id }) => [id, history.rate((event) => event.tokens.get(id), (one) => one.requests)]),
    );
    const value = (token) => SORTS[this.#by](token, rates.get(token.id));
    const compare =
      this.#by === "name" ? (a, b) => value(a).localeCompare(value(b)) : (a, b) => value(b) - value(a);
    const byId = (a, b) => (a.id < b.id ? -1 : 1);
    keyed(this.#body, [...usage.tokens].sort((a, b) => compare(a, b) || byId(a, b)), {
      key: (token) => token.id,
      template: "token-row",
      still,
      update: (row, token) => this.#update(row, token, rates.get(token.id)),
    });
  }

  #update(row, token, perSecond) {
    fill(row, {
      name: nameOf(token),
      id: token.id,
      ...texts(token, perSecond),
      retries: count(token.retries),
    });
    row.querySelector(".name").classList.toggle("none", !token.name);
    showBars(
      row.querySelector(".limits"),
      fullest(own(token.limits), share, MOST_LIMITS),
      fullest(own(token.budgets), filled, MOST_BUDGETS),
    );
    const button = row.querySelector(".revoke");
    const isRevoked = token.revoked || this.#revoked.has(token.id);
    row.classList.toggle("revoked", isRevoked);
    say(button, isRevoked ? "Revoked" : "Revoke");
    // Not `disabled`: that would take the focus away from where the reader is.
    button.setAttribute("aria-disabled", String(isRevoked));
    button.setAttribute("aria-label", `${button.textContent} ${nameOf(token)} ${token.id}`);
    button.onclick = () => isRevoked || this.#onRevoke(token);
  }
}
