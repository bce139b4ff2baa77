// The card of one task: its answer, or why there is none.

import { create, percent } from "./dom.js";

/** While the server is asked. */
export function pending(name, remove) {
  const waiting = create("p", { className: "waiting" }, "Asking …");
  return frame(name, null, remove, waiting, { "aria-busy": "true" });
}

/** Labels, best first; `time` says how long they took. */
export function succeed({ task, version, predictions }, time, actions) {
  const bars = create("ol", { className: "bars", role: "list" }, ...predictions.map(bar));
  const below = create("div", { className: "row" }, create("p", { className: "quiet time" }, time));
  if (actions.attend) {
    const toggle = create("button", {
      type: "button", className: "attention", onclick: actions.attend,
      "aria-pressed": "false", "aria-label": `Attention of ${task}`,
    }, "Attention");
    below.append(toggle);
  }
  return frame(task, version, actions.remove, create("div", {}, bars, below));
}

/** The server's own words. */
export function fail(name, { message, code, requestId }, actions) {
  const text = create("p", { className: "problem" }, message);
  const details = create("p", { className: "quiet time" },
    requestId ? `${code}, request ${requestId}` : code);
  const again = create("button", { type: "button", onclick: actions.again, "aria-label": `Ask again: ${name}` },
    "Ask again");
  return frame(name, null, actions.remove, create("div", {}, text, create("div", { className: "row" }, details, again)));
}

function frame(name, version, remove, body, attributes = {}) {
  const id = `answer-${name}`;
  const title = create("h3", { id, tabIndex: -1 }, name);
  const head = create("header", {}, title);
  if (version !== null) head.append(create("span", { className: "quiet" }, `version ${version}`));
  head.append(create("button", {
    type: "button", className: "plain remove", onclick: remove, "aria-label": `Remove ${name}`,
  }, "×"));
  return create("article", { className: "card", "aria-labelledby": id, ...attributes }, head, body);
}

function bar({ label, score }) {
  const track = create("span", { className: "track", "aria-hidden": "true" }, create("span"));
  track.firstChild.style.setProperty("inline-size", percent(Math.min(Math.max(score, 0), 1)));
  return create("li", {},
    create("bdi", { className: "label" }, label),
    create("span", { className: "score" }, percent(score)),
    track);
}
