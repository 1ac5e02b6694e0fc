// The settings: filled in from the server's capabilities, kept in this browser.

import { $, h } from "./dom.js";

const KEPT = "tessera-form";
const NUMBERS = ["width", "height", "steps", "guidance", "seed", "strength", "padding", "n"];
const TEXTS = ["prompt", "negative_prompt", "scheduler", "mode", "edit_quality"];
const SEEDS = 2 ** 32;
const MOST_STEPS = 60;

export class Form {
  constructor(capabilities, onchange) {
    this.known = capabilities;
    this.onchange = onchange;
    const { limits, schedulers, modes, edit_qualities, defaults } = capabilities;
    for (const name of ["width", "height"]) Object.assign($(name), { min: limits.min_size, max: limits.max_size, step: limits.size_step });
    $("seed").max = Math.min(limits.seed, Number.MAX_SAFE_INTEGER);
    $("n").max = limits.n;
    $("prompt").maxLength = $("negative_prompt").maxLength = limits.prompt;
    $("steps").max = Math.max(MOST_STEPS, defaults.steps);
    $("scheduler").replaceChildren(...schedulers.map(({ name }) => h("option", { value: name }, name)));
    $("mode").replaceChildren(...modes.map((name) => h("option", { value: name }, name)));
    $("edit_quality").append(...edit_qualities.map((name) => h("option", { value: name }, name)));
    $("padding").max = limits.edit_side;
    this.value = { ...defaults, ...this.kept() };
    $("form").addEventListener("input", () => this.changed());
    $("random").addEventListener("click", () => { $("seed").value = ""; this.changed(); });
  }

  get task() {
    return document.querySelector('input[name="task"]:checked').value;
  }

  set task(task) {
    document.querySelector(`input[name="task"][value="${task}"]`).checked = true;
    this.changed();
  }

  get value() {
    const value = { task: this.task };
    for (const name of TEXTS) value[name] = $(name).value;
    for (const name of NUMBERS) value[name] = $(name).value === "" ? null : Number($(name).value);
    return value;
  }

  set value(value) {
    for (const name of [...TEXTS, ...NUMBERS]) if (name in value) $(name).value = value[name] ?? "";
    if (value.task) document.querySelector(`input[name="task"][value="${value.task}"]`).checked = true;
    this.changed();
  }

  changed() {
    for (const output of document.querySelectorAll("#form > .field output, #form > .grid output, #sampling output")) {
      output.textContent = $(output.htmlFor.value).value;
    }
    for (const part of document.querySelectorAll("[data-task]")) {
      part.hidden = part.dataset.task !== this.task;
      for (const field of part.querySelectorAll("input, select")) field.disabled = part.hidden; // else it is checked
    }
    try {
      localStorage.setItem(KEPT, JSON.stringify(this.value));
    } catch {
      // a browser that keeps nothing
    }
    this.onchange(this.task);
  }

  kept() {
    try {
      return JSON.parse(localStorage.getItem(KEPT)) ?? {};
    } catch {
      return {};
    }
  }

  /** What to ask for, one request for each picture; every seed is known beforehand. */
  requests(loras, controls, edit) {
    const value = this.value;
    const first = value.seed ?? Math.floor(Math.random() * SEEDS);
    return Array.from({ length: value.n ?? 1 }, (_, number) => {
      const tessera = { seed: first + number, steps: value.steps, guidance: value.guidance, scheduler: value.scheduler };
      if (value.negative_prompt) tessera.negative_prompt = value.negative_prompt;
      if (loras.length) tessera.loras = loras;
      if (controls.length) tessera.controls = controls;
      const body = { prompt: value.prompt, tessera };
      if (value.task === "generate") return { kind: "generations", body: { ...body, size: `${value.width}x${value.height}` } };
      Object.assign(tessera, { strength: value.strength, mode: value.mode, mask_image: edit.mask });
      if (value.edit_quality) tessera.edit_quality = value.edit_quality;
      if (value.padding !== null) tessera.padding_mask_crop = value.padding;
      return { kind: "edits", body: { ...body, images: [{ image_url: edit.image }] } };
    });
  }
}
