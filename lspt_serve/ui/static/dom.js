// Elements in one expression, and how figures are written.

export const byId = (id) => document.getElementById(id);

/** An element; what is given for it are properties, or attributes where the name has a dash. */
export function create(tag, given = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(given)) {
    if (name.includes("-") || name === "role") element.setAttribute(name, value);
    else element[name] = value;
  }
  element.append(...children);
  return element;
}

/** Said to screen readers when they have nothing else to say. */
export function announce(text) {
  byId("status").textContent = text;
}

/** Text that is said when it changes: as it was before, it is left alone. */
export function write(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

export const percent = (share) => `${(100 * share).toFixed(1)}%`;
export const milliseconds = (ms) => `${ms < 10 ? ms.toFixed(1) : Math.round(ms)}\u00a0ms`;
export const count = (n, one, many = `${one}s`) => `${n.toLocaleString("en")} ${n === 1 ? one : many}`;

export function bytes(n) {
  if (n < 1000) return count(n, "byte");
  return n < 1e6 ? `${Math.round(n / 1e3)} kB` : `${(n / 1e6).toFixed(1)} MB`;
}

/** Whether every word of `query` is somewhere in `text`, whatever its case. */
export function matches(query, text) {
  const lower = text.toLowerCase();
  return query.toLowerCase().split(/\s+/).every((word) => lower.includes(word));
}
