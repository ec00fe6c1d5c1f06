// A line chart on a canvas: a few hundred points, drawn anew when something has changed.

import { make, setAttribute, setText } from "./dom.js";

const GAP = 6; // between the axis and its numbers
const RIGHT = 10;
const TOP = 8;
const BOTTOM = 18;

export class LineChart {
  // `series`: name, color (1..4), value(history, i), show(value); `limit`: what the first keeps to.
  constructor(place, { title, note = "", series, show, least = 0, most = null, span = 600 }) {
    Object.assign(this, { title, series, show, least, most, span });
    this.points = [];
    this.limit = null;
    this.hover = null;
    this.left = 46;
    this.canvas = make("canvas", { role: "img", tabindex: "0" });
    this.values = series.map(() => make("b"));
    const legend = series.map((each, i) =>
      make("span", { class: `key c${each.color}` }, `${each.name} `, this.values[i]),
    );
    this.note = make("span", { class: "note", text: note });
    place.append(
      make(
        "figure",
        { class: "chart" },
        make("figcaption", {}, make("h2", { text: title }), this.note, ...legend),
        this.canvas,
      ),
    );
    new ResizeObserver(() => this.draw()).observe(this.canvas);
    this.canvas.addEventListener("pointermove", (event) => this.pointAt(event.offsetX));
    this.canvas.addEventListener("pointerleave", () => this.pointAt(null));
    this.canvas.addEventListener("keydown", (event) => this.walk(event));
  }

  update(history, limit = null) {
    this.limit = limit;
    this.points = history.map((moment, i) => ({
      at: moment.at,
      values: this.series.map((each) => each.value(history, i)),
    }));
    this.draw();
  }

  pointAt(x) {
    if (x === null || !this.points.length) this.hover = null;
    else {
      const at = this.timeAt(x);
      this.hover = this.points.reduce(
        (best, point, i) => (Math.abs(point.at - at) < Math.abs(this.points[best].at - at) ? i : best),
        0,
      );
    }
    this.draw();
  }

  walk(event) {
    const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (event.key === "Escape") this.hover = null;
    else if (step === undefined || !this.points.length) return;
    else {
      const last = this.points.length - 1;
      this.hover = Math.max(0, Math.min(last, (this.hover ?? last) + step));
    }
    event.preventDefault();
    this.draw();
  }

  draw() {
    this.tell();
    const { clientWidth: width, clientHeight: height } = this.canvas;
    if (!width || !height) return;
    const ratio = devicePixelRatio || 1;
    const [w, h] = [Math.round(width * ratio), Math.round(height * ratio)];
    if (this.canvas.width !== w || this.canvas.height !== h) {
      this.canvas.width = w;
      this.canvas.height = h;
    }
    this.size = { width, height };
    this.style = getComputedStyle(this.canvas);
    const context = this.canvas.getContext("2d");
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
    context.clearRect(0, 0, width, height);
    context.font = `11px ${this.style.fontFamily}`;
    this.drawGrid(context);
    this.drawLimit(context);
    this.series.forEach((each, i) => this.drawLine(context, each, i));
    this.drawHover(context);
  }

  // Say the latest values, or those that are pointed at, to eyes and to screen readers.
  tell() {
    const index = Math.min(this.hover ?? this.points.length - 1, this.points.length - 1);
    const shown = this.series.map((each, i) => {
      const value = index < 0 ? null : this.points[index].values[i];
      setText(this.values[i], each.show ? each.show(value) : this.show(value));
      return `${each.name} ${this.values[i].textContent}`;
    });
    setAttribute(this.canvas, "aria-label", `${this.title}: ${shown.join(", ")}`);
  }

  get end() {
    return this.points.at(-1)?.at ?? this.span;
  }

  get top() {
    if (this.most !== null) return this.most;
    let most = this.limit ?? 0;
    for (const { values } of this.points) for (const value of values) if (value > most) most = value;
    return niceTop(Math.max(most * 1.08, this.least) || 1);
  }

  color(name) {
    return this.style.getPropertyValue(name).trim();
  }

  x(at) {
    const inner = this.size.width - this.left - RIGHT;
    return this.left + inner * (1 - (this.end - at) / this.span);
  }

