// What the tasks answer to the image: a card for each.

import { classify, classifyMany } from "./api.js";
import { fail, pending, succeed } from "./card.js";
import { announce, byId, count, milliseconds, percent } from "./dom.js";

const FEW = 8; // tasks that are asked one by one, each for its attention; more in one request

/** The image and the tasks that are set are asked; `remove(name)` is called to ask a task no more. */
export function createAnswers(picture, remove) {
  const list = byId("answer-list"), cards = new Map(); // name -> {element, said, asking}
  let image = null, wanted = [], attending = null;

  const topK = () => {
    const field = byId("top-k"), problem = byId("top-k-problem");
    problem.hidden = field.checkValidity();
    return problem.hidden ? field.value : null;
  };

  function attend(name) {
    attending = name;
    picture.showAttention(name, name === null ? null : cards.get(name).attention);
    for (const [other, { element }] of cards) {
      element.querySelector(".attention")?.setAttribute("aria-pressed", other === name);
    }
  }

  function put(name, element, more = {}) {
    const card = cards.get(name);
    const focused = card?.element.contains(document.activeElement) && document.activeElement;
    if (card) card.element.replaceWith(element);
    else list.append(element);
    cards.set(name, { ...card, attention: null, said: null, ...more, element });
    if (focused) element.querySelector(focused.matches(".remove") ? ".remove" : "h3").focus();
  }

  function drop(name) {
    const { asking, element } = cards.get(name);
    const focused = element.contains(document.activeElement);
    const near = element.nextElementSibling ?? element.previousElementSibling;
    cards.delete(name);
    element.remove();
    if (![...cards.values()].some((other) => other.asking === asking)) asking?.abort();
    if (attending === name) attend(null);
    if (focused) (near?.querySelector("h3") ?? byId("answers-title")).focus();
  }

  function settle(name, asking, element, more) {
    if (cards.get(name)?.asking !== asking) return; // asked again since, or no longer
    put(name, element, { ...more, asking: null });
  }

  function onAnswer(name, asking, answer, time) {
    const [best] = answer.predictions;
    const actions = {
      remove: () => remove(name),
      attend: answer.attention && (() => attend(attending === name ? null : name)),
    };
    const said = `${name}: ${best.label}, ${percent(best.score)}`;
    settle(name, asking, succeed(answer, time, actions), { said, attention: answer.attention });
  }

  function onError(name, asking, error) {
    if (error.name === "AbortError") return;
    const actions = { remove: () => remove(name), again: () => ask([name]) };
    settle(name, asking, fail(name, error, actions), { said: `${name}: ${error.message}` });
  }

  async function askOne(name, k, asking) {
    try {
      const answer = await classify(image, name, k, asking.signal);
      const { decode, engine, total } = answer.timings_ms;
      const inside = `${milliseconds(total)} in the server: decoding ${milliseconds(decode)}, model ${milliseconds(engine)}`;
      onAnswer(name, asking, answer, `${milliseconds(answer.ms)} there and back. ${inside}`);
    } catch (error) {
      onError(name, asking, error);
    }
  }

  async function askMany(names, k, asking) {
    try {
      const all = await classifyMany(image, names, k, asking.signal);
      const time = `${count(names.length, "task")} in ${milliseconds(all.ms)} there and back`;
      for (const item of all.items) {
        const refused = item.error && { ...item.error, requestId: all.request_id };
        if (refused) onError(item.task, asking, refused);
        else onAnswer(item.task, asking, item, time);
      }
    } catch (error) {
      for (const name of names) onError(name, asking, error);
    }
  }

  async function ask(names) {
    const k = topK();
    if (!image || !names.length || k === null) return;
    if (names.includes(attending)) attend(null);
    for (const name of names) cards.get(name)?.asking?.abort();
    const shared = new AbortController(), many = names.length > FEW;
    const asked = names.map((name) => {
      const asking = many ? shared : new AbortController();
      put(name, pending(name, () => remove(name)), { asking });
      return many ? null : askOne(name, k, asking);
    });
    await (many ? askMany(names, k, shared) : Promise.all(asked));
    tell(names);
  }

  function tell(names) {
    const said = names.map((name) => cards.get(name)?.said).filter(Boolean);
    if (said.length) announce(said.length <= 3 ? said.join(". ") : count(said.length, "answer"));
  }

  function hint() {
    const missing = !image && wanted.length ? "Choose an image, and the answers come here."
      : image && !wanted.length ? "Choose a task, and its answer comes here."
      : !image ? "Choose an image and tasks, and the answers come here." : "";
    byId("answers-hint").textContent = missing;
    byId("answers-hint").hidden = missing === "";
  }

  byId("top-k").addEventListener("change", () => ask(wanted));
  hint();
  return {
    setImage(file) {
      image = file;
      hint();
      if (topK() === null) for (const name of [...cards.keys()]) drop(name); // they are of the image before
      ask(wanted);
    },
    setTasks(names) {
      for (const name of [...cards.keys()]) if (!names.includes(name)) drop(name);
      const added = names.filter((name) => !wanted.includes(name));
      wanted = names;
      hint();
      ask(added);
    },
    askAgain: () => ask(wanted),
  };
}
