// Which tasks are asked: check boxes, one stop of the Tab key, arrows between them.

import { byId, count, create, matches, write } from "./dom.js";

const FEW = 6; // tasks that are all chosen at the start
const SEARCHED = 8; // more than these have a search box
const SHOWN = 100; // of those that match; more are found by their names

/** Calls `changed(names)` when other tasks are chosen; returns `show(tasks)` and `remove(name)`. */
export function createPicker(changed) {
  const list = byId("choices"), search = byId("search"), clear = byId("clear");
  const chosen = new Set();
  let tasks = null;

  function draw() {
    const focused = list.contains(document.activeElement) ? document.activeElement.value : null;
    const scroll = list.scrollTop;
    const found = tasks.filter((task) => matches(search.value.trim(), task.name));
    const first = found.filter((task) => chosen.has(task.name));
    const rest = found.filter((task) => !chosen.has(task.name));
    const shown = (tasks.length > SEARCHED ? [...first, ...rest] : found).slice(0, SHOWN);
    list.replaceChildren(...shown.map((task) => choice(task, chosen.has(task.name))));
    list.hidden = shown.length === 0;
    list.scrollTop = scroll;
    const boxes = [...list.querySelectorAll("input")];
    setStop(boxes.find((box) => box.value === focused) ?? boxes[0]);
    boxes.find((box) => box.value === focused)?.focus({ preventScroll: true });
    byId("search-row").hidden = tasks.length <= SEARCHED;
    note(found.length, shown.length);
  }

  function note(found, shown) {
    const parts = [`${chosen.size.toLocaleString("en")} of ${count(tasks.length, "task")} chosen`];
    if (found === 0) parts.push("none has such a name");
    else if (found > shown) parts.push(`${count(found - shown, "more", "more")}: type a name`);
    write(byId("picker-note"), parts.join("; "));
    clear.hidden = chosen.size === 0;
  }

  function setStop(box) {
    for (const other of list.querySelectorAll("input")) other.tabIndex = other === box ? 0 : -1;
  }

  function tell() {
    changed(tasks.filter((task) => chosen.has(task.name)).map((task) => task.name));
  }

  list.addEventListener("change", ({ target }) => {
    if (target.checked) chosen.add(target.value);
    else chosen.delete(target.value);
    const boxes = list.querySelectorAll("input").length;
    note(tasks.filter((task) => matches(search.value.trim(), task.name)).length, boxes);
    tell();
  });
  list.addEventListener("focusin", ({ target }) => setStop(target));
  list.addEventListener("keydown", (event) => {
    const boxes = [...list.querySelectorAll("input")], at = boxes.indexOf(event.target);
    const to = { ArrowDown: at + 1, ArrowUp: at - 1, Home: 0, End: boxes.length - 1 }[event.key];
    if (to === undefined) return;
    event.preventDefault();
    if (to < 0 && !byId("search-row").hidden) search.focus();
    else boxes[to]?.focus();
  });
  search.addEventListener("input", () => {
    list.scrollTop = 0;
    if (tasks !== null) draw(); // who types early is answered when the tasks have come
  });
  search.addEventListener("keydown", (event) => {
    if (event.key !== "ArrowDown") return;
    event.preventDefault();
    list.querySelector("input")?.focus();
  });
  clear.addEventListener("click", () => {
    chosen.clear();
    draw();
    tell();
    (byId("search-row").hidden ? list.querySelector("input") : search)?.focus();
  });

  return {
    show(listed) {
      if (tasks === null && listed.length <= FEW) for (const { name } of listed) chosen.add(name);
      tasks = listed;
      const names = new Set(listed.map((task) => task.name));
      for (const name of chosen) if (!names.has(name)) chosen.delete(name);
      draw();
      tell();
    },
    remove(name) {
      chosen.delete(name);
      draw();
      tell();
    },
  };
}

function choice(task, checked) {
  const box = create("input", { type: "checkbox", value: task.name, checked });
  const labels = create("span", { className: "quiet" }, count(task.labels.length, "label"));
  return create("li", {}, create("label", {}, box, create("span", { className: "name" }, task.name), labels));
}
