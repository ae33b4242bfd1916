// Calls Repliq with fetch alone (Node 18 or newer): JSON in and out with retries, and server-sent events.
const URL_ = process.env.REPLIQ_URL ?? "http://127.0.0.1:8000";
const RETRIED = new Set([408, 409, 429, 500, 502, 503, 504]);
const LONGEST_WAIT_S = 120;

// An answer that is no success. `code` does not change; `detail` is for people.
export class Refused extends Error {
  constructor(status, problem, headers) {
    super(`${status} ${problem.error?.code}: ${problem.detail}`);
    Object.assign(this, { status, problem, headers, code: problem.error?.code, detail: problem.detail });
  }
}

// Returns { answer, headers }. A POST has one Idempotency-Key for all attempts, so that none counts twice.
export async function call(method, path, body, headers = {}, attempts = 3) {
  if (method === "POST") headers = { "Idempotency-Key": crypto.randomUUID(), ...headers };
  for (let attempt = 1; ; attempt++) {
    let wait = 0;
    try {
      const response = await open(method, path, body, headers, AbortSignal.timeout(90_000));
      const text = await response.text();
      return { answer: text ? JSON.parse(text) : null, headers: response.headers };
    } catch (error) {
      if (attempt === attempts || (error instanceof Refused && !worthRetrying(error))) throw error;
      if (error instanceof Refused) wait = Number(error.headers.get("retry-after") ?? 0);
    }
    await new Promise((next) => setTimeout(next, wait * 1000 || Math.random() * 500 * 2 ** attempt));
  }
}

// Yields { id, event, data } of server-sent events as they come; comments, which keep the line alive, are left out.
export async function* events(method, path, body, headers = {}) {
  const response = await open(method, path, body, headers);
  let [id, event, data, rest] = ["", "message", [], ""];
  for await (const piece of response.body.pipeThrough(new TextDecoderStream())) {
    const lines = (rest + piece).split("\n");
    rest = lines.pop();
    for (const line of lines) {
      const [, field, value] = line.match(/^([^:]*):? ?(.*?)\r?$/);
      if (field === "id") id = value;
      else if (field === "event") event = value;
      else if (field === "data") data.push(value);
      else if (!line.trim() && data.length) {
        yield { id, event, data: data.join("\n") };
        [event, data] = ["message", []];
      }
    }
  }
}

async function open(method, path, body, headers, signal) {
  const response = await fetch(URL_ + path, {
    method,
    headers: { Authorization: `Bearer ${process.env.REPLIQ_KEY}`, "Content-Type": "application/json", ...headers },
    body: body === undefined ? undefined : JSON.stringify(body),
    signal,
  });
  if (!response.ok) {
    const text = await response.text();
    let problem = { detail: text };
    try {
      problem = JSON.parse(text);
    } catch {} // a proxy in between may answer with something that is not JSON
    throw new Refused(response.status, problem, response.headers);
  }
  return response;
}

function worthRetrying(error) {
  if (!RETRIED.has(error.status) || error.headers.get("x-should-retry") === "false") return false;
  return Number(error.headers.get("retry-after") ?? 0) <= LONGEST_WAIT_S;
}
