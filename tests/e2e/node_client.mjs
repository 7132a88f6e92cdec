// What Node's programs use, fetch and node:http, unchanged. Run as `node node_client.mjs SCENARIO URL TOKEN`; it prints
// JSON, a line for each thing that happened.

import { createHash } from "node:crypto";
import { subscribe } from "node:diagnostics_channel";
import { Agent, request } from "node:http";
import { Readable } from "node:stream";

const [scenario, url, token] = process.argv.slice(2);
const headers = { authorization: `Bearer ${token}` };
const say = (seen) => process.stdout.write(`${JSON.stringify(seen)}\n`);

let connections = 0;
subscribe("undici:client:connected", () => { connections += 1; });

// fetch hands over the last of an answer a moment before it takes its connection back.
const aMoment = () => new Promise((resolve) => { setImmediate(resolve); });

async function* pieces(count) {
  for (let number = 0; number < count; number += 1) yield Buffer.alloc(10_000 + number, number % 256);
}

async function digest(stream) {
  const hash = createHash("sha256");
  let size = 0;
  for await (const piece of stream) {
    hash.update(piece);
    size += piece.length;
  }
  return { size, sha256: hash.digest("hex") };
}

function ask(options, send) {
  return new Promise((resolve, reject) => {
    const seen = { interim: [] };
    const asked = request(url, { headers, ...options });
    asked.on("information", ({ statusCode, headers: hints }) => seen.interim.push([statusCode, hints.link]));
    asked.on("continue", () => asked.end(send.body));
    asked.on("response", async (answer) => {
      const chunks = await answer.toArray();
      resolve({ ...seen, status: answer.statusCode, body: Buffer.concat(chunks).toString(), trailers: answer.trailers });
    });
    asked.on("error", reject);
    send(asked);
  });
}

const scenarios = {
  async get() {
    for (let turn = 0; turn < 5; turn += 1) {
      const answer = await fetch(url, { headers });
      say({ status: answer.status, body: await answer.text(), limit: answer.headers.get("ratelimit") });
      await aMoment();
    }
    say({ connections });
  },
  async bodiless() {
    for (const [method, path] of [["HEAD", "x"], ["GET", "none"], ["GET", "same"], ["GET", "x"]]) {
      const answer = await fetch(`${url}/${path}`, { method, headers: { ...headers, "if-none-match": '"1"' } });
      say({ status: answer.status, length: answer.headers.get("content-length"), body: await answer.text() });
    }
  },
  async json() {
    const body = JSON.stringify({ a: "\u00e9" });
    for (const method of ["POST", "PUT", "PATCH", "DELETE"]) {
      const answer = await fetch(url, { method, body, headers: { ...headers, "content-type": "application/json" } });
      say({ method, body: await answer.json() });
    }
  },
  async upload() {
    const sent = await digest(pieces(200));
    const body = Readable.toWeb(Readable.from(pieces(200)));
    const answer = await fetch(url, { method: "POST", headers, body, duplex: "half" });
    say({ sent, got: await answer.text() });
  },
  async download() {
    say(await digest((await fetch(url, { headers })).body));
  },
  async events() {
    const decoder = new TextDecoder();
    for await (const piece of (await fetch(url, { headers })).body) say(decoder.decode(piece));
  },
  async leave() {
    const aborting = new AbortController();
    const answer = await fetch(url, { headers, signal: aborting.signal });
    for await (const piece of answer.body) {
      say({ came: piece.length > 0 });
      break;
    }
    aborting.abort();
    // It stays until the test has seen the end at the upstream, and closes its stdin.
    await process.stdin.toArray();
  },
  async cut() {
    const answer = await fetch(url, { headers });
    say({ status: answer.status, ended: await answer.text().then(() => "whole", (error) => error.constructor.name) });
  },
  async redirects() {
    const kept = await fetch(url, { headers, redirect: "manual" });
    say({ status: kept.status, location: kept.headers.get("location") });
    const followed = await fetch(url, { method: "POST", headers, body: "{}" });
    say({ status: followed.status, body: await followed.text(), redirected: followed.redirected });
  },
  async refusals() {
    for (const authorization of ["Bearer made-up", headers.authorization, headers.authorization]) {
      const body = Readable.toWeb(Readable.from(pieces(3)));
      const answer = await fetch(url, { method: "POST", headers: { authorization }, body, duplex: "half" });
      const code = answer.ok ? null : (await answer.json()).error.code;
      say({ status: answer.status, code, retry: answer.headers.get("x-should-retry") });
    }
  },
  async expect() {
    const send = (asked) => asked.flushHeaders();
    send.body = "asked first";
    const fields = { ...headers, expect: "100-continue", "content-length": send.body.length };
    say(await ask({ method: "POST", headers: fields }, send));
  },
  async trailers() {
    const agent = new Agent({ keepAlive: true, maxSockets: 1 });
    const send = (asked) => {
      asked.setHeader("trailer", "x-sum");
      asked.write("hel");
      asked.write("lo");
      asked.addTrailers({ "x-sum": "5" });
      asked.end();
    };
    for (let turn = 0; turn < 2; turn += 1) say(await ask({ method: "POST", agent }, send));
    agent.destroy();
  },
};

await scenarios[scenario]();
