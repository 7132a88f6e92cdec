// The gateway's event stream, read again whenever it ends. By fetch: an EventSource cannot send the admin key.

// The gateway sends an event each second, but for the time that its Redis is out. Without one for so long, what is shown
// is no news any more; and without one for so long, the connection is taken for dead.
const LATE_MS = 3_000;
const SILENCE_MS = 10_000;
const FIRST_RETRY_MS = 500;
const LAST_RETRY_MS = 15_000;

// What the gateway answered in place of a stream: `message` is for people.
export class Refusal extends Error {
  constructor(status, detail) {
    super(detail || `The gateway answered ${status}.`);
    this.needsKey = status === 401 || status === 403;
  }
}

// Asks the gateway, with the key if there is one.
// Throws a Refusal when it answers with an error, a TypeError when it cannot be reached.
export async function ask(path, key, options = {}) {
  const headers = key ? { Authorization: `Bearer ${key}` } : {};
  const answer = await fetch(path, { ...options, headers, cache: "no-store" });
  if (answer.ok) return answer;
  const problem = await answer.json().catch(() => ({}));
  throw new Refusal(answer.status, typeof problem.detail === "string" ? problem.detail : "");
}

// Yields the events of a body as {type, data}, as the HTML standard reads them; line ends are LF or CRLF.
export async function* events(body) {
  let text = "", type = "", data = [];
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return; // an event without its empty line is not whole, and is dropped
    const lines = (text + value).split("\n");
    text = lines.pop();
    for (const whole of lines) {
      const line = whole.endsWith("\r") ? whole.slice(0, -1) : whole;
      if (line === "") {
        if (data.length) yield { type: type || "message", data: data.join("\n") };
        type = "";
        data = [];
        continue;
      }
      const [, name, content] = /^([^:]*):? ?(.*)$/.exec(line);
      if (name === "event") type = content;
      else if (name === "data") data.push(content);
    }
  }
}

// Follows a stream for as long as the page is there.
//   onUsage(usage)     an event came
//   onState(state, why)  "connecting", "live", "late" or "waiting" to try again
//   onRefused(why)     the key is missing or wrong: it stops until `open` is called
export class Feed {
  #path;
  #on;
  #key = "";
  #abort = null;
  #timer = 0;
  #retry_ms = FIRST_RETRY_MS;

  constructor(path, on) {
    this.#path = path;
    this.#on = on;
    addEventListener("online", () => this.#hurry());
    document.addEventListener("visibilitychange", () => document.hidden || this.#hurry());
  }

  open(key) {
    this.close();
    this.#key = key;
    this.#abort = new AbortController();
    this.#follow(this.#abort);
  }

  close() {
    clearTimeout(this.#timer);
    this.#timer = 0;
    this.#abort?.abort();
    this.#abort = null;
  }

  #hurry() {
    if (this.#timer) this.open(this.#key);
  }

  async #follow(abort) {
    let why = "The stream ended.";
    let watchdog = 0, late = 0;
    const unwatch = () => [watchdog, late].forEach(clearTimeout);
    const watch = () => {
      unwatch();
      late = setTimeout(() => this.#on.onState("late", ""), LATE_MS);
      watchdog = setTimeout(() => abort.abort(), SILENCE_MS);
    };
    this.#on.onState("connecting", "");
    try {
      watch();
      const answer = await ask(this.#path, this.#key, { signal: abort.signal });
      for await (const { type, data } of events(answer.body)) {
        if (abort !== this.#abort) return;
        watch();
        if (type !== "usage") continue;
        const usage = JSON.parse(data);
        this.#retry_ms = FIRST_RETRY_MS;
        this.#on.onState("live", "");
        try {
          this.#on.onUsage(usage);
        } catch (error) {
          reportError(error); // a defect of the page's is no reason to leave the stream
        }
      }
    } catch (error) {
      if (abort !== this.#abort) return; // another one was opened, or the page closed this one
      if (error instanceof Refusal && error.needsKey) {
        this.close();
        this.#on.onRefused(error.message);
        return;
      }
      if (error instanceof Refusal) why = error.message;
      else if (error.name === "AbortError") why = "Nothing came for ten seconds.";
      else why = error instanceof SyntaxError ? "The gateway sent no JSON." : "The gateway cannot be reached.";
    } finally {
      unwatch();
    }
    this.#wait(why);
  }

  #wait(why) {
    this.#on.onState("waiting", why);
    // Spread, so that many open pages do not come back to a gateway that has just started in the same instant.
    const delay_ms = this.#retry_ms * (0.5 + Math.random() / 2);
    this.#retry_ms = Math.min(this.#retry_ms * 2, LAST_RETRY_MS);
    this.#timer = setTimeout(() => this.open(this.#key), delay_ms);
  }
}
