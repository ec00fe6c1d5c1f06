// The pools: how many workers are there and wanted, and what they do.

import { byId, make, Table } from "./dom.js";
import * as format from "./format.js";

const ROLES = ["prefill", "decode", "both"];

const COLUMNS = [
  { title: "Pool", show: (pool) => pool.name },
  { title: "There", class: "n", show: (pool) => format.count(pool.there) },
  { title: "Wanted", class: "n", show: (pool) => format.count(pool.wanted) },
  { title: "Draining", class: "n wide", show: (pool) => format.count(pool.draining) },
  { title: "Roles", show: (pool) => ROLES.filter((r) => pool.roles[r]).map((r) => `${pool.roles[r]} ${r}`).join(", ") || format.NONE },
  { title: "Running", class: "n", show: (pool) => format.count(pool.running) },
  { title: "Waiting", class: "n wide", show: (pool) => format.count(pool.waiting) },
  { title: "KV", class: "n", show: (pool) => format.share(pool.blocks ? pool.used / pool.blocks : null) },
  { title: "Hits", class: "n wide", show: (pool) => format.share(pool.queries ? pool.hits / pool.queries : null) },
];

export class Pools {
  constructor() {
    this.place = byId("pools");
    this.table = null;
  }

  update(state, wanted) {
    const pools = poolsOf(state, wanted);
    if (pools.length === 0) {
      this.table = null;
      if (!this.place.querySelector(".empty")) {
        this.place.replaceChildren(make("p", { class: "empty", text: "No worker is connected: they appear here when they are." }));
      }
      return;
    }
    this.table ??= new Table(this.place, COLUMNS);
    this.table.show(pools, (pool) => pool.name);
  }
}

function poolsOf(state, wanted) {
  const pools = new Map();
  const poolOf = (name) => {
    if (!pools.has(name)) {
      pools.set(name, {
        name, there: 0, wanted: wanted[name] ?? null, draining: 0, roles: {},
        running: 0, waiting: 0, used: 0, blocks: 0, queries: 0, hits: 0,
      });
    }
    return pools.get(name);
  };
  for (const name of Object.keys(wanted)) poolOf(name);
  for (const worker of state.workers.values()) {
    const pool = poolOf(worker.pool ?? "?");
    pool.there += worker.state === 1 ? 0 : 1;
    pool.draining += worker.state === 1 ? 1 : 0;
    if (worker.role) pool.roles[worker.role] = (pool.roles[worker.role] ?? 0) + 1;
    for (const name of ["running", "waiting", "used", "blocks", "queries", "hits"]) pool[name] += worker[name] ?? 0;
  }
  return [...pools.values()].sort((a, b) => (a.name < b.name ? -1 : 1));
}
