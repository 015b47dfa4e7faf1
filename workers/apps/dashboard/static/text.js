// Text that others wrote, and numbers, as a person reads them. Nothing here or elsewhere makes markup of text: elements
// are made by name, and text goes in as text.

const INVISIBLE = /[\p{C}\p{Zl}\p{Zp}]/gu;
const MAX_SHOWN = 300;

// Control, bidirectional and other invisible characters are spelled out: a symbol must not rearrange what is beside it.
export function shown(text, limit = MAX_SHOWN) {
  const whole = String(text ?? "");
  const cut = whole.length > limit ? `${whole.slice(0, limit)}…` : whole;
  return cut.replace(INVISIBLE, (char) => `\\u{${char.codePointAt(0).toString(16)}}`);
}

export function el(name, options = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(options)) {
    if (key === "text") made.textContent = value;
    else if (key === "class") made.className = value;
    else made.setAttribute(key, value);
  }
  made.append(...children);
  return made;
}

// Writing text that is there already would make the browser lay it out again.
export function put(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

export function whole(number) {
  return number === null || number === undefined ? "–" : Math.round(number).toLocaleString("en-US");
}

export function short(number) {
  if (number === null || number === undefined) return "–";
  const size = Math.abs(number);
  if (size >= 1e9) return `${(number / 1e9).toFixed(2)}G`;
  if (size >= 1e6) return `${(number / 1e6).toFixed(2)}M`;
  if (size >= 1e5) return `${(number / 1e3).toFixed(0)}k`;
  if (size >= 1e4) return `${(number / 1e3).toFixed(1)}k`;
  return size >= 100 || Number.isInteger(number) ? whole(number) : number.toFixed(1);
}

export function price(number) {
  if (number === null || number === undefined) return "–";
  const size = Math.abs(number);
  const digits = size >= 10 ? 2 : size >= 1 ? 3 : 5;
  return size >= 1e9 ? number.toExponential(4) : number.toLocaleString("en-US", { minimumFractionDigits: digits > 2 ? 0 : 2, maximumFractionDigits: digits });
}

export function seconds(value) {
  if (value === null || value === undefined) return "–";
  const size = Math.abs(value);
  if (size < 10) return `${value.toFixed(1)} s`;
  if (size < 120) return `${value.toFixed(0)} s`;
  if (size < 7200) return `${(value / 60).toFixed(0)} min`;
  if (size < 172800) return `${(value / 3600).toFixed(1)} h`;
  return size < 1e8 ? `${(value / 86400).toFixed(0)} d` : `${(value / 31557600).toFixed(1)} y`;
}

function two(number) {
  return String(number).padStart(2, "0");
}

// Times of day are UTC, as in the frames.
export function clock(ms, withTenths = false) {
  const at = new Date(ms);
  if (Number.isNaN(at.getTime())) return `${ms} ms`;
  const tenths = withTenths ? `.${Math.floor(at.getUTCMilliseconds() / 100)}` : "";
  return `${two(at.getUTCHours())}:${two(at.getUTCMinutes())}:${two(at.getUTCSeconds())}${tenths}`;
}

export function instant(ms) {
  const at = new Date(ms);
  if (Number.isNaN(at.getTime())) return `${ms} ms`;
  return `${at.getUTCFullYear()}-${two(at.getUTCMonth() + 1)}-${two(at.getUTCDate())} ${clock(ms)}`;
}

export function length(ms) {
  if (ms % 3600000 === 0) return `${ms / 3600000}h`;
  if (ms % 60000 === 0) return `${ms / 60000}m`;
  return ms % 1000 === 0 ? `${ms / 1000}s` : `${ms}ms`;
}

const MAX_TOLD_TICKS = 100;
const OF_DAY = /^\d{4}-\d\d-\d\dT(.*)Z$/;
const ofDay = (text) => shown(text, 40).replace(OF_DAY, "$1");

// What `workers explain` says, in lines: the verdict first, then frames, then ticks, those that did not join before
// those that did. Any part may be missing in another version.
export function explanation(told) {
  const lines = [told.matches === false ? "✗ NOT as recomputed from the ticks" : "✓ as recomputed from the ticks"];
  for (const window of told.windows ?? []) {
    const counts = Object.entries(window.counts ?? {}).map(([fate, number]) => `${whole(number)} ${shown(fate, 40)}`);
    lines.push("", `window ${ofDay(window.start)} – ${ofDay(window.end)}, partition ${shown(window.partition, 20)}: ${shown(window.state, 40)}; ${counts.join(", ") || "no ticks"}`);
    const frames = window.frames ?? [], provisional = frames.filter((frame) => frame.verdict === "provisional").length;
    if (provisional) lines.push(`${whole(provisional)} provisional frame${provisional === 1 ? "" : "s"}, not compared: the wall clock brings them out`);
    for (const frame of frames) {
      if (frame.verdict === "provisional") continue;
      lines.push(`frame rev ${shown(frame.rev, 20)} ${shown(frame.status, 20)} (${shown(frame.trigger, 20)}): ${shown(frame.verdict, 40)}`);
      for (const each of frame.differences ?? []) lines.push(`  ${shown(each.field, 80)} is ${shown(JSON.stringify(each.found), 200)}, expected ${shown(JSON.stringify(each.expected), 200)}`);
    }
    const ticks = window.ticks ?? [], joined = (tick) => tick.fate === "joined";
    const ordered = [...ticks.filter((tick) => !joined(tick)), ...ticks.filter(joined)];
    for (const tick of ordered.slice(0, MAX_TOLD_TICKS)) {
      const late = typeof tick.late_by_ns === "number" ? ` late by ${seconds(tick.late_by_ns / 1e9)}` : "";
      lines.push(`${shown(tick.fate, 20)} ${ofDay(tick.ts ?? "no time")} ${shown(tick.price ?? "?", 40)} × ${shown(tick.size ?? "?", 40)} offset ${shown(tick.offset, 20)}${late}${tick.detail ? `: ${shown(tick.detail)}` : ""}`);
    }
    const all = Object.values(window.counts ?? {}).reduce((sum, number) => sum + number, 0), told = Math.min(ordered.length, MAX_TOLD_TICKS);
    if (all > told) lines.push(`… and ${whole(all - told)} more`);
  }
  for (const note of told.notes ?? []) lines.push("", shown(note, 1000));
  return lines;
}
