// Draws a mask on a picture: brush, eraser, rectangle, undo. By pointer, or by arrow keys and space.

import { $, h, proportioned, say } from "./dom.js";
import { pngOf } from "./pictures.js";

const UNDO = 50;
const UNDO_BYTES = 256e6;
const TINT = "rgba(255, 96, 40, 0.55)";

export class MaskEditor {
  constructor(canvas, toolbar, hint, onchange) {
    this.canvas = canvas;
    this.hint = hint;
    this.onchange = onchange;
    this.tool = "brush";
    this.size = 24;
    this.picture = null;
    this.past = [];
    this.cursor = null;
    this.begun = null;
    this.buildTools(toolbar);
    canvas.addEventListener("pointerdown", (event) => this.down(event));
    canvas.addEventListener("pointermove", (event) => this.move(event));
    for (const name of ["pointerup", "pointercancel"]) canvas.addEventListener(name, (event) => this.up(event));
    canvas.addEventListener("pointerleave", () => { if (!this.begun) { this.cursor = null; this.paint(); } });
    canvas.addEventListener("keydown", (event) => this.key(event));
    canvas.addEventListener("blur", () => { this.cursor = null; this.paint(); });
  }

  buildTools(toolbar) {
    const tools = { brush: "Brush", rectangle: "Rectangle", eraser: "Eraser" };
    this.buttons = Object.entries(tools).map(([tool, name]) =>
      h("button", { type: "button", className: "small", "data-tool": tool, onclick: () => this.choose(tool) }, name));
    const size = h("input", { type: "range", id: "brush-size", min: 4, max: 128, step: 2, value: this.size, oninput: () => { this.size = Number(size.value); this.paint(); } });
    this.undoButton = h("button", { type: "button", className: "small", id: "undo", onclick: () => this.undo() }, "Undo");
    toolbar.append(
      ...this.buttons,
      h("span", { className: "size" }, h("label", { for: "brush-size" }, "Size"), size),
      this.undoButton,
      h("button", { type: "button", className: "small", id: "clear-mask", onclick: () => this.change(() => this.layer.clearRect(0, 0, this.width, this.height)) }, "Clear"),
      h("button", { type: "button", className: "small", id: "invert-mask", onclick: () => this.change(() => this.invert()) }, "Invert"),
      h("button", { type: "button", className: "small", id: "other-picture", onclick: () => this.onchange("other") }, "Other picture"),
    );
    this.choose(this.tool);
  }

  choose(tool) {
    this.tool = tool;
    for (const button of this.buttons) button.setAttribute("aria-pressed", String(button.dataset.tool === tool));
  }

  /** Begin with a picture and an empty mask. */
  async open(blob) {
    this.picture = await createImageBitmap(blob);
    this.width = this.canvas.width = this.picture.width;
    this.height = this.canvas.height = this.picture.height;
    proportioned(this.canvas, this.width, this.height);
    this.layer = new OffscreenCanvas(this.width, this.height).getContext("2d", { willReadFrequently: true });
    this.past = [];
    this.paint();
    this.tell();
  }

  at(event) {
    const frame = this.canvas.getBoundingClientRect();
    return {
      x: ((event.clientX - frame.left) / frame.width) * this.width,
      y: ((event.clientY - frame.top) / frame.height) * this.height,
    };
  }

  down(event) {
    if (event.button !== 0) return;
    this.canvas.setPointerCapture(event.pointerId);
    this.begin(this.at(event));
  }

  begin(point) {
    this.remember();
    this.begun = this.last = point;
    this.cursor = point;
    if (this.tool !== "rectangle") this.line(point, point);
    this.paint();
  }

  move(event) {
    this.cursor = this.at(event);
    if (this.begun && this.tool !== "rectangle") this.line(this.last, this.cursor);
    this.last = this.cursor;
    this.paint();
  }

  up() {
    if (!this.begun) return;
    if (this.tool === "rectangle") this.fill(this.begun, this.last);
    this.begun = null;
    this.paint();
    this.tell();
  }

  line(from, to) {
    const layer = this.layer;
    layer.globalCompositeOperation = this.tool === "eraser" ? "destination-out" : "source-over";
    layer.strokeStyle = "#fff";
    layer.lineCap = layer.lineJoin = "round";
    layer.lineWidth = this.size;
    layer.beginPath();
    layer.moveTo(from.x, from.y);
    layer.lineTo(to.x + 0.01, to.y);
    layer.stroke();
    layer.globalCompositeOperation = "source-over";
  }

  fill(from, to) {
    this.layer.fillStyle = "#fff";
    const [x, y] = [Math.min(from.x, to.x), Math.min(from.y, to.y)].map(Math.round);
    this.layer.fillRect(x, y, Math.round(Math.abs(to.x - from.x)), Math.round(Math.abs(to.y - from.y)));
  }

