// Candlesticks on a canvas. What a bar is shows twice, by shape and by colour:
//   final        filled body
//   closed       empty body, solid outline: a late tick can still revise it
//   provisional  empty body, dashed outline
//   revised      a diamond above, and its predecessor as a dotted ghost behind it
//   up or down   blue or vermilion; a tick on the left at the open, on the right at the close

import { clock, price } from "./text.js";

export const PROVISIONAL = 0, CLOSED = 1, FINAL = 2;
const FLASH_MS = 1600;
const MIN_SHOWN = 12, MAX_SHOWN = 400;

export function readColours() {
  const style = getComputedStyle(document.documentElement);
  const names = ["panel", "line", "text", "muted", "up", "down", "grid", "focus", "late", "good", "warn", "bad", "soft"];
  return Object.fromEntries(names.map((name) => [name, style.getPropertyValue(`--${name}`).trim()]));
}

// Sets the canvas to the size it is shown at, in device pixels, and gives a context that counts in CSS pixels.
export function fitted(canvas) {
  const box = canvas.getBoundingClientRect();
  const ratio = window.devicePixelRatio || 1;
  const width = Math.max(1, Math.round(box.width * ratio)), height = Math.max(1, Math.round(box.height * ratio));
  if (canvas.width !== width || canvas.height !== height) Object.assign(canvas, { width, height });
  const context = canvas.getContext("2d");
  context.setTransform(ratio, 0, 0, ratio, 0, 0);
  context.clearRect(0, 0, box.width, box.height);
  return { context, width: box.width, height: box.height };
}

// Merges bars into larger windows. A larger bar is as certain as the least certain of its parts, and provisional while
// parts of it are still to come.
export function merged(bars, size) {
  const out = [];
  const newest = bars.at(-1)?.end ?? 0;
  let big;
  for (const bar of bars) {
    if (bar.open === null) continue;
    const start = Math.floor(bar.start / size) * size;
    if (big === undefined || big.start !== start) {
      big = { ...bar, start, end: start + size, parts: 0, revisedParts: 0, value: 0, volume: 0, count: 0, before: null, flash: 0, status: FINAL, trigger: "merged" };
      out.push(big);
    }
    big.high = Math.max(big.high, bar.high);
    big.low = Math.min(big.low, bar.low);
    big.close = bar.close;
    big.count += bar.count;
    big.volume += bar.volume ?? 0;
    big.value += (bar.vwap ?? bar.close) * (bar.volume ?? 0);
    big.vwap = big.volume ? Math.min(Math.max(big.value / big.volume, big.low), big.high) : null;
    big.last = Math.max(big.last, bar.last);
    big.first = Math.min(big.first, bar.first);
    big.status = Math.min(big.status, bar.end > newest ? PROVISIONAL : bar.status);
    big.rev = Math.max(big.rev, bar.rev);
    big.revisedParts += bar.rev > 0;
    big.flash = Math.max(big.flash, bar.flash);
    big.parts += 1;
    big.newestPart = bar.start;
    if (big.end > newest) big.status = PROVISIONAL;
  }
  return out;
}

export class Candles {
  constructor(canvas, { onChoose, onPoint }) {
    this.canvas = canvas;
    this.onChoose = onChoose;
    this.onPoint = onPoint;
    this.bars = [];
    this.count = 60;
    this.back = 0; // bars between the newest and the right edge
    this.chosen = null; // start of the chosen bar
    this.pointed = null;
    this.colours = readColours();
    this.dirty = false;
    this.painted = 0;
    new ResizeObserver(() => this.ask()).observe(canvas);
    this.listen();
  }

  show(bars) {
    // Who looks back keeps looking at the same bars when newer ones come.
    if (this.back > 0) this.back = Math.max(0, this.back + bars.length - this.bars.length);
    this.bars = bars;
    this.ask();
  }

  reset() {
    Object.assign(this, { bars: [], back: 0, chosen: null, pointed: null });
    this.ask();
  }

  recolour() {
    this.colours = readColours();
    this.ask();
  }

  ask() {
    if (this.dirty) return;
    this.dirty = true;
    requestAnimationFrame(() => {
      this.dirty = false;
      this.paint();
    });
  }

  get visible() {
    const end = Math.max(0, this.bars.length - this.back);
    return this.bars.slice(Math.max(0, end - this.count), end);
  }

