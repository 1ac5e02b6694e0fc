// Jobs of this page: a few run at a time, the others wait here. Each shows progress and previews.

import * as api from "./api.js";
import { $, h, say } from "./dom.js";

/** A browser opens six connections to a server over HTTP/1.1, and a running job takes two. */
const RUNNING = 2;

export class Queue {
  /** `on` has: preview(job), done(job, picture), failed(job, error), changed(). */
  constructor(on) {
    this.on = on;
    this.jobs = [];
  }

  add(request, details) {
    const job = {
      id: crypto.randomUUID?.() ?? `page-${Date.now()}-${Math.random().toString(36).slice(2)}`,
      request,
      ...details,
      state: "waiting",
      status: null,
      preview: null,
      stop: new AbortController(),
    };
    this.element(job);
    this.jobs.push(job);
    this.next();
    return job;
  }

  next() {
    const running = this.jobs.filter((job) => job.state === "running").length;
    for (const job of this.jobs.filter((each) => each.state === "waiting").slice(0, RUNNING - running)) this.run(job);
    this.show();
  }

  async run(job) {
    job.state = "running";
    this.update(job);
    const { kind, body } = job.request;
    body.tessera.job_id = job.id;
    let watching = null;
    const begun = () => (watching = this.watch(job));
    try {
      const picture = await api.draw(kind, body, { signal: job.stop.signal, begun });
      this.remove(job);
      await this.on.done(job, picture);
    } catch (error) {
      this.remove(job);
      const cancelled = job.cancelled || error.code === "job_cancelled";
      if (!cancelled) this.on.failed(job, error);
      else say("cancelled");
      this.on.changed(job);
    }
    job.stop.abort();
    await watching;
    this.next();
  }

  async watch(job) {
    try {
      for await (const { name, data } of api.events(job.id, job.stop.signal)) {
        if (name === "status") job.status = data;
        if (name === "preview") {
          job.preview = { ...data, url: `data:image/png;base64,${data.b64_json}` };
          this.on.preview(job);
        }
        this.update(job);
      }
    } catch {
      // without news the picture still comes, or its error
    }
  }

  cancel(job) {
    job.cancelled = true;
    this.update(job);
    if (job.state === "running") {
      api.cancel(job.id).catch(() => {});
      setTimeout(() => job.stop.abort(), 500); // closing the connection cancels it, too
    } else {
      this.remove(job);
      say("cancelled");
    }
  }

  cancelNewest() {
    const job = this.jobs.at(-1);
    if (job) this.cancel(job);
    return Boolean(job);
  }

  remove(job) {
    this.jobs = this.jobs.filter((each) => each !== job);
    this.show();
  }

  element(job) {
    job.thumb = h("div", { className: "thumb" });
    job.words = h("span", { className: "quiet" });
    job.bar = h("progress", { "aria-label": `Progress of ${job.title}`, max: 1, value: 0 });
    job.row = h("li", { "data-job": job.id },
      job.thumb,
      h("div", { className: "words" }, h("span", { className: "name" }, job.title), job.bar, job.words),
      h("button", { type: "button", className: "small cancel", onclick: () => this.cancel(job), "aria-label": `Cancel ${job.title}` }, "Cancel"));
    this.update(job);
  }

  update(job) {
    const { status, preview } = job;
    job.words.textContent = wordsOf(job);
    if (status?.total) {
      job.bar.max = status.total;
      job.bar.value = status.step;
    }
    if (preview) {
      const image = job.thumb.firstChild ?? h("img", { alt: "" });
      image.src = preview.url;
      if (!image.parentNode) job.thumb.append(image);
    }
  }

  show() {
    $("queue").replaceChildren(...this.jobs.map((job) => job.row));
    $("queue-part").hidden = !this.jobs.length;
  }
}

function wordsOf({ state, status, cancelled }) {
  if (cancelled) return "stopping";
  if (state === "waiting") return "waits for the jobs above";
  if (!status) return "on its way";
  if (status.phase === "queued") return status.place ? `place ${status.place} in the server's queue` : "begins";
  if (status.phase === "decoding") return "decoding";
  const left = status.seconds_left === null ? "" : `, ${status.seconds_left.toFixed(1)} s left`;
  return `step ${status.step} of ${status.total}${left}`;
}
