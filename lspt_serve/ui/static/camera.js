// A picture from the camera, in a dialog.

import { byId } from "./dom.js";

const WANTED = { video: { facingMode: "environment", width: { ideal: 1600 } } };

/** Resolves to a JPEG file, or to null if there is no picture to be had. */
export function takePicture() {
  const dialog = byId("camera-dialog"), video = byId("video"), shoot = byId("shoot");
  const problem = byId("camera-problem");
  let picture = null, stream, left = false;

  async function start() {
    try {
      const opened = await navigator.mediaDevices.getUserMedia(WANTED);
      if (left) return stop(opened); // the dialog may be open again, for another call
      video.srcObject = stream = opened;
      await video.play();
      shoot.disabled = false;
      shoot.focus();
    } catch (error) {
      if (left) return;
      problem.textContent = `The camera cannot be used: ${error.message}. Choose a file instead.`;
      problem.hidden = false;
    }
  }

  async function onShoot() {
    picture = await grab(video);
    dialog.close();
  }

  const onCancel = () => dialog.close();
  shoot.disabled = problem.hidden = true;
  shoot.addEventListener("click", onShoot);
  byId("camera-cancel").addEventListener("click", onCancel);
  dialog.showModal();
  start();
  return new Promise((resolve) => {
    dialog.addEventListener("close", () => {
      left = true;
      shoot.removeEventListener("click", onShoot);
      byId("camera-cancel").removeEventListener("click", onCancel);
      if (stream) stop(stream);
      video.srcObject = null;
      resolve(picture);
    }, { once: true });
  });
}

function stop(stream) {
  for (const track of stream.getTracks()) track.stop();
}

async function grab(video) {
  const canvas = document.createElement("canvas");
  Object.assign(canvas, { width: video.videoWidth, height: video.videoHeight });
  canvas.getContext("2d").drawImage(video, 0, 0);
  const blob = await new Promise((resolve) => canvas.toBlob(resolve, "image/jpeg", 0.92));
  return new File([blob], "camera.jpg", { type: blob.type });
}