  // -- hands ----------------------------------------------------------------------------------------------------------

  listen() {
    const at = (event) => this.barAt(event.clientX - this.canvas.getBoundingClientRect().left);
    let held = null;
    this.canvas.addEventListener("pointerdown", (event) => {
      held = { x: event.clientX, back: this.back, moved: false };
      this.canvas.setPointerCapture(event.pointerId);
    });
    this.canvas.addEventListener("pointermove", (event) => {
      if (held) {
        const shift = Math.round((event.clientX - held.x) / this.step);
        held.moved ||= shift !== 0;
        this.slide(held.back + shift);
      }
      this.point(at(event)?.start ?? null);
    });
    this.canvas.addEventListener("pointerup", (event) => {
      if (held && !held.moved) {
        const bar = at(event);
        if (bar) this.choose(bar.start, true);
      }
      held = null;
    });
    this.canvas.addEventListener("pointerleave", () => this.point(null));
    this.canvas.addEventListener("wheel", (event) => {
      event.preventDefault();
      if (Math.abs(event.deltaX) > Math.abs(event.deltaY)) this.slide(this.back - Math.sign(event.deltaX) * 2);
      else this.zoom(event.deltaY > 0 ? 1.15 : 1 / 1.15);
    }, { passive: false });
    this.canvas.addEventListener("keydown", (event) => this.key(event));
  }

  key(event) {
    const index = this.bars.findIndex((bar) => bar.start === this.chosen);
    const go = (to) => {
      const bar = this.bars[Math.max(0, Math.min(this.bars.length - 1, to))];
      if (bar) this.choose(bar.start, false);
    };
    const actions = {
      ArrowLeft: () => go(index < 0 ? this.bars.length - 1 : index - 1),
      ArrowRight: () => go(index < 0 ? this.bars.length - 1 : index + 1),
      PageUp: () => go((index < 0 ? this.bars.length : index) - 20),
      PageDown: () => go((index < 0 ? this.bars.length : index) + 20),
      Home: () => go(0),
      End: () => go(this.bars.length - 1),
      Enter: () => this.chosen !== null && this.choose(this.chosen, true),
      Escape: () => this.choose(null, false),
      "+": () => this.zoom(1 / 1.25),
      "-": () => this.zoom(1.25),
    };
    if (event.ctrlKey || event.metaKey || event.altKey || !(event.key in actions)) return;
    event.preventDefault();
    actions[event.key]();
  }

  zoom(factor) {
    this.count = Math.round(Math.max(MIN_SHOWN, Math.min(MAX_SHOWN, this.count * factor)));
    this.ask();
  }

  slide(back) {
    this.back = Math.max(0, Math.min(Math.max(0, this.bars.length - MIN_SHOWN), back));
    this.ask();
  }

  choose(start, explain) {
    this.chosen = start;
    const index = this.bars.findIndex((bar) => bar.start === start);
    if (index >= 0) {
      const fromEnd = this.bars.length - 1 - index;
      if (fromEnd < this.back) this.back = fromEnd;
      else if (fromEnd >= this.back + this.count) this.back = fromEnd - this.count + 1;
    }
    this.ask();
    this.onChoose(this.bars[index] ?? null, explain);
  }

  point(start) {
    if (this.pointed === start) return;
    this.pointed = start;
    this.onPoint(this.bars.find((bar) => bar.start === start) ?? null);
    this.ask();
  }

  barAt(x) {
    const index = Math.floor((x - (this.left ?? 0)) / this.step);
    return this.visible[index];
  }

  // -- paint ----------------------------------------------------------------------------------------------------------

