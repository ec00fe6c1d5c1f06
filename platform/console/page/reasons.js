// A decision of the router in words. Costs are milliseconds; the terms are those of router/cost.py.

import * as format from "./format.js";

const WORDS = {
  queue: "a shorter queue",
  load: "less to bring from lower tiers",
  pull: "less to pull from others",
  transfer: "a shorter way for the KV",
  prefill: "less of the prompt to compute",
  crowd: "fewer that will wait behind it",
  stall: "fewer answers held up",
  decode: "fewer answers beside it",
  room: "more free blocks",
};

// Other policies than kv have costs of their own, which are no times.
export const costFormat = (policy) => (policy === "kv" ? format.ms : format.rate);

export function reasonOf(decision) {
  const parts = [mainReason(decision), extra(decision), leftOut(decision)];
  return parts.filter(Boolean).join("; ");
}

function mainReason({ chosen, other, margin, candidates, policy }) {
  const cost = costFormat(policy);
  if (!other || !chosen.terms) return candidates > 1 ? "the best of those that could take it" : "the only one that could take it";
  if (margin < -0.05) return `not the cheapest: another cost ${cost(-margin)} less`;
  if (margin < 0.05) return "as good as the next one: the policy drew between equals";
  const [name, saved] = Object.entries(other.terms)
    .map(([term, cost]) => [term, cost - (chosen.terms[term] ?? 0)])
    .reduce((best, each) => (each[1] > best[1] ? each : best));
  return `cheaper by ${cost(margin)}: ${WORDS[name] ?? name} saves ${cost(saved)}`;
}

function extra({ chosen }) {
  const { source } = chosen;
  return source ? `pulls ${format.count(source.blocks)} blocks from ${source.target}` : "";
}

function leftOut({ left_out: reasons }) {
  const told = Object.entries(reasons).map(([reason, n]) => `${n} ${reason}`);
  return told.length ? `left out: ${told.join(", ")}` : "";
}
