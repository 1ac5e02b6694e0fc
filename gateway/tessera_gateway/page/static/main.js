// Puts the page together.

import * as api from "./api.js";
import { Controls, Loras } from "./addons.js";
import { $, plural, say } from "./dom.js";
import { Form } from "./form.js";
import { History } from "./history.js";
import { openMask } from "./mask.js";
import { dataUrl, fitted } from "./pictures.js";
import { Queue } from "./queue.js";
import { Viewer } from "./viewer.js";

const PADDING = 32;
const page = { known: null, source: null, loras: null };

function problem(error) {
  $("problem").textContent = error ? sentence(error.message) : "";
  $("problem").hidden = !error;
}

function sentence(text) {
  return text[0].toUpperCase() + text.slice(1);
}

api.session.askForKey = () => new Promise((resolve) => {
  $("key-dialog").showModal();
  $("key-dialog").addEventListener("close", () => resolve($("key").value), { once: true });
});

const history = new History((item) => viewer.show(item));
const viewer = new Viewer({
  seed: (item) => { form.value = { seed: item.seed }; say(`seed ${item.seed}`); $("seed").focus(); },
  settings: (item) => { form.value = item.values; page.loras.value = item.loras; $("prompt").focus(); },
  edit: (item) => { choose(item.blob); form.task = "edit"; $("editor").scrollIntoView({ block: "nearest" }); },
});
const queue = new Queue({
  preview: (job) => { if (queue.jobs[0] === job) viewer.preview(job); },
  failed: (job, error) => problem(error),
  changed: () => viewer.show(history.current),
  done: async (job, { blob, info }) => {
    const item = await history.add({ blob, info, before: job.before, values: job.values, loras: job.loras, seed: job.seed });
    history.pick(item);
    say(`finished: ${job.title}`);
  },
});
const mask = openMask((what) => {
  if (what === "other") { page.source = null; showEditor(); }
});
let form = null;

function showEditor() {
  $("editor").hidden = form.task !== "edit";
  $("stages").classList.toggle("two", form.task === "edit");
  $("drop").hidden = Boolean(page.source);
  $("mask-part").hidden = !page.source;
}

/** Take a picture to edit. */
async function choose(blob) {
  try {
    page.source = await fitted(blob, page.known.limits);
    await mask.open(page.source.blob);
    problem(null);
    if (tooLarge() && form.value.padding === null) {
      form.value = { padding: PADDING };
      say("the picture is larger than what the model draws, so only the area around the mask is drawn");
    }
  } catch (error) {
    page.source = null;
    problem(error);
  }
  showEditor();
}

/** Whether only a part of the picture can be drawn at a time. */
function tooLarge() {
  return Math.max(page.source.width, page.source.height) > page.known.limits.max_size;
}

async function edited() {
  if (!page.source) throw new Error("choose a picture to edit first");
  if (tooLarge() && form.value.padding === null) {
    throw new Error(`say how many pixels around the mask to draw: the picture has ${page.source.width} x ${page.source.height} pixels, and the model draws up to ${page.known.limits.max_size} a side`);
  }
  if (!mask.share()) throw new Error("mark what shall change in the picture first");
  return { image: await dataUrl(page.source.blob), mask: await dataUrl(await mask.blob()) };
}

async function submit(event) {
  event.preventDefault();
  problem(null);
  try {
    const values = form.value;
    const edits = values.task === "edit";
    const loras = page.loras.value;
    const requests = form.requests(loras, await page.controls.value(), edits ? await edited() : null);
    const size = edits ? [page.source.width, page.source.height] : [values.width, values.height];
    for (const request of requests) {
      const { seed } = request.body.tessera;
      const before = edits ? page.source.blob : null;
      queue.add(request, { values, loras, seed, before, size, title: `${values.prompt} (seed ${seed})` });
    }
    say(`${plural(requests.length, "picture")} asked for`);
  } catch (error) {
    problem(error);
  }
}

function listen() {
  $("form").addEventListener("submit", submit);
  $("file").addEventListener("change", () => { if ($("file").files[0]) choose($("file").files[0]); $("file").value = ""; });
  document.addEventListener("keydown", (event) => {
    if ((event.ctrlKey || event.metaKey) && event.key === "Enter") { event.preventDefault(); $("form").requestSubmit(); }
    if (event.key === "Escape" && !event.defaultPrevented && !$("key-dialog").open) queue.cancelNewest();
  });
  document.addEventListener("paste", (event) => take(event, event.clipboardData));
  for (const name of ["dragover", "dragleave", "drop"]) {
    $("editor").addEventListener(name, (event) => {
      event.preventDefault();
      $("drop").classList.toggle("over", name === "dragover");
      if (name === "drop") take(event, event.dataTransfer);
    });
  }
}

function take(event, transfer) {
  const picture = [...(transfer?.files ?? [])].find((file) => file.type.startsWith("image/"));
  if (!picture || form.task !== "edit") return;
  event.preventDefault();
  choose(picture);
}

async function start() {
  try {
    page.known = await api.capabilities();
  } catch (error) {
    $("server").textContent = "not connected";
    problem(error);
    setTimeout(start, 3000);
    return;
  }
  problem(null);
  $("server").textContent = `${page.known.model} (${page.known.variant})`;
  page.loras = new Loras(page.known.loras, page.known.limits.loras);
  page.controls = new Controls(page.known);
  form = new Form(page.known, (task) => { if (form) showEditor(task); });
  showEditor();
  listen();
  await history.open();
  if (history.items.length) history.pick(history.items[0]);
  document.body.dataset.ready = "true";
}

start();
