// The six charts of the last ten minutes.

import { LineChart } from "./chart.js";
import * as format from "./format.js";
import { rateAt } from "./state.js";

const plain = (name) => (history, i) => history[i][name];
const perSecond = (name) => (history, i) => rateAt(history, i, name);
const SMOOTH = 5; // moments: a single one holds few lookups

function hitRate(history, i) {
  const near = history.slice(Math.max(0, i - SMOOTH + 1), i + 1);
  const queries = near.reduce((sum, moment) => sum + moment.queries, 0);
  return queries ? near.reduce((sum, moment) => sum + moment.hits, 0) / queries : null;
}

export class Charts {
  constructor(place) {
    let tokenBytes = 0;
    const moved = (history, i) => {
      const tokens = rateAt(history, i, "moved");
      return tokens === null ? null : tokens * tokenBytes;
    };
    this.setTokenBytes = (value) => {
      tokenBytes = value;
    };
    this.ttft = new LineChart(place, {
      title: "Time to first token",
      show: format.ms,
      series: [
        { name: "P50", color: 1, value: plain("ttft_p50") },
        { name: "P95", color: 2, value: plain("ttft_p95") },
      ],
    });
    this.itl = new LineChart(place, {
      title: "Time between tokens",
      show: format.ms,
      series: [
        { name: "P50", color: 1, value: plain("itl_p50") },
        { name: "P95", color: 2, value: plain("itl_p95") },
      ],
    });
    this.others = [
      new LineChart(place, {
        title: "Tokens a second",
        show: format.rate,
        least: 10,
        series: [
          { name: "answers", color: 1, value: perSecond("output_tokens") },
          { name: "prompts", color: 3, value: perSecond("prompt_tokens") },
        ],
      }),
      new LineChart(place, {
        title: "Requests",
        show: format.count,
        least: 4,
        series: [
          { name: "running", color: 1, value: plain("running") },
          { name: "waiting", color: 2, value: plain("waiting") },
        ],
      }),
      new LineChart(place, {
        title: "KV cache",
        show: format.share,
        most: 1,
        series: [
          { name: "in use", color: 1, value: plain("kv") },
          { name: "hit rate", color: 3, value: hitRate },
        ],
      }),
      new LineChart(place, {
        title: "KV between workers",
        show: (value) => `${format.bytes(value)}/s`,
        least: 1000,
        series: [{ name: "moved", color: 4, value: moved }],
      }),
    ];
  }

  update(state) {
    this.setTokenBytes(state.tokenBytes);
    const { history, promise } = state;
    this.ttft.update(history, promise?.ttft_ms ?? null);
    this.itl.update(history, promise?.itl_ms ?? null);
    for (const chart of this.others) chart.update(history);
  }

  redraw() {
    for (const chart of [this.ttft, this.itl, ...this.others]) chart.draw();
  }
}

