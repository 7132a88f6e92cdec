// The dashboard: follows `/admin/usage?stream`, shows each event, revokes tokens. Begin to read here.

import { Chart } from "./charts.js";
import { Feed, Refusal, ask } from "./feed.js";
import { clock, count, duration, rate } from "./format.js";
import { History } from "./history.js";
import { Tokens, nameOf, say, showNow, showReasons, showShared, showTargets } from "./tables.js";

// Where the key is kept: for this tab alone, and never on disk.
const KEPT = "gateway-admin-key";

// The gateway tells of no more tokens; there may be others.
const MOST_TOLD = 100;

const $ = (id) => document.getElementById(id);

let key = sessionStorage.getItem(KEPT) ?? "";
let paused = false;
let last = null; // the event that came last
let frame = 0; // the request to draw it, or 0

const history = new History();
const rates = new Chart(
  $("rate-chart"),
  $("rate-legend"),
  [
    { name: "requests", label: "requests", colour: "requests", fill: true },
    { name: "refused", label: "refused", colour: "refused", fill: true },
    { name: "errors", label: "errors", colour: "errors", dash: [4, 3] },
  ],
  rate,
);
const latencies = new Chart(
  $("latency-chart"),
  $("latency-legend"),
  [
    { name: "p50", label: "p50", colour: "p50" },
    { name: "p90", label: "p90", colour: "p90" },
    { name: "p99", label: "p99", colour: "p99" },
  ],
  duration,
);
const tokens = new Tokens($("tokens"), confirmRevoking);
const feed = new Feed("admin/usage?stream", { onUsage, onState, onRefused });

// --- the stream ------------------------------------------------------------------------------------------------------

function onUsage(usage) {
  const at_s = Date.parse(usage.at) / 1000;
  history.add(usage, at_s);
  last = { usage, at_s };
  drawSoon();
}

// With the browser's next frame, so that a tab that nobody sees draws nothing.
function drawSoon() {
  frame ||= requestAnimationFrame(draw);
}

function draw() {
  frame = 0;
  if (last && !paused) show(last);
}

function show({ usage, at_s }) {
  document.body.classList.toggle("unpaid", Object.keys(usage.totals.cost).length === 0);
  showNow($("now"), usage, history);
  rates.show(history.points);
  latencies.show(history.points);
  showShared($("shared"), $("no-shared"), usage);
  showReasons($("reasons"), $("no-reasons"), usage);
  tokens.show(usage, history);
  showTargets($("targets"), usage, history);
  const told = usage.tokens.length;
  say($("tokens-count"), told < MOST_TOLD ? (told ? count(told) : "") : `the ${told} busiest`);
  $("no-tokens").hidden = usage.tokens.length > 0;
  say($("as-of"), `${clock(at_s)}, ${count(usage.instances)} ${usage.instances === 1 ? "instance" : "instances"}`);
}

function onState(state, why) {
  if (state === "connecting" && $("state").dataset.state === "waiting") return; // it would only flicker
  $("state").dataset.state = state;
  const waiting = `Reconnecting. ${why}`;
  say($("state-text"), { connecting: "Connecting", live: "Live", late: "No news from the gateway", waiting }[state]);
  if (state === "live") accepted();
}

// --- the key ---------------------------------------------------------------------------------------------------------

function accepted() {
  const asked = !$("ask").hidden;
  $("ask").hidden = true;
  $("usage").hidden = false;
  $("pause").hidden = false;
  if (asked) $("usage").focus(); // what had the focus has gone
  $("forget").hidden = !key;
}

function onRefused(why) {
  say($("why"), key ? `This key was refused. ${why}` : why);
  $("why").classList.toggle("wrong", key !== "");
  key = "";
  sessionStorage.removeItem(KEPT);
  $("state").dataset.state = "refused";
  say($("state-text"), "Key needed");
  say($("as-of"), "");
  $("ask").hidden = false;
  for (const id of ["usage", "pause", "forget"]) $(id).hidden = true;
  $("key").value = "";
  $("key").focus();
}

$("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  const given = $("key").value.trim();
  if (!/^[\x21-\x7e]+$/.test(given)) {
    say($("why"), "A key has no spaces, and only letters, digits and signs of ASCII.");
    $("why").classList.add("wrong");
    return;
  }
  key = given;
  sessionStorage.setItem(KEPT, key);
  say($("why"), "");
  feed.open(key);
});
$("forget").addEventListener("click", () => {
  sessionStorage.removeItem(KEPT);
  location.reload(); // nothing of what was shown stays
});

$("pause").addEventListener("click", () => {
  paused = !paused;
  $("pause").setAttribute("aria-pressed", String(paused));
  document.body.classList.toggle("paused", paused);
  drawSoon();
});

// --- revoking --------------------------------------------------------------------------------------------------------

let asked = null; // the token that the dialog is about

function confirmRevoking(token) {
  asked = token;
  say($("confirm-who"), `${nameOf(token)}, ${token.id}`);
  say($("confirm-failed"), "");
  $("confirm").showModal();
}

async function revoke() {
  const token = asked;
  $("confirm-yes").disabled = true;
  try {
    await ask(`admin/tokens/${encodeURIComponent(token.id)}`, key, { method: "DELETE" });
    tokens.revoked(token.id);
    $("confirm").close();
    say($("said"), `Revoked ${nameOf(token)}, ${token.id}.`);
  } catch (error) {
    say($("confirm-failed"), error instanceof Refusal ? error.message : "The gateway cannot be reached.");
  } finally {
    $("confirm-yes").disabled = false;
  }
}

$("confirm-no").addEventListener("click", () => $("confirm").close());
$("confirm-yes").addEventListener("click", revoke);

feed.open(key);