  paint() {
    const { context, width, height } = fitted(this.canvas);
    const bars = this.visible;
    this.painted += 1;
    const font = Math.max(10, parseFloat(getComputedStyle(this.canvas).fontSize) * 0.8);
    context.font = `${font}px system-ui, sans-serif`;
    if (bars.length === 0) return;
    const axis = this.axisWidth(context, bars), foot = font * 1.7, top = font * 1.2;
    const volumeHeight = (height - foot) * 0.16;
    const plot = { left: 4, top, right: width - axis, bottom: height - foot - volumeHeight - 6 };
    this.step = (plot.right - plot.left) / Math.max(this.count, 1);
    this.left = plot.right - this.step * bars.length; // the newest bar stands at the right edge
    const ghosts = bars.flatMap((bar) => (bar.before ? [bar.before.low, bar.before.high] : []));
    const low = Math.min(...bars.map((bar) => bar.low), ...ghosts), high = Math.max(...bars.map((bar) => bar.high), ...ghosts);
    const room = (high - low) * 0.06 || Math.abs(high) * 0.001 || 1;
    const scale = (plot.bottom - plot.top) / (high - low + 2 * room);
    const y = (value) => plot.bottom - (value - low + room) * scale;
    this.paintAxes(context, bars, { plot, y, low, high, font, width, height, foot });
    this.paintVolume(context, bars, { base: height - foot, volumeHeight });
    const now = performance.now();
    let moving = false;
    bars.forEach((bar, index) => {
      const x = this.left + (index + 0.5) * this.step;
      const previous = bars[index - 1];
      if (previous && bar.start > previous.end) this.paintGap(context, x - this.step / 2, plot);
      if (bar.start === this.chosen || bar.start === this.pointed) this.paintChosen(context, x, plot, bar.start === this.chosen);
      moving = this.paintBar(context, bar, x, y, now) || moving;
    });
    this.paintLast(context, bars.at(-1), y, plot, font, axis);
    if (moving) this.ask();
  }

  axisWidth(context, bars) {
    return Math.ceil(Math.max(...[bars[0], bars.at(-1)].map((bar) => context.measureText(price(bar.high)).width))) + 16;
  }

  paintAxes(context, bars, { plot, y, low, high, font, height, foot }) {
    const { grid, muted } = this.colours;
    context.lineWidth = 1;
    context.textBaseline = "middle";
    context.textAlign = "left";
    const lines = Math.max(2, Math.floor((plot.bottom - plot.top) / (font * 4)));
    const rough = (high - low || Math.abs(high) * 0.002 || 1) / lines;
    const power = 10 ** Math.floor(Math.log10(rough));
    const every = [1, 2, 5, 10].map((factor) => factor * power).find((step) => step >= rough);
    for (let value = Math.ceil(low / every) * every; value <= high + every / 2; value += every) {
      const at = Math.round(y(value)) + 0.5;
      if (at < plot.top - font || at > plot.bottom + font / 2) continue;
      context.strokeStyle = grid;
      context.beginPath();
      context.moveTo(plot.left, at);
      context.lineTo(plot.right, at);
      context.stroke();
      if (Math.abs(at - y(bars.at(-1).close)) < font * 1.2) continue; // the last price stands there
      context.fillStyle = muted;
      context.fillText(price(value), plot.right + 6, at);
    }
    context.textAlign = "center";
    const wide = context.measureText("00:00:00").width * 1.6;
    const skip = Math.max(1, Math.ceil(wide / this.step));
    const offset = (this.bars.length - this.back - bars.length) % skip;
    bars.forEach((bar, index) => {
      if ((index + offset) % skip !== 0) return;
      const x = this.left + (index + 0.5) * this.step;
      if (x < wide / 2 || x > plot.right) return;
      context.fillStyle = muted;
      context.fillText(clock(bar.start), x, height - foot / 2);
    });
  }

  paintVolume(context, bars, { base, volumeHeight }) {
    const most = Math.max(...bars.map((bar) => bar.volume ?? 0)) || 1;
    const wide = Math.max(1, this.step * 0.6);
    context.globalAlpha = 0.35;
    bars.forEach((bar, index) => {
      const tall = ((bar.volume ?? 0) / most) * volumeHeight;
      context.fillStyle = bar.close >= bar.open ? this.colours.up : this.colours.down;
      context.fillRect(this.left + (index + 0.5) * this.step - wide / 2, base - tall, wide, tall);
    });
    context.globalAlpha = 1;
  }

  paintGap(context, x, plot) {
    context.strokeStyle = this.colours.line;
    context.lineWidth = 1;
    context.setLineDash([1, 4]);
    context.beginPath();
    context.moveTo(Math.round(x) + 0.5, plot.top);
    context.lineTo(Math.round(x) + 0.5, plot.bottom);
    context.stroke();
    context.setLineDash([]);
  }

  paintChosen(context, x, plot, chosen) {
    context.globalAlpha = chosen ? 0.22 : 0.1;
    context.fillStyle = this.colours.focus;
    context.fillRect(x - this.step / 2, plot.top - 6, this.step, plot.bottom - plot.top + 12);
    context.globalAlpha = 1;
  }

