// Small curves of the last minutes, one above the other, on one time axis.

import { fitted, readColours } from "./candles.js";
import { el, put } from "./text.js";

export class Curve {
  // lines: [{ name, colour, dash, step, of(point) }]; limits: horizontal lines [{ at, colour }]
  constructor(parent, { title, lines, format, most = null, limits = [], log = false }) {
    Object.assign(this, { lines, format, most, limits, log });
    this.value = el("b");
    this.canvas = el("canvas", { role: "img", "aria-label": title });
    parent.append(el("div", { class: "curve" }, el("div", { class: "title" }, el("span", { text: title }), this.value), this.canvas));
    this.colours = readColours();
    this.points = [];
    new ResizeObserver(() => this.ask()).observe(this.canvas);
  }

  show(points) {
    this.points = points;
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

  paint() {
    const { context, width, height } = fitted(this.canvas);
    const newest = this.points.at(-1);
    const known = this.lines.map((line) => [line, newest ? line.of(newest) : null]);
    put(this.value, known.map(([line, value]) => (this.lines.length > 1 ? `${line.name} ${this.format(value)}` : this.format(value))).join(" · "));
    if (this.points.length < 2) return;
    const values = this.lines.flatMap((line) => this.points.map(line.of)).filter((value) => value !== null);
    let most = this.most ?? Math.max(1e-9, ...values) * 1.1;
    // A threshold is drawn once the curve comes near it; before, it would press the curve flat.
    const limits = this.limits.filter((limit) => limit.at !== null && limit.at < most * 4);
    most = Math.max(most, ...limits.map((limit) => limit.at * 1.05));
    const first = this.points[0].at, span = Math.max(1, newest.at - first);
    const x = (at) => 1 + ((at - first) / span) * (width - 2), y = (value) => height - 2 - (Math.min(value, most) / most) * (height - 5);
    context.strokeStyle = this.colours.grid;
    context.lineWidth = 1;
    context.strokeRect(0.5, 0.5, width - 1, height - 1);
    for (const limit of limits) {
      context.strokeStyle = this.colours[limit.colour];
      context.setLineDash([6, 3]);
      context.beginPath();
      context.moveTo(0, y(limit.at));
      context.lineTo(width, y(limit.at));
      context.stroke();
    }
    for (const line of this.lines) this.paintLine(context, line, x, y);
  }

  paintLine(context, line, x, y) {
    context.strokeStyle = this.colours[line.colour];
    context.lineWidth = 1.6;
    context.setLineDash(line.dash ?? []);
    context.beginPath();
    let last = null;
    for (const point of this.points) {
      const value = line.of(point);
      if (value === null) {
        last = null; // not known then: a hole, not a zero
        continue;
      }
      if (last === null) context.moveTo(x(point.at), y(value));
      else {
        if (line.step) context.lineTo(x(point.at), y(last));
        context.lineTo(x(point.at), y(value));
      }
      last = value;
    }
    context.stroke();
    context.setLineDash([]);
  }
}