  timeAt(x) {
    const inner = this.size.width - this.left - RIGHT;
    return this.end - this.span * (1 - (x - this.left) / inner);
  }

  y(value) {
    const inner = this.size.height - TOP - BOTTOM;
    return TOP + inner * (1 - value / this.scale);
  }

  drawGrid(context) {
    const { width, height } = this.size;
    this.scale = this.top;
    const ticks = [0, 1, 2].map((i) => (this.scale * i) / 2);
    this.left = Math.ceil(Math.max(...ticks.map((tick) => context.measureText(this.show(tick)).width))) + GAP;
    context.strokeStyle = this.color("--grid");
    context.fillStyle = this.color("--faint");
    context.lineWidth = 1;
    context.textAlign = "right";
    context.textBaseline = "middle";
    for (const value of ticks) {
      const y = Math.round(this.y(value)) + 0.5;
      line(context, this.left, y, width - RIGHT, y);
      context.fillText(this.show(value), this.left - GAP, y);
    }
    context.textBaseline = "alphabetic";
    const minutes = this.span / 60;
    for (const share of [0, 0.5, 1]) {
      context.textAlign = ["left", "center", "right"][share * 2];
      const text = share === 1 ? "now" : `−${(minutes * (1 - share)).toFixed(0)} min`;
      context.fillText(text, this.left + (width - this.left - RIGHT) * share, height - 4);
    }
  }

  drawLimit(context) {
    if (this.limit === null) return;
    const y = Math.round(this.y(this.limit)) + 0.5;
    context.save();
    context.strokeStyle = context.fillStyle = this.color("--bad");
    context.setLineDash([4, 3]);
    line(context, this.left, y, this.size.width - RIGHT, y);
    context.textAlign = "right";
    context.textBaseline = y < TOP + 14 ? "top" : "bottom";
    context.fillText(`SLO ${this.show(this.limit)}`, this.size.width - RIGHT, y + (y < TOP + 14 ? 2 : -2));
    context.restore();
  }

  drawLine(context, each, i) {
    context.strokeStyle = this.color(`--series-${each.color}`);
    context.lineWidth = 1.5;
    context.lineJoin = "round";
    context.beginPath();
    let open = false;
    let before = null;
    for (const point of this.points) {
      const value = point.values[i];
      if (value === null || value === undefined) {
        open = false;
        continue;
      }
      const [x, y] = [this.x(point.at), this.y(Math.min(value, this.scale))];
      if (x >= this.left) {
        if (open && each.steps && before !== null) context.lineTo(x, before);
        if (open) context.lineTo(x, y);
        else context.moveTo(x, y);
        open = true;
      }
      before = y;
    }
    context.stroke();
  }

  drawHover(context) {
    const point = this.hover === null ? null : this.points[this.hover];
    if (!point) return;
    const x = Math.round(this.x(point.at)) + 0.5;
    context.strokeStyle = this.color("--faint");
    context.lineWidth = 1;
    line(context, x, TOP, x, this.size.height - BOTTOM);
    point.values.forEach((value, i) => {
      if (value === null || value === undefined) return;
      context.fillStyle = this.color(`--series-${this.series[i].color}`);
      context.beginPath();
      context.arc(x, this.y(Math.min(value, this.scale)), 3, 0, 2 * Math.PI);
      context.fill();
    });
    context.fillStyle = this.color("--faint");
    context.textAlign = x > this.size.width / 2 ? "right" : "left";
    const ago = `−${Math.round(this.end - point.at)} s`;
    context.fillText(ago, x + (x > this.size.width / 2 ? -5 : 5), TOP + 10);
  }
}

function line(context, x1, y1, x2, y2) {
  context.beginPath();
  context.moveTo(x1, y1);
  context.lineTo(x2, y2);
  context.stroke();
}

// The next number above that is 1, 2, 4, 6 or 8 times a power of ten: its half is round as well.
function niceTop(value) {
  const power = 10 ** Math.floor(Math.log10(value));
  for (const digit of [1, 2, 4, 6, 8, 10]) if (digit * power >= value) return digit * power;
  return 10 * power;
}
