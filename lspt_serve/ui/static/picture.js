// The image: chosen, dropped, pasted or taken; and what a task attended to, laid over it.

import { takePicture } from "./camera.js";
import { byId, bytes, percent } from "./dom.js";

/** Calls `changed(file)` at every new image; returns `showAttention(task, attention)`. */
export function createPicture(changed) {
  const image = byId("image"), overlay = byId("overlay"), file = byId("file");
  const capture = byId("capture"), drop = byId("drop");

  function take(given) {
    if (!given) return;
    URL.revokeObjectURL(image.src);
    image.src = URL.createObjectURL(given);
    image.alt = `The image to classify: ${given.name}`;
    byId("caption").textContent = `${given.name}, ${bytes(given.size)}`;
    byId("drop-hint").hidden = true;
    byId("preview").hidden = byId("frame").hidden = false;
    byId("no-preview").hidden = true;
    byId("choose").textContent = "Choose another";
    drop.classList.add("filled");
    showAttention(null);
    changed(given);
    image.onload = () => {
      const frame = byId("frame");
      frame.style.setProperty("--ratio", image.naturalWidth / image.naturalHeight);
      frame.classList.toggle("tiny", Math.max(image.naturalWidth, image.naturalHeight) <= 64);
      const size = `${image.naturalWidth} × ${image.naturalHeight}`;
      byId("caption").textContent = `${given.name}, ${size}, ${bytes(given.size)}`;
    };
  }

  function showAttention(task, attention) {
    overlay.hidden = byId("overlay-note").hidden = !attention;
    byId("frame").classList.toggle("grey", Boolean(attention));
    if (!attention) return;
    place(overlay, image, attention.crop_pct);
    const most = draw(overlay, attention);
    byId("overlay-note").textContent =
      `What ${task} attends to. The strongest of ${attention.height} × ${attention.width} patches ` +
      `has ${percent(most)} of it.`;
  }

  image.addEventListener("error", () => {
    byId("frame").hidden = true;
    byId("no-preview").hidden = false;
  });
  byId("choose").addEventListener("click", () => file.click());
  for (const input of [file, capture]) {
    input.addEventListener("change", () => {
      take(input.files[0]);
      input.value = ""; // the same file again is a change too
    });
  }
  byId("camera").addEventListener("click", async () => {
    if (navigator.mediaDevices?.getUserMedia) take(await takePicture());
    else capture.click(); // no camera for pages that came over plain HTTP
  });
  addEventListener("paste", (event) => take(event.clipboardData?.files[0]));
  const within = (event) => event.dataTransfer?.types.includes("Files");
  addEventListener("dragover", (event) => {
    if (!within(event)) return;
    event.preventDefault();
    drop.classList.add("over");
  });
  addEventListener("dragleave", (event) => {
    if (event.relatedTarget === null) drop.classList.remove("over");
  });
  addEventListener("drop", (event) => {
    if (!within(event)) return;
    event.preventDefault();
    drop.classList.remove("over");
    take(event.dataTransfer.files[0]);
  });

  return { showAttention };
}

/** Over the whole image, or over the middle that the model saw of it. */
function place(canvas, image, cropPct) {
  const side = cropPct * Math.min(image.naturalWidth, image.naturalHeight);
  const share = (length) => (cropPct < 1 && length ? side / length : 1);
  const [width, height] = [share(image.naturalWidth), share(image.naturalHeight)];
  Object.assign(canvas.style, {
    width: `${100 * width}%`, height: `${100 * height}%`,
    left: `${50 * (1 - width)}%`, top: `${50 * (1 - height)}%`,
  });
}

/** A pixel for each patch, as opaque as it is strong; returns the strongest. */
function draw(canvas, { height, width, values }) {
  const most = Math.max(...values.flat());
  Object.assign(canvas, { height, width });
  const context = canvas.getContext("2d");
  context.fillStyle = getComputedStyle(canvas).color;
  values.forEach((row, y) => row.forEach((value, x) => {
    context.globalAlpha = most > 0 ? (0.85 * value) / most : 0;
    context.fillRect(x, y, 1, 1);
  }));
  return most;
}
