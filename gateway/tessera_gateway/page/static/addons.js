// LoRAs with sliders, and ControlNets with a picture and its preparation.

import { $, choice, h, slider } from "./dom.js";
import { dataUrl } from "./pictures.js";

const WEIGHTS = { min: -1, max: 2, step: 0.05 };

export class Loras {
  constructor(loras, limit) {
    this.weights = new Map();
    this.limit = limit;
    this.usable = loras.filter((lora) => !lora.problem).map((lora) => lora.name);
    $("lora-part").hidden = !this.usable.length;
    this.show();
  }

  show() {
    const rows = this.usable.map((name) =>
      slider(name, { ...WEIGHTS, value: this.weights.get(name) ?? 0, oninput: (weight) => this.set(name, weight) }));
    $("loras").replaceChildren(...rows, h("p", { className: "quiet" }, "0 leaves a LoRA out."));
    this.count();
  }

  set(name, weight) {
    if (weight) this.weights.set(name, weight);
    else this.weights.delete(name);
    this.count();
  }

  count() {
    $("lora-count").textContent = this.weights.size ? `${this.weights.size} in use` : "";
  }

  get value() {
    return [...this.weights].slice(0, this.limit).map(([name, weight]) => ({ name, weight }));
  }

  set value(loras) {
    this.weights = new Map((loras ?? []).filter((l) => this.usable.includes(l.name)).map((l) => [l.name, l.weight]));
    if (this.weights.size) $("lora-part").open = true;
    this.show();
  }
}

/** Rows of ControlNets. Their pictures live as long as the page. */
export class Controls {
  constructor(capabilities) {
    this.known = capabilities;
    this.rows = [];
    $("control-part").hidden = !capabilities.controlnets.length;
    $("add-control").addEventListener("click", () => this.add());
    this.show();
  }

  add() {
    const { controlnets, limits } = this.known;
    if (this.rows.length >= limits.controls) return;
    const unused = controlnets.find((name) => !this.rows.some((row) => row.name === name));
    this.rows.push({ name: unused ?? controlnets[0], image: null, scale: 1, start: 0, end: 1, preprocess: "none", resize: "fit" });
    this.show();
  }

  show() {
    $("controls").replaceChildren(...this.rows.map((row, number) => this.row(row, number + 1)));
    $("add-control").disabled = this.rows.length >= this.known.limits.controls;
    $("control-count").textContent = this.rows.length ? `${this.rows.length} in use` : "";
  }

  row(row, number) {
    const { controlnets, control_modes, preprocessors, resizes } = this.known;
    const modes = control_modes[row.name];
    if (modes) row.mode ??= modes[0];
    else delete row.mode;
    const remove = () => { this.rows.splice(this.rows.indexOf(row), 1); this.show(); };
    return h("div", { className: "row boxed", role: "group", "aria-label": `ControlNet ${number}` },
      h("div", { className: "head" },
        choice("ControlNet", controlnets, { value: row.name, onchange: (name) => { row.name = name; this.show(); } }),
        h("button", { type: "button", className: "small", onclick: remove, "aria-label": `Remove ControlNet ${number}` }, "Remove")),
      this.picture(row, number),
      ...(modes ? [choice("Mode", modes, { value: row.mode, onchange: (value) => (row.mode = value) })] : []),
      h("div", { className: "grid" },
        choice("Preparation", preprocessors, { value: row.preprocess, onchange: (value) => (row.preprocess = value) }),
        choice("Resize", resizes, { value: row.resize, onchange: (value) => (row.resize = value) })),
      slider("Scale", { min: 0, max: 2, step: 0.05, value: row.scale, oninput: (value) => (row.scale = value) }),
      h("div", { className: "grid" },
        slider("From", { min: 0, max: 1, step: 0.05, value: row.start, oninput: (value) => (row.start = value) }),
        slider("To", { min: 0, max: 1, step: 0.05, value: row.end, oninput: (value) => (row.end = value) })));
  }

  picture(row, number) {
    const words = h("span", { className: "quiet" }, row.image ? row.image.name ?? "chosen" : "no picture yet");
    const input = h("input", {
      type: "file", accept: "image/*", className: "unseen", "aria-label": `Picture of ControlNet ${number}`,
      onchange: () => { row.image = input.files[0] ?? null; words.textContent = row.image?.name ?? "no picture yet"; },
    });
    return h("div", { className: "head" }, words, h("label", { className: "button small" }, "Picture", input));
  }

  /** As the API takes them. */
  async value() {
    return Promise.all(this.rows.map(async ({ image, ...row }) => {
      if (!image) throw new Error(`ControlNet ${row.name} has no picture`);
      return { ...row, image: await dataUrl(image) };
    }));
  }
}
