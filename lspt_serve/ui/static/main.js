// The page: which view is shown, and who hears of what.

import { createAnswers } from "./answers.js";
import { byId, write } from "./dom.js";
import { setUpKey } from "./key.js";
import { createPicker } from "./picker.js";
import { createPicture } from "./picture.js";
import { watchTasks } from "./store.js";
import { createTable } from "./table.js";

const VIEWS = { classify: "Classify", tasks: "Tasks" };
const picture = createPicture((image) => answers.setImage(image));
const picker = createPicker((names) => answers.setTasks(names));
const answers = createAnswers(picture, (name) => picker.remove(name));
const table = createTable();
let empty = false, view = "classify";

const look = watchTasks(
  (listed) => {
    empty = listed.tasks.length === 0;
    byId("task-count").textContent = listed.tasks.length.toLocaleString("en");
    byId("empty-refused").hidden = Object.keys(listed.refused).length === 0;
    table.show(listed);
    picker.show(listed.tasks);
    showView({ focus: false });
  },
  (error) => {
    const offline = byId("offline");
    offline.hidden = error === null || error.status === 401;
    const text = offline.hidden ? "" : `The list of tasks cannot be read: ${error.message}. Trying again.`;
    write(offline, text);
  },
);
setUpKey(() => {
  look();
  answers.askAgain();
});

function showView({ focus }) {
  const wanted = location.hash.slice(1) || "classify";
  if (Object.hasOwn(VIEWS, wanted)) view = wanted; // else it is the skip link's, or nobody's
  for (const name of Object.keys(VIEWS)) byId(name).hidden = name !== view;
  byId("empty").hidden = !empty;
  if (empty && view === "classify") byId("classify").hidden = true;
  document.title = `${VIEWS[view]} · lspt-serve`;
  for (const link of document.querySelectorAll("[data-view]")) {
    if (link.dataset.view === view) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  if (!focus) return;
  const heading = byId(`${view}-title`);
  (heading.checkVisibility() ? heading : byId("main")).focus({ preventScroll: true });
  scrollTo(0, 0);
}

addEventListener("hashchange", () => {
  if (location.hash !== "#main") showView({ focus: true });
});
showView({ focus: false });
