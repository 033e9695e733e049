// Calls of the local API: the status, and a chat's answer as a stream of events.

const KEY = "splitpoint.key";

/** A refusal of the server, with its words. */
export class ApiFailure extends Error {
  constructor(message, status) {
    super(message);
    this.status = status;
  }
}

/** Keep the key for this tab only; an empty one is forgotten. */
export function keepKey(key) {
  if (key) sessionStorage.setItem(KEY, key);
  else sessionStorage.removeItem(KEY);
}

function headers() {
  const key = sessionStorage.getItem(KEY);
  return { "Content-Type": "application/json", ...(key ? { Authorization: `Bearer ${key}` } : {}) };
}

async function checked(response) {
  if (response.ok) return response;
  let words = `the server answered ${response.status}`;
  try {
    words = (await response.json()).error.message;
  } catch {
    // Not our shape of error: the status says what there is to say.
  }
  throw new ApiFailure(words, response.status);
}

/** What the plan is and which choices there are: GET /v1/splitpoint/status. */
export async function status() {
  return (await checked(await fetch("/v1/splitpoint/status", { headers: headers() }))).json();
}

/** The chunks of one answer, as they come. signal: of an AbortController, ends the answer. */
export async function* answer(body, signal) {
  const response = await checked(
    await fetch("/v1/chat/completions", {
      method: "POST",
      headers: headers(),
      body: JSON.stringify({
        ...body,
        stream: true,
        stream_options: { include_usage: true, include_splitpoint: true },
      }),
      signal,
    }),
  );
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let waiting = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) throw new ApiFailure("the answer broke off", 0);
    waiting += value;
    const events = waiting.split("\n\n");
    waiting = events.pop();
    for (const event of events) {
      const data = event.replace(/^data: /, "");
      if (data === "[DONE]") return;
      const chunk = JSON.parse(data);
      if (chunk.error) throw new ApiFailure(chunk.error.message, 0);
      yield chunk;
    }
  }
}
