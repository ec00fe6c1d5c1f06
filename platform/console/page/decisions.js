// The router's last decisions; one that is opened shows what each candidate would have cost.

import { ask } from "./connection.js";
import { byId, make, setText, Table } from "./dom.js";
import * as format from "./format.js";
import { costFormat, reasonOf } from "./reasons.js";

const TERMS = ["queue", "load", "pull", "prefill", "transfer", "crowd", "stall", "decode", "room"];
const MOST_OPTIONS = 8;

export class Decisions {
  constructor() {
    this.place = byId("decisions");
    this.note = byId("decisions-note");
    this.table = null;
    this.now = 0;
    this.openId = null;
    this.buttons = new Map();
    this.opened = make("tr", { class: "opened" }, make("td", { colspan: "9" }));
    this.place.addEventListener("click", (event) => this.toggle(event.target.closest("button")?.dataset.id));
  }

  update(state) {
    this.now = state.now;
    setText(this.note, this.openId === null ? "its last decisions, and why" : "held while one is open");
    // On a busy fleet the one that somebody reads would be gone in a second.
    if (this.openId !== null) return;
    if (state.decisions.length === 0) {
      if (this.table || !this.place.firstChild) {
        this.table = null;
        this.place.replaceChildren(make("p", { class: "empty", text: "No request was placed yet." }));
      }
      return;
    }
    this.table ??= new Table(this.place, this.columns());
    this.table.show(state.decisions, (decision) => decision.id);
    const living = new Set(state.decisions.map((decision) => decision.id));
    for (const id of this.buttons.keys()) if (!living.has(id)) this.buttons.delete(id);
  }

  columns() {
    return [
      { title: "Ago", class: "n", show: (d) => format.age(this.now - d.at) },
      { title: "Request", class: "id", show: (d) => this.button(d) },
      { title: "Went to", class: "id", show: (d) => where(d.chosen) },
      { title: "Prompt", class: "n", show: (d) => format.count(d.prompt) },
      { title: "Cached / best", class: "n wide", show: (d) => `${format.count(d.chosen.cached ?? d.predicted.cached_tokens)} / ${format.count(d.best_cached)}` },
      { title: "TTFT, foreseen", class: "n wide", show: (d) => format.ms(d.predicted.ttft_ms) },
      { title: "TTFT, came", class: "n wide", show: (d) => format.ms(d.actual.ttft_ms) },
      { title: "Regret", class: "n wide", show: (d) => format.ms(d.regret) },
      { title: "Why", class: "why", show: reasonOf },
    ];
  }

  button(decision) {
    let button = this.buttons.get(decision.id);
    if (!button) {
      button = make("button", { type: "button", class: "link", "data-id": decision.id, "aria-expanded": "false", title: decision.id, text: decision.id });
      this.buttons.set(decision.id, button);
    }
    return button;
  }

  async toggle(id) {
    if (id === undefined) return;
    this.buttons.get(this.openId)?.setAttribute("aria-expanded", "false");
    this.opened.remove();
    if (id === this.openId) {
      this.openId = null;
      return;
    }
    this.openId = id;
    this.buttons.get(id)?.setAttribute("aria-expanded", "true");
    const cell = this.opened.firstChild;
    cell.replaceChildren(make("p", { class: "empty", text: "Asking the router." }));
    this.table.rows.get(id)?.after(this.opened);
    try {
      const told = await ask(`v1/router/explain?request=${encodeURIComponent(id)}`);
      if (this.openId === id) cell.replaceChildren(optionsOf(told.decisions[0]));
    } catch (error) {
      if (this.openId === id) setText(cell.firstChild, `It is not to be had: ${error.message}`);
    }
  }
}

function where({ prefill, decode }) {
  return prefill ? `${prefill} → ${decode}` : decode;
}

// What the target that computes the prompt holds of its beginning.
function overlapOf(option) {
  const tiers = Object.entries((option.prefill ? option.prefill_overlap : option.decode_overlap) ?? {});
  const told = tiers.map(([tier, blocks]) => `${format.count(blocks)} ${tier}`).join(" + ");
  return told ? `${told} blocks` : "no blocks";
}

// The cheapest options as bars: each part of one is a term of its cost.
function optionsOf(decision) {
  const shown = decision.options.slice(0, MOST_OPTIONS);
  const most = Math.max(...shown.map((option) => option.cost), 1e-9);
  const rows = shown.map((option) => {
    const isChosen = option.decode === decision.chosen.decode && option.prefill === decision.chosen.prefill;
    const label = make("span", { class: isChosen ? "name chosen" : "name", text: where(option) });
    const cost = make("span", { class: "cost", text: `${costFormat(decision.policy)(option.cost)}, holds ${overlapOf(option)}` });
    return make("li", {}, label, bar(option.terms, most), cost);
  });
  const known = new Set([...TERMS, ...shown.flatMap((option) => Object.keys(option.terms))]);
  const used = [...known].filter((term) => shown.some((option) => option.terms[term] > 0.005));
  const keys = used.map((term) => make("span", { class: `term t-${term}`, text: term }));
  const rest = decision.num_candidates - shown.length;
  const note = rest > 0 ? `and ${format.count(rest)} more` : "";
  return make("div", { class: "options" }, make("p", { class: "terms" }, "cost: ", ...keys), make("ol", {}, ...rows), make("p", { class: "note", text: note }));
}

function bar(terms, most) {
  const parts = Object.entries(terms).filter(([, value]) => value > 0);
  return make("span", { class: "bars", "aria-hidden": "true" }, ...parts.map(([term, value]) => {
    const part = make("i", { class: `t-${term}`, title: `${term} ${format.rate(value)}` });
    part.style.width = `${(100 * value) / most}%`;
    return part;
  }));
}
