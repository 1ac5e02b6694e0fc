// Small helpers for elements.

export const $ = (id) => document.getElementById(id);

/** An element with properties, attributes (names with a dash, and role) and children. */
export function h(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name.includes("-") || name === "role" || name === "for" || name === "list") element.setAttribute(name, value);
    else element[name] = value;
  }
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

/** Give an element the proportions of a picture. */
export function proportioned(element, width, height) {
  element.style.setProperty("--w", width);
  element.style.setProperty("--h", height);
  return element;
}

let number = 0;

/** A labelled range with its value beside it. */
export function slider(label, { min, max, step, value, oninput }) {
  const id = `slider-${++number}`;
  const output = h("output", { for: id });
  const show = () => (output.textContent = input.value);
  const input = h("input", { type: "range", id, min, max, step, value, oninput: () => { show(); oninput(Number(input.value)); } });
  show();
  return h("div", { className: "field" }, h("label", { for: id }, label), h("div", { className: "slider" }, input, output));
}

/** A labelled choice. */
export function choice(label, options, { value, onchange }) {
  const id = `choice-${++number}`;
  const select = h("select", { id, onchange: () => onchange(select.value) }, ...options.map((o) => h("option", { value: o }, o)));
  select.value = value;
  return h("div", { className: "field" }, h("label", { for: id }, label), select);
}

/** Tell those who do not see the page. */
export function say(words) {
  $("news").textContent = words;
}

export function plural(count, word) {
  return `${count} ${word}${count === 1 ? "" : "s"}`;
}
