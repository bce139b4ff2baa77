// The key that a server may ask for.

import { forgetKey, saveKey, savedKey } from "./api.js";
import { byId } from "./dom.js";

const PRINTABLE = /^[ -~]*$/; // what a header may hold
const UNPRINTABLE = "This key has a character that no key has, such as a curly quote: copy it once more.";

/** Show the field when the server wants a key; `given` is called when there is another. */
export function setUpKey(given) {
  const form = byId("key-form"), field = byId("key"), forget = byId("forget");
  const update = () => { forget.hidden = savedKey() === null; };

  document.addEventListener("key-wanted", ({ detail: error }) => {
    byId("key-reason").textContent = error.message;
    if (!form.hidden) return;
    form.hidden = false;
    field.focus();
  });
  field.addEventListener("input", () => {
    field.setCustomValidity(PRINTABLE.test(field.value.trim()) ? "" : UNPRINTABLE);
  });
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    saveKey(field.value.trim());
    field.value = "";
    form.hidden = true;
    byId("main").focus();
    update();
    given();
  });
  forget.addEventListener("click", () => {
    forgetKey();
    byId("main").focus();
    update();
    given();
  });
  update();
}
