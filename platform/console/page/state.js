// What is known of the fleet: grown from the parts that the frontend tells, the newest last.

const KEPT = 300;
export const STATES = ["serving", "draining", "silent", "not heard"];

export class FleetState {
  constructor() {
    this.forget();
  }

  forget() {
    this.cursor = "";
    this.now = 0;
    this.model = "";
    this.promise = null;
    this.windowS = 20;
    this.inFlight = 0;
    this.history = [];
    this.workers = new Map(); // by number
    this.decisions = [];
    this.planner = null; // null: there is none; told: as it says, moments: its past
  }

  // Take what came; return the numbers of workers that are new or changed, and of those gone.
  apply(told) {
    const life = told.cursor.split(".")[0];
    if (this.cursor && this.cursor.split(".")[0] !== life) this.forget();
    this.cursor = told.cursor;
    this.now = told.now;
    this.inFlight = told.in_flight;
    this.promise = told.promise;
    if (told.model !== undefined) {
      this.model = told.model;
      this.windowS = told.window_s;
      this.history = [];
      this.planner = null;
    }
    if (told.decisions !== undefined) this.decisions = told.decisions;
    this.history.push(...rows(told.history));
    this.history.splice(0, this.history.length - KEPT);
    if (told.planner !== undefined) this.applyPlanner(told.planner);
    return this.applyWorkers(told.workers);
  }

  applyWorkers({ whole, gone, who, how }) {
    const changed = new Set();
    const left = whole ? new Set(this.workers.keys()) : new Set(gone);
    for (const row of rows(who)) {
      left.delete(row.id);
      this.workers.set(row.id, { ...this.workers.get(row.id), ...row });
    }
    for (const row of rows(how)) {
      const worker = this.workers.get(row.id);
      if (worker === undefined) continue;
      Object.assign(worker, row);
      worker.use = worker.blocks ? (worker.used ?? 0) / worker.blocks : 0;
      worker.resident = worker.blocks ? (worker.cached ?? 0) / worker.blocks : 0;
      worker.hit = worker.queries ? worker.hits / worker.queries : null;
      changed.add(row.id);
    }
    for (const id of left) this.workers.delete(id);
    return { changed, left };
  }

  applyPlanner({ moments: fresh, told }) {
    this.planner ??= { told: {}, moments: [] };
    if (told !== undefined) this.planner.told = told;
    this.planner.moments.push(...fresh);
    this.planner.moments.splice(0, this.planner.moments.length - KEPT);
  }

  // Replicas that pools are to have, by name; none where nobody plans.
  get wanted() {
    const pools = Object.entries(this.planner?.told.pools ?? {});
    return Object.fromEntries(pools.map(([name, pool]) => [name, pool.target ?? pool.planned]));
  }

  // The bytes of one token's KV; 0: not known.
  get tokenBytes() {
    for (const { block_bytes: bytes, block_size: size } of this.workers.values()) {
      if (bytes && size) return bytes / size;
    }
    return 0;
  }
}

function* rows(columns) {
  const names = Object.keys(columns);
  const length = names.length ? columns[names[0]].length : 0;
  for (let i = 0; i < length; i += 1) {
    yield Object.fromEntries(names.map((name) => [name, columns[name][i]]));
  }
}

// Return a moment's count as a rate, from what `history` says of the one before.
export function rateAt(history, i, name) {
  if (i < 1) return null;
  const passed = history[i].at - history[i - 1].at;
  return passed > 0 ? history[i][name] / passed : null;
}

// Return the rate of a count over the last seconds; null when there is no such time yet.
export function rateOver(history, name, seconds) {
  const end = history.length - 1;
  if (end < 1) return null;
  let first = end;
  let sum = 0;
  while (first > 0 && history[end].at - history[first].at < seconds) {
    sum += history[first][name];
    first -= 1;
  }
  const passed = history[end].at - history[first].at;
  return passed > 0 ? sum / passed : null;
}

export function sumOf(history, name) {
  return history.reduce((sum, moment) => sum + moment[name], 0);
}
