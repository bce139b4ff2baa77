// Requests to the server that this page came from, and the key that they carry.

const KEY = "lspt-key";

/** What the server refused: `status` (0: it cannot be reached), `code`, `message`, `requestId`. */
export class ApiError extends Error {
  constructor(status, { code, message, request_id: requestId } = {}) {
    super(message ?? `the server answered with status ${status}`);
    Object.assign(this, { status, code: code ?? String(status), requestId });
  }
}

export const savedKey = () => sessionStorage.getItem(KEY);
export const saveKey = (key) => sessionStorage.setItem(KEY, key);
export const forgetKey = () => sessionStorage.removeItem(KEY);

/** The text of GET /tasks, so that it need not be read if it is as before. */
export async function fetchTasks() {
  return (await send("tasks")).text();
}

/** One task's answer, with its attention where the server gives it; `ms` is there and back.
 *
 * A busy server looks for the task in the query, and need not read the image to refuse it.
 */
export function classify(image, task, topK, signal) {
  const path = `classify?${new URLSearchParams({ task })}`;
  return ask(path, { image, top_k: topK, attention: true }, signal);
}

/** Many tasks' answers to one image that is sent once; a task that is refused has an `error`. */
export function classifyMany(image, tasks, topK, signal) {
  return ask("classify_many", { images: image, tasks, top_k: topK }, signal);
}

async function ask(path, fields, signal) {
  const body = new FormData();
  for (const [name, value] of Object.entries(fields)) {
    for (const one of [value].flat()) body.append(name, one);
  }
  const started = performance.now();
  const answer = await (await send(path, { method: "POST", body, signal })).json();
  return { ...answer, ms: performance.now() - started };
}

async function send(path, options = {}) {
  const key = savedKey();
  const headers = key ? { Authorization: `Bearer ${key}` } : {};
  let response;
  try {
    response = await fetch(path, { ...options, headers, cache: "no-store" });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError(0, { code: "unreachable", message: "the server does not answer" });
  }
  if (response.ok) return response;
  const failure = await response.json().then((body) => body.error, () => undefined);
  const error = new ApiError(response.status, failure);
  if (error.status === 401) document.dispatchEvent(new CustomEvent("key-wanted", { detail: error }));
  throw error;
}
