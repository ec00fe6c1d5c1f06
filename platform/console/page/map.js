// Every worker as one cell, coloured by a share: of its KV blocks in use or resident, or of hits.
//
// A cell is one element, two where there is room for a name, and is touched only when what it shows
// has changed: a thousand of them cost little.

import { byId, make, setAttribute, setText } from "./dom.js";
import * as format from "./format.js";
import { STATES } from "./state.js";

const LEVELS = 10;
const CARDS = 36; // up to so many there is room for names
const SORT_AGAIN_MS = 10_000; // while values change, cells stay where they are for so long
const LETTERS = { prefill: "P", decode: "D", both: "B" };
const ORDERS = {
  name: (a, b) => compare(a.pool, b.pool) || compare(a.name, b.name),
  use: (a, b) => b.use - a.use,
  waiting: (a, b) => (b.waiting ?? 0) - (a.waiting ?? 0) || b.use - a.use,
  running: (a, b) => (b.running ?? 0) - (a.running ?? 0) || b.use - a.use,
  hit: (a, b) => (a.hit ?? 2) - (b.hit ?? 2),
};

export class WorkerMap {
  // `onChoose` hears the number of the worker that somebody has chosen.
  constructor(onChoose) {
    this.place = byId("map");
    this.onChoose = onChoose;
    this.cells = new Map();
    this.chosen = null;
    this.sortedAt = 0;
    this.asCards = null;
    this.controls = ["find", "role", "sort"].map(byId);
    for (const control of this.controls) control.addEventListener("input", () => this.arrange());
    this.measure = byId("measure");
    this.measure.addEventListener("input", () => this.recolour());
    this.place.addEventListener("click", (event) => this.choose(event.target.closest(".cell")));
    this.place.addEventListener("keydown", (event) => this.walk(event));
    this.drawLegend();
  }

  update(state, { changed, left }) {
    this.state = state;
    for (const id of left) {
      this.cells.get(id)?.remove();
      this.cells.delete(id);
    }
    const grew = [...changed].some((id) => !this.cells.has(id));
    const cards = state.workers.size <= CARDS;
    if (cards !== this.asCards) {
      this.asCards = cards;
      this.place.classList.toggle("cards", cards);
      this.cells.clear();
      this.place.replaceChildren();
      changed = state.workers.keys();
    }
    for (const id of changed) this.show(state.workers.get(id));
    const live = this.controls[2].value !== "name" && performance.now() - this.sortedAt > SORT_AGAIN_MS;
    if (grew || left.size || live || !this.sortedAt) this.arrange();
  }

  show(worker) {
    const cell = this.cells.get(worker.id) ?? this.makeCell(worker);
    const shown = worker[this.measure.value] ?? 0;
    setAttribute(cell, "data-level", String(Math.min(LEVELS - 1, Math.floor(shown * LEVELS))));
    setAttribute(cell, "data-state", STATES[worker.state ?? 3]);
    if (this.asCards) {
      setText(cell.children[0], worker.name);
      setText(cell.children[1], `${LETTERS[worker.role] ?? "?"}  ${format.share(shown)}`);
      setText(cell.children[2], `${worker.running ?? 0} run, ${worker.waiting ?? 0} wait`);
    } else {
      setText(cell, LETTERS[worker.role] ?? "?");
    }
  }

  recolour() {
    for (const id of this.cells.keys()) this.show(this.state.workers.get(id));
    this.nameMeasure();
  }

  nameMeasure() {
    setText(this.measured, `${this.measure.selectedOptions[0].text} 0%`);
    // Much in use is a warning; much that is resident or found is not.
    this.place.parentNode.classList.toggle("calm", this.measure.value !== "use");
  }

  makeCell(worker) {
    const parts = this.asCards ? [make("b"), make("i"), make("small")] : [];
    const cell = make("div", { class: "cell", role: "option", "aria-label": worker.name, tabindex: "-1" }, ...parts);
    cell.dataset.id = worker.id;
    cell.setAttribute("aria-selected", String(worker.id === this.chosen));
    this.cells.set(worker.id, cell);
    return cell;
  }

  // Put the cells that are wanted in the order that is wanted.
  arrange() {
    this.sortedAt = performance.now();
    const [find, role, sort] = this.controls.map((control) => control.value.trim().toLowerCase());
    const all = [...this.state.workers.values()];
    const found = all.filter((worker) => fits(worker, find, role)).sort(ORDERS[sort]);
    const cells = found.map((worker) => this.cells.get(worker.id));
    const before = this.place.children;
    if (cells.length !== before.length || cells.some((cell, i) => cell !== before[i])) {
      const focused = document.activeElement;
      this.place.replaceChildren(...cells);
      if (cells.includes(focused)) focused.focus();
    }
    if (!cells.some((cell) => cell.tabIndex === 0) && cells.length) cells[0].tabIndex = 0;
    const shown = found.length === all.length ? `${all.length}` : `${found.length} of ${all.length}`;
    setText(byId("workers-count"), shown);
  }

  choose(cell) {
    if (!cell) return;
    for (const each of [this.cells.get(this.chosen), this.place.querySelector("[tabindex='0']")]) {
      if (each) {
        each.tabIndex = -1;
        each.setAttribute("aria-selected", "false");
      }
    }
    this.chosen = Number(cell.dataset.id);
    cell.tabIndex = 0;
    cell.setAttribute("aria-selected", "true");
    cell.focus();
    this.onChoose(this.chosen);
  }

  walk(event) {
    const cells = [...this.place.children];
    const at = cells.indexOf(document.activeElement);
    if (at < 0) return;
    const top = cells[0].offsetTop;
    const row = Math.max(1, cells.findIndex((cell) => cell.offsetTop > top));
    const step = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -row, ArrowDown: row, Home: -at, End: cells.length - 1 - at }[event.key];
    if (event.key === "Enter" || event.key === " ") this.choose(cells[at]);
    else if (step === undefined) return;
    else {
      const next = cells[Math.max(0, Math.min(cells.length - 1, at + step))];
      cells[at].tabIndex = -1;
      next.tabIndex = 0;
      next.focus();
    }
    event.preventDefault();
  }

  drawLegend() {
    const levels = Array.from({ length: LEVELS }, (_, i) => make("i", { "data-level": String(i) }));
    this.measured = make("span");
    byId("legend").append(this.measured, ...levels, "100%", make("span", { class: "sep" }),
      "P prefill, D decode, B both", make("span", { class: "sep" }), "dashed: draining, struck: silent");
    this.nameMeasure();
  }
}

function fits(worker, find, role) {
  if (role === "unwell") {
    if (worker.state === 0) return false;
  } else if (role && worker.role !== role) return false;
  return !find || [worker.name, worker.pool, worker.host].some((text) => text?.toLowerCase().includes(find));
}

function compare(a, b) {
  return a < b ? -1 : a > b ? 1 : 0;
}
