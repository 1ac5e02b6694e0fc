// Finished pictures, kept in this browser's IndexedDB.

import { $, h } from "./dom.js";

const KEPT = 60;

export class History {
  constructor(onpick) {
    this.onpick = onpick;
    this.items = [];
    this.current = null;
    $("forget").addEventListener("click", () => this.clear());
  }

  async open() {
    try {
      this.database = await opened();
      this.items = (await finished(this.store("readonly").getAll())).reverse();
    } catch {
      this.database = null; // a private window: the history lives as long as the page
    }
    for (const item of this.items) this.prepare(item);
    this.show();
  }

  store(mode) {
    return this.database.transaction("pictures", mode).objectStore("pictures");
  }

  async add(item) {
    if (this.database) {
      item.id = await finished(this.store("readwrite").add(item)).catch(() => Date.now());
    }
    item.id ??= Date.now() + Math.random();
    this.items.unshift(this.prepare(item));
    for (const old of this.items.splice(KEPT)) this.forget(old);
    return item;
  }

  prepare(item) {
    item.url = URL.createObjectURL(item.blob);
    item.beforeUrl = item.before ? URL.createObjectURL(item.before) : null;
    return item;
  }

  forget(item) {
    URL.revokeObjectURL(item.url);
    if (item.beforeUrl) URL.revokeObjectURL(item.beforeUrl);
    if (this.database) this.store("readwrite").delete(item.id);
  }

  clear() {
    for (const item of this.items.splice(0)) this.forget(item);
    this.pick(null);
  }

  pick(item) {
    this.current = item;
    this.show();
    this.onpick(item);
  }

  show() {
    const thumb = (item) => h("li", {},
      h("button", {
        type: "button", title: item.values.prompt,
        "aria-label": `${item.values.prompt}, seed ${item.seed}`,
        "aria-current": String(item === this.current),
        onclick: () => this.pick(item),
      }, h("img", { src: item.url, alt: "", loading: "lazy" })));
    $("history").replaceChildren(...this.items.map(thumb));
    $("history-part").hidden = !this.items.length;
  }
}

function opened() {
  const request = indexedDB.open("tessera", 1);
  request.onupgradeneeded = () => request.result.createObjectStore("pictures", { keyPath: "id", autoIncrement: true });
  return finished(request);
}

function finished(request) {
  return new Promise((resolve, reject) => {
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });
}
