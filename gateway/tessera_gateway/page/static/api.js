// The gateway's public API: capabilities, pictures, jobs and their events.

const KEY = "tessera-key";
export const session = { askForKey: null };

export class ApiError extends Error {
  constructor(status, content) {
    super(content?.message ?? `the server answered ${status}`);
    this.status = status;
    this.param = content?.param ?? null;
    this.code = content?.code ?? null;
  }
}

async function ask(method, path, { body, signal } = {}) {
  for (;;) {
    const key = sessionStorage.getItem(KEY);
    const headers = {};
    if (key) headers.Authorization = `Bearer ${key}`;
    if (body) headers["Content-Type"] = "application/json";
    const response = await fetch(path, { method, headers, signal, body: body && JSON.stringify(body) });
    if (response.ok) return response;
    if (response.status === 401 && session.askForKey) {
      sessionStorage.setItem(KEY, await session.askForKey());
      continue;
    }
    const content = await response.json().catch(() => ({}));
    throw new ApiError(response.status, content.error);
  }
}

export async function capabilities() {
  return (await ask("GET", "v1/capabilities")).json();
}

/**
 * One picture; `kind` is generations or edits. `begun` is called when the gateway knows the job.
 * Closing the connection cancels it.
 */
export async function draw(kind, body, { signal, begun }) {
  const response = await ask("POST", `v1/images/${kind}`, { body: { ...body, stream: true }, signal });
  begun();
  for await (const { name, data } of read(response)) {
    if (name === "error") throw new ApiError(response.status, data.error);
    if (!name.endsWith(".completed")) continue;
    const bytes = Uint8Array.from(atob(data.b64_json), (letter) => letter.charCodeAt(0));
    return { blob: new Blob([bytes], { type: "image/png" }), info: data.tessera.info };
  }
  throw new Error("the connection ended before the picture came");
}

export async function cancel(job) {
  await ask("DELETE", `v1/jobs/${encodeURIComponent(job)}`);
}

/** A job's news, with previews, until it has ended. */
export async function* events(job, signal) {
  const path = `v1/jobs/${encodeURIComponent(job)}/events?previews=true`;
  yield* read(await ask("GET", path, { signal }));
}

/** The events of an answer. */
async function* read(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    text += value.replaceAll("\r\n", "\n");
    if (!value.includes("\n")) continue; // a large picture comes in many parts
    const blocks = text.split("\n\n");
    text = blocks.pop();
    for (const block of blocks) {
      const event = parse(block);
      if (event) yield event;
    }
  }
}

function parse(block) {
  const fields = { event: "", data: [] };
  for (const line of block.split("\n")) {
    const [name, ...rest] = line.split(":");
    const value = rest.join(":").replace(/^ /, "");
    if (name === "event") fields.event = value;
    if (name === "data") fields.data.push(value);
  }
  return fields.data.length ? { name: fields.event, data: JSON.parse(fields.data.join("\n")) } : null;
}
