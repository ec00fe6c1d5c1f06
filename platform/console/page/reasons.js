// A decision of the router in words. Costs are milliseconds; the terms are those of router/cost.py.

import * as format from "./format.js";

const WORDS = {
  queue: "a shorter queue",
  load: "less to bring from lower tiers",
  pull: "less to pull from others",
  prefill: "less of the prompt to compute",
  crowd: "fewer that will wait behind it",
  stall: "fewer answers held up",
  decode: "fewer answers beside it",
  room: "more free blocks",
};

export function reasonOf(decision) {
  const parts = [mainReason(decision), extra(decision), leftOut(decision)];
  return parts.filter(Boolean).join("; ");
}

function mainReason({ chosen, other, margin, candidates }) {
  if (!other || !chosen.terms) return candidates > 1 ? "the best of those that could take it" : "the only one that could take it";
  if (margin < 0) return `not the cheapest: another cost ${format.ms(-margin)} less`;
  if (margin < 0.05) return "as good as the next one: the policy drew between equals";
  const [name, saved] = Object.entries(other.terms)
    .map(([term, cost]) => [term, cost - (chosen.terms[term] ?? 0)])
    .reduce((best, each) => (each[1] > best[1] ? each : best));
  return `cheaper by ${format.ms(margin)}: ${WORDS[name] ?? name} saves ${format.ms(saved)}`;
}

function extra({ chosen }) {
  const parts = [];
  if (chosen.prefill) parts.push(`${chosen.prefill} computes the prompt`);
  if (chosen.source) parts.push(`pulls ${chosen.source.blocks} blocks from ${chosen.source.target}`);
  return parts.join(", ");
}

function leftOut({ left_out: reasons }) {
  const told = Object.entries(reasons).map(([reason, n]) => `${n} ${reason}`);
  return told.length ? `left out: ${told.join(", ")}` : "";
}