  invert() {
    this.layer.globalCompositeOperation = "xor";
    this.layer.fillStyle = "#fff";
    this.layer.fillRect(0, 0, this.width, this.height);
    this.layer.globalCompositeOperation = "source-over";
  }

  change(action) {
    if (!this.picture) return;
    this.remember();
    action();
    this.paint();
    this.tell();
  }

  remember() {
    this.past.push(this.layer.getImageData(0, 0, this.width, this.height));
    const kept = Math.max(1, Math.min(UNDO, Math.floor(UNDO_BYTES / (4 * this.width * this.height))));
    if (this.past.length > kept) this.past.shift();
  }

  undo() {
    if (this.past.length) this.layer.putImageData(this.past.pop(), 0, 0);
    this.paint();
    this.tell();
  }

  key(event) {
    if ((event.ctrlKey || event.metaKey) && event.key === "z") this.undo();
    else if (event.key.startsWith("Arrow") && !event.altKey) this.moveCursor(event.key.slice(5), event.shiftKey ? 32 : 8);
    else if (event.key === " ") this.stamp();
    else if (event.key === "Escape" && this.begun) { this.begun = null; this.past.pop(); }
    else return;
    event.preventDefault();
    this.paint();
  }

  moveCursor(direction, by) {
    const cursor = this.cursor ?? { x: this.width / 2, y: this.height / 2 };
    const [dx, dy] = { Left: [-by, 0], Right: [by, 0], Up: [0, -by], Down: [0, by] }[direction];
    this.cursor = {
      x: Math.min(this.width, Math.max(0, cursor.x + dx)),
      y: Math.min(this.height, Math.max(0, cursor.y + dy)),
    };
    this.last = this.cursor;
    say(`${Math.round(this.cursor.x)}, ${Math.round(this.cursor.y)}`);
  }

  /** Space paints a dot; with the rectangle, it sets one corner and then the other. */
  stamp() {
    const point = this.cursor ?? { x: this.width / 2, y: this.height / 2 };
    if (this.tool === "rectangle" && this.begun) return this.up();
    this.begin(point);
    if (this.tool !== "rectangle") this.up();
  }

  paint() {
    if (!this.picture) return;
    const context = this.canvas.getContext("2d");
    context.drawImage(this.picture, 0, 0);
    const tinted = new OffscreenCanvas(this.width, this.height).getContext("2d");
    tinted.drawImage(this.layer.canvas, 0, 0);
    if (this.begun && this.tool === "rectangle") {
      const [a, b] = [this.begun, this.last];
      tinted.fillRect(Math.min(a.x, b.x), Math.min(a.y, b.y), Math.abs(b.x - a.x), Math.abs(b.y - a.y));
    }
    tinted.globalCompositeOperation = "source-in";
    tinted.fillStyle = TINT;
    tinted.fillRect(0, 0, this.width, this.height);
    context.drawImage(tinted.canvas, 0, 0);
    if (this.cursor) this.ring(context);
  }

  ring(context) {
    const radius = this.tool === "rectangle" ? 3 : this.size / 2;
    for (const [colour, width] of [["#000", 2.5], ["#fff", 1]]) {
      context.strokeStyle = colour;
      context.lineWidth = width * Math.max(1, this.width / 512);
      context.beginPath();
      context.arc(this.cursor.x, this.cursor.y, radius, 0, 7);
      context.stroke();
    }
  }

  /** The share of the picture that is marked. */
  share() {
    const { data } = this.layer.getImageData(0, 0, this.width, this.height);
    let marked = 0;
    for (let i = 3; i < data.length; i += 4) marked += data[i] >= 128;
    return (4 * marked) / data.length;
  }

  tell() {
    const share = this.share();
    this.undoButton.disabled = !this.past.length;
    this.hint.textContent = share
      ? `${(100 * share).toFixed(1)} % of the picture is marked`
      : "Mark what shall change. Keys: arrows move, space marks, Ctrl+Z takes back.";
    this.canvas.setAttribute("aria-label", `Mask on the picture; ${(100 * share).toFixed(1)} % is marked. Arrows move, space marks.`);
    this.onchange("mask");
  }

  /** The mask as a PNG, white where to edit. */
  async blob() {
    const canvas = Object.assign(document.createElement("canvas"), { width: this.width, height: this.height });
    const context = canvas.getContext("2d");
    context.fillRect(0, 0, this.width, this.height);
    context.drawImage(this.layer.canvas, 0, 0);
    return pngOf(canvas);
  }
}

export function openMask(onchange) {
  return new MaskEditor($("mask"), $("tools"), $("mask-hint"), onchange);
}
