// What there is to know of the worker that was chosen.

import { byId, make, setText } from "./dom.js";
import * as format from "./format.js";
import { STATES } from "./state.js";

const ROWS = [
  ["State", (w) => STATES[w.state ?? 3]],
  ["Role", (w) => w.role ?? format.NONE],
  ["Pool", (w) => w.pool ?? format.NONE],
  ["Running", (w) => `${format.count(w.running)} of ${format.count(w.seats)}`],
  ["Waiting", (w) => format.count(w.waiting)],
  ["Queued tokens", (w) => format.count(w.queued)],
  ["KV in use", (w) => `${format.share(w.use, 1)}, ${format.count(w.used)} of ${format.count(w.blocks)} blocks`],
  ["Resident", (w) => `${format.count(w.cached)} blocks that the router may count on`],
  ["Hit rate", (w) => `${format.share(w.hit, 1)} since its start`],
  ["KV in", (w) => flow(w.pulled, w)],
  ["KV out", (w) => flow(w.passed, w)],
  ["Longest prompt", (w) => `${format.count(w.max_len)} tokens`],
  ["Address", (w) => w.address ?? format.NONE],
  ["Host", (w) => w.host ?? format.NONE],
];

export class Details {
  constructor() {
    this.place = byId("details");
    this.id = null;
    this.name = null;
    this.values = null;
    this.say("Choose a worker to see what it does.");
  }

  choose(state, id) {
    this.id = id;
    this.name = make("h3");
    this.values = ROWS.map(() => make("dd"));
    const list = ROWS.flatMap(([title], i) => [make("dt", { text: title }), this.values[i]]);
    this.place.replaceChildren(this.name, make("dl", {}, ...list));
    this.update(state);
  }

  update(state) {
    if (this.id === null) return;
    const worker = state.workers.get(this.id);
    if (worker === undefined) {
      this.say(`${this.name.textContent} is gone.`);
      this.id = null;
      return;
    }
    setText(this.name, worker.name);
    ROWS.forEach(([, show], i) => setText(this.values[i], show(worker)));
  }

  say(text) {
    this.place.replaceChildren(make("p", { class: "empty", text }));
  }
}

function flow(tokens, worker) {
  const size = worker.block_size ? worker.block_bytes / worker.block_size : 0;
  const shown = `${format.rate(tokens ?? 0)} tokens/s`;
  return size ? `${shown}, ${format.bytes((tokens ?? 0) * size)}/s` : shown;
}
