// The picture in the middle: a preview while it is drawn, then the picture, of an edit with before
// and after.

import { $, h, proportioned } from "./dom.js";
import { download } from "./pictures.js";

export class Viewer {
  /** `on` has: seed(item), settings(item), edit(item). */
  constructor(on) {
    this.on = on;
    this.empty();
  }

  empty() {
    this.place(h("p", {}, "Pictures appear here."));
    $("about").replaceChildren();
  }

  place(element) {
    $("picture").replaceChildren(element);
  }

  preview(job) {
    const { step, steps, url } = job.preview;
    const shown = $("picture").querySelector(`.preview[data-job="${job.id}"] img`);
    if (shown) shown.src = url;
    else this.place(proportioned(h("div", { className: "shown preview", "data-job": job.id }, h("img", { src: url, alt: "The picture so far" })), ...job.size));
    $("about").replaceChildren(h("p", { className: "words quiet" }, `Preview after step ${step} of ${steps}`));
  }

  show(item) {
    if (!item) return this.empty();
    const shown = item.beforeUrl ? compare(item) : h("div", { className: "shown" }, pictureOf(item));
    this.place(proportioned(shown, item.info.width, item.info.height));
    this.about(item);
  }

  about(item) {
    const { info, values, seed } = item;
    const button = (id, words, action) => h("button", { type: "button", className: "small", id, onclick: () => action(item) }, words);
    $("about").replaceChildren(
      h("p", { className: "words" }, values.prompt, h("br"), h("span", { className: "quiet" },
        `seed ${seed}, ${info.width} x ${info.height}, ${info.steps} steps of ${info.scheduler}, ${(info.total_ms / 1000).toFixed(1)} s`)),
      button("use-seed", "Use this seed", this.on.seed),
      button("use-settings", "Use these settings", this.on.settings),
      button("edit-this", "Edit", this.on.edit),
      button("download", "Download", () => download(item.url, `tessera-${seed}.png`)),
    );
  }
}

function pictureOf(item) {
  return h("img", { src: item.url, alt: item.values.prompt });
}

function compare(item) {
  const after = h("div", { className: "after" }, pictureOf(item));
  const edge = h("div", { className: "edge" });
  const input = h("input", { type: "range", min: 0, max: 100, value: 50, id: "compare", "aria-label": "Before and after", oninput: () => move() });
  const before = h("img", { src: item.beforeUrl, alt: "Before the edit" });
  const move = () => {
    after.style.clipPath = `inset(0 0 0 ${input.value}%)`;
    edge.style.left = `${input.value}%`;
    input.setAttribute("aria-valuetext", `${input.value} % before, ${100 - input.value} % after`);
  };
  move();
  return h("div", { className: "shown compare" }, before, after, edge, input);
}