  // Returns whether it is still moving.
  paintBar(context, bar, x, y, now) {
    const colour = bar.close >= bar.open ? this.colours.up : this.colours.down;
    const wide = Math.max(1, Math.min(this.step * 0.66, 26));
    if (bar.before) this.paintGhost(context, bar.before, x, y, wide);
    const since = bar.flash ? now - bar.flash : FLASH_MS;
    if (since < FLASH_MS) this.paintFlash(context, bar, x, y, wide, since / FLASH_MS);
    drawCandle(context, { x, wide, high: y(bar.high), low: y(bar.low), open: y(bar.open), close: y(bar.close), colour, back: this.colours.panel, status: bar.status });
    if (bar.rev > 0) drawDiamond(context, x, y(bar.high) - Math.max(5, wide * 0.5), Math.max(3, Math.min(5, wide * 0.4)), this.colours.late);
    return since < FLASH_MS;
  }

  paintGhost(context, before, x, y, wide) {
    context.strokeStyle = this.colours.late;
    context.lineWidth = 1;
    context.setLineDash([1.5, 2.5]);
    const top = Math.min(y(before.open), y(before.close)), tall = Math.max(1, Math.abs(y(before.open) - y(before.close)));
    context.strokeRect(x - wide * 0.75, top, wide * 1.5, tall);
    context.beginPath();
    context.moveTo(x - wide * 0.75, y(before.high));
    context.lineTo(x + wide * 0.75, y(before.high));
    context.moveTo(x - wide * 0.75, y(before.low));
    context.lineTo(x + wide * 0.75, y(before.low));
    context.stroke();
    context.setLineDash([]);
  }

  paintFlash(context, bar, x, y, wide, done) {
    context.globalAlpha = 1 - done;
    context.strokeStyle = this.colours.late;
    context.lineWidth = 2;
    const grow = 3 + 12 * done;
    context.strokeRect(x - wide / 2 - grow, y(bar.high) - grow, wide + 2 * grow, y(bar.low) - y(bar.high) + 2 * grow);
    context.globalAlpha = 1;
  }

  paintLast(context, bar, y, plot, font, axis) {
    const at = Math.round(y(bar.close)) + 0.5;
    const colour = bar.close >= bar.open ? this.colours.up : this.colours.down;
    context.strokeStyle = colour;
    context.lineWidth = 1;
    context.setLineDash([2, 3]);
    context.beginPath();
    context.moveTo(plot.left, at);
    context.lineTo(plot.right, at);
    context.stroke();
    context.setLineDash([]);
    context.fillStyle = colour;
    context.fillRect(plot.right + 2, at - font * 0.75, axis - 2, font * 1.5);
    context.fillStyle = this.colours.panel;
    context.textAlign = "left";
    context.textBaseline = "middle";
    context.fillText(price(bar.close), plot.right + 6, at);
  }
}

export function drawCandle(context, { x, wide, high, low, open, close, colour, back, status }) {
  const top = Math.min(open, close), tall = Math.max(1, Math.abs(open - close));
  context.strokeStyle = context.fillStyle = colour;
  context.lineWidth = wide >= 6 ? 1.5 : 1;
  context.beginPath();
  context.moveTo(x, high);
  context.lineTo(x, low);
  context.stroke();
  if (status === FINAL) context.fillRect(x - wide / 2, top, wide, tall);
  else {
    context.fillStyle = back;
    context.fillRect(x - wide / 2, top, wide, tall);
    if (status === PROVISIONAL) context.setLineDash(wide >= 6 ? [3, 2] : [2, 1.5]);
    context.strokeRect(x - wide / 2, top, wide, tall);
    context.setLineDash([]);
  }
  if (wide >= 7) {
    const notch = wide * 0.25;
    context.beginPath();
    context.moveTo(x - wide / 2 - notch, open);
    context.lineTo(x - wide / 2, open);
    context.moveTo(x + wide / 2, close);
    context.lineTo(x + wide / 2 + notch, close);
    context.stroke();
  }
}

export function drawDiamond(context, x, y, size, colour) {
  context.fillStyle = colour;
  context.beginPath();
  context.moveTo(x, y - size);
  context.lineTo(x + size, y);
  context.lineTo(x, y + size);
  context.lineTo(x - size, y);
  context.fill();
}
