// The planner: what it saw and foresaw, what it wanted and what there was, and why.

import { LineChart } from "./chart.js";
import { byId, make, setText, Table } from "./dom.js";
import * as format from "./format.js";

const COLUMNS = [
  { title: "Since", class: "n", show: (plan) => plan.ago },
  { title: "Replicas", class: "id", show: (plan) => plan.replicas },
  { title: "Decided by", class: "id", show: (plan) => plan.decidedBy },
  { title: "Why", class: "why", show: (plan) => plan.why },
];
const MOST_POOLS = 3; // of which there is a chart each

export class PlannerPanel {
  constructor() {
    this.place = byId("planner-body");
    this.note = byId("planner-note");
    this.charts = null;
  }

  update(state) {
    const { planner } = state;
    if (planner === null) return this.say("off", "The planner is off: pools keep the size that they were started with. Set planner.mode to dry_run or on.");
    const { told, moments } = planner;
    if (told.silent) {
      setText(this.note, told.silent);
    } else if (told.mode) {
      setText(this.note, told.mode === "dry_run" ? "dry run: plans are not carried out" : `mode: ${told.mode}`);
    }
    if (moments.length === 0) return this.say(this.note.textContent, "The planner has not told a plan yet.");
    const pools = Object.keys(moments.at(-1).pools).slice(0, MOST_POOLS);
    this.build(pools);
    this.rate.update(moments);
    pools.forEach((_, i) => this.charts[i].update(moments));
    if (told.plans) this.table.show(told.plans.map((plan) => inWords(plan, state.now)), (plan) => plan.key);
    setText(this.pins, pinsOf(told.pools ?? {}));
  }

  redraw() {
    if (this.charts) for (const chart of [this.rate, ...this.charts]) chart.draw();
  }

  say(note, text) {
    this.charts = null;
    setText(this.note, note);
    if (this.place.textContent !== text) this.place.replaceChildren(make("p", { class: "empty", text }));
  }

  build(pools) {
    const key = pools.join();
    if (this.charts && this.key === key) return;
    this.key = key;
    const [graphs, list] = [make("div", { class: "charts inner" }), make("div", { class: "scroll", tabindex: "0", role: "group", "aria-label": "Plans" })];
    this.pins = make("p", { class: "note" });
    this.place.replaceChildren(graphs, this.pins, list);
    const of = (name) => (history, i) => history[i][name];
    this.rate = new LineChart(graphs, {
      title: "Requests a second",
      show: format.rate,
      series: [
        { name: "seen", color: 1, value: of("rate") },
        { name: "foreseen", color: 3, value: of("middle") },
        { name: "room for", color: 2, value: of("upper") },
      ],
    });
    this.charts = pools.map((pool) => new LineChart(graphs, {
      title: `Replicas of ${pool}`,
      show: format.count,
      least: 2,
      series: [
        { name: "planned", color: 3, steps: true, value: (history, i) => history[i].pools[pool]?.[0] ?? null },
        { name: "asked for", color: 2, steps: true, value: (history, i) => history[i].pools[pool]?.[1] ?? null },
        { name: "ready", color: 1, steps: true, value: (history, i) => history[i].pools[pool]?.[2] ?? null },
      ],
    }));
    this.table = new Table(list, COLUMNS);
  }
}

function inWords(plan, now) {
  const parts = [];
  if (plan.held) parts.push(`held: ${plan.held}`);
  for (const flip of plan.flips ?? []) parts.push(`${flip.worker}: ${flip.before} → ${flip.role}`);
  if (plan.release?.length) parts.push(`releases ${plan.release.join(", ")}`);
  for (const broken of plan.violations ?? []) {
    parts.push(`${broken.target.toUpperCase()} will be ${broken.expected_ms === null ? "without bound" : format.ms(broken.expected_ms)}, not ${format.ms(broken.limit_ms)}: ${broken.remedy}`);
  }
  parts.push(...needs(plan.explanation ?? {}), ...(plan.explanation?.notes ?? []));
  return {
    key: `${plan.since}`,
    ago: format.age(now - plan.since),
    replicas: Object.entries(plan.replicas).map(([pool, n]) => `${pool} ${n}`).join(", "),
    decidedBy: plan.explanation?.decided_by || format.NONE,
    why: parts.join("; "),
  };
}

// What was seen and foreseen, and how many workers that takes.
function needs({ observed = {}, predicted = {}, needed = {} }) {
  const parts = [];
  if (observed.rate != null && predicted.rate_upper != null) {
    parts.push(`${format.rate(observed.rate)} requests/s seen, room wanted for ${format.rate(predicted.rate_upper)}`);
  }
  const roles = Object.entries(needed).filter(([, n]) => n > 0);
  if (roles.length) parts.push(`needs ${roles.map(([role, n]) => `${n} ${role}`).join(", ")}`);
  return parts;
}

function pinsOf(pools) {
  const pins = Object.entries(pools).filter(([, pool]) => pool.pin);
  return pins.map(([name, { pin }]) => `${name} is pinned to ${pin.replicas} for ${format.age(pin.left_s)}`).join("; ");
}
