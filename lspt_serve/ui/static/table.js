// The table of what is served, kept in step with the server row by row.

import { announce, byId, count, create, matches, percent, write } from "./dom.js";

const SHOWN = 200; // rows at first, and more with every press of the button
const COLUMNS = {
  Task: (task) => create("span", { className: "name" }, task.name),
  Version: (task) => String(task.version),
  Aliases: (task) => Object.entries(task.aliases).map(([name, to]) => `${name} → ${to}`).join(", "),
  Labels: (task) => labels(task),
  Method: (task) => task.method,
  "Test accuracy": (task) => (task.metrics ? percent(task.metrics.test_accuracy) : "not measured"),
  "In memory": (task) => (task.resident ? "yes" : "no"),
};

/** Returns `show({tasks, refused})`; rows whose task is as before are left as they are. */
export function createTable() {
  const filter = byId("filter"), body = byId("rows"), more = byId("more");
  const rows = new Map(); // name -> {json, row}
  let tasks = [], texts = new Map(), limit = SHOWN;

  function draw() {
    const query = filter.value.trim();
    const found = tasks.filter((task) => matches(query, texts.get(task)));
    const columns = Object.keys(COLUMNS).filter((name) =>
      name !== "Aliases" || tasks.some((task) => COLUMNS.Aliases(task) !== ""));
    head(columns);
    place(body, found.slice(0, limit).map((task) => rowOf(task, columns)));
    byId("table").hidden = found.length === 0;
    more.hidden = found.length <= limit;
    more.textContent = `Show more of the ${count(found.length, "task")}`;
    const none = query && found.length === 0 ? "No task matches" : "";
    write(byId("filter-note"), none || (query ? `${found.length.toLocaleString("en")} of ${count(tasks.length, "task")}` : ""));
    byId("tasks-filter").hidden = tasks.length === 0;
  }

  function rowOf(task, columns) {
    const json = JSON.stringify([task, columns]), known = rows.get(task.name);
    if (known?.json === json) return known.row;
    const row = create("tr", { role: "row" }, ...columns.map((name, at) => {
      const given = { role: at ? "cell" : "rowheader", "data-column": name };
      if (at === 0) given.scope = "row";
      return create(at ? "td" : "th", given, COLUMNS[name](task));
    }));
    if (known) replace(known.row, row);
    rows.set(task.name, { json, row });
    return row;
  }

  filter.addEventListener("input", () => {
    limit = SHOWN;
    draw();
  });
  more.addEventListener("click", () => {
    const next = body.children.length;
    limit += SHOWN;
    draw();
    body.children[next]?.querySelector("summary")?.focus();
    announce(`${count(body.children.length, "task")} shown`);
  });

  return {
    show(listed) {
      tasks = listed.tasks;
      texts = new Map(tasks.map((task) => [task, [task.name, task.method, ...task.labels].join(" ")]));
      const names = new Set(tasks.map((task) => task.name));
      for (const name of rows.keys()) if (!names.has(name)) rows.delete(name);
      draw();
      showRefused(listed.refused);
    },
  };
}

function head(columns) {
  const row = byId("columns");
  if (row.children.length === columns.length) return;
  row.replaceChildren(...columns.map((name) => create("th", { scope: "col", role: "columnheader" }, name)));
}

/** The new row has what the reader had: the labels that were open, and the focus. */
function replace(known, row) {
  const focused = known.contains(document.activeElement);
  row.querySelector("details").open = known.querySelector("details").open;
  known.replaceWith(row);
  if (focused) row.querySelector("summary").focus({ preventScroll: true });
}

/** Make `wanted` the children, without moving those that stay: that would take the focus away. */
function place(parent, wanted) {
  const keep = new Set(wanted);
  for (const child of [...parent.children]) if (!keep.has(child)) child.remove();
  wanted.forEach((child, at) => {
    if (parent.children[at] !== child) parent.insertBefore(child, parent.children[at] ?? null);
  });
}

function labels(task) {
  const summary = create("summary", {}, count(task.labels.length, "label"));
  const details = create("details", {}, summary);
  summary.append(create("span", { className: "unseen" }, ` of ${task.name}`));
  details.addEventListener("toggle", () => {
    if (details.open && details.children.length === 1) {
      details.append(create("p", { className: "quiet" }, task.labels.join(", ")));
    }
  });
  return details;
}

function showRefused(refused) {
  const entries = Object.entries(refused), list = byId("refused-list");
  byId("refused").hidden = entries.length === 0;
  const text = JSON.stringify(entries);
  if (list.dataset.shown === text) return;
  list.dataset.shown = text;
  list.replaceChildren(...entries.flatMap(([folder, reason]) => [
    create("dt", {}, folder), create("dd", {}, reason),
  ]));
}
