// The fleet in eight numbers.

import { make, setAttribute, setText } from "./dom.js";
import * as format from "./format.js";
import { rateOver, sumOf } from "./state.js";

const RATE_S = 10;
const NAMES = ["Workers", "In flight", "Running", "Waiting", "Tokens/s", "Hit rate", "KV in use", "SLO"];

export class Tiles {
  constructor(place) {
    this.tiles = NAMES.map((name) => {
      const [title, value, under] = [make("span", { text: name }), make("b"), make("small")];
      const box = make("div", { class: "tile", "data-name": name }, title, value, under);
      place.append(box);
      return { title, value, under, box };
    });
  }

  update(state) {
    const shown = [
      workers(state),
      [format.count(state.inFlight), "at this frontend"],
      total(state, "running", "sequences on workers"),
      total(state, "waiting", "for a place in a batch"),
      speed(state),
      hits(state),
      memory(state),
      promise(state),
    ];
    setText(this.tiles.at(-1).title, state.promise === null ? "Answered" : "SLO");
    shown.forEach(([value, under, mood = ""], i) => {
      setText(this.tiles[i].value, value);
      setText(this.tiles[i].under, under);
      setAttribute(this.tiles[i].box, "data-mood", mood);
    });
  }
}

function workers(state) {
  const counts = [0, 0, 0, 0];
  for (const worker of state.workers.values()) counts[worker.state ?? 3] += 1;
  const [serving, draining, silent, unheard] = counts;
  const away = silent + unheard;
  const parts = [];
  if (draining) parts.push(`${draining} draining`);
  if (away) parts.push(`${away} silent`);
  const none = state.workers.size === 0;
  return [format.count(serving), parts.join(", ") || (none ? "no fleet here" : "all serve"), away ? "warn" : ""];
}

function total(state, name, under) {
  if (state.workers.size === 0) return [format.count(state.history.at(-1)?.[name]), under];
  let sum = 0;
  for (const worker of state.workers.values()) sum += worker[name] ?? 0;
  return [format.count(sum), under];
}

function speed(state) {
  const prompts = rateOver(state.history, "prompt_tokens", RATE_S);
  return [format.rate(rateOver(state.history, "output_tokens", RATE_S)), `${format.rate(prompts)} of prompts`];
}

function hits(state) {
  const queries = sumOf(state.history, "queries");
  return [format.share(queries ? sumOf(state.history, "hits") / queries : null), "of prompt tokens"];
}

function memory(state) {
  let [used, blocks, cached] = [0, 0, 0];
  for (const worker of state.workers.values()) {
    used += worker.used ?? 0;
    blocks += worker.blocks ?? 0;
    cached += worker.cached ?? 0;
  }
  if (!blocks) return [format.share(state.history.at(-1)?.kv), "of the blocks"];
  const share = used / blocks;
  return [format.share(share), `${format.share(cached / blocks)} hold a prefix`, share > 0.95 ? "warn" : ""];
}

function promise(state) {
  const answered = sumOf(state.history, "answered");
  if (state.promise === null) return [format.count(answered), "in 10 min; no SLO is set"];
  const share = answered ? sumOf(state.history, "kept") / answered : null;
  const mood = share === null ? "" : share >= state.promise.share ? "good" : "bad";
  return [format.promiseShare(share), `of ${format.count(answered)} kept, 10 min`, mood];
}
