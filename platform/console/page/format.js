// Numbers as people read them.

const whole = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
const UNITS = ["", "k", "M", "G", "T"];

export const NONE = "–";

export function count(value) {
  if (value == null) return NONE;
  if (Math.abs(value) < 100_000) return whole.format(value);
  return scaled(value, 1000, UNITS);
}

export function rate(value) {
  if (value == null) return NONE;
  return value > 0 && value < 10 && !Number.isInteger(value) ? value.toFixed(1) : count(value);
}

export function share(value, digits = 0) {
  return value == null ? NONE : `${(100 * value).toFixed(digits)}%`;
}

// A share that has all its nines shown, and is 100% only when it is.
export function promiseShare(value) {
  if (value == null) return NONE;
  return value === 1 ? "100%" : `${(Math.floor(value * 10_000) / 100).toFixed(value < 0.9 ? 1 : 2)}%`;
}

export function ms(value) {
  if (value == null) return NONE;
  if (value === 0) return "0 ms";
  if (value >= 9_950) return `${(value / 1000).toFixed(1)} s`;
  if (value >= 1000) return `${(value / 1000).toFixed(2)} s`;
  return value < 10 ? `${value.toFixed(1)} ms` : `${value.toFixed(0)} ms`;
}

export function bytes(value) {
  if (value == null) return NONE;
  return `${scaled(value, 1000, ["B", "kB", "MB", "GB", "TB"], " ")}`;
}

export function age(seconds) {
  if (seconds < 1) return "now";
  if (seconds < 90) return `${Math.floor(seconds)} s`;
  if (seconds < 5400) return `${Math.round(seconds / 60)} min`;
  return `${(seconds / 3600).toFixed(1)} h`;
}

function scaled(value, step, units, gap = "") {
  let rest = value;
  let unit = 0;
  while (Math.abs(rest) >= step && unit < units.length - 1) {
    rest /= step;
    unit += 1;
  }
  const digits = unit === 0 || Math.abs(rest) >= 100 ? 0 : 1;
  return `${rest.toFixed(digits)}${gap}${units[unit]}`;
}
