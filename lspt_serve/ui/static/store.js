// What the server serves, asked for again and again while the page is looked at.

import { fetchTasks } from "./api.js";

const PAUSE_MS = 3000;
const SHARE = 20; // at most one part in so many of the time is spent asking

/** Calls `changed({tasks, refused})` at once and at every change, `failed(error | null)` as it is. */
export function watchTasks(changed, failed) {
  let known, timer, asking = false;

  async function look() {
    if (asking || document.hidden) return;
    asking = true;
    clearTimeout(timer);
    const started = performance.now();
    try {
      const text = await fetchTasks();
      failed(null);
      if (text !== known) changed(JSON.parse(text));
      known = text;
    } catch (error) {
      failed(error);
    } finally {
      asking = false;
      timer = setTimeout(look, Math.max(PAUSE_MS, SHARE * (performance.now() - started)));
    }
  }

  document.addEventListener("visibilitychange", look);
  look();
  return look;
}
