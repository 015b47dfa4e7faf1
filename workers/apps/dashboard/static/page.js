// The page: takes messages from the link, keeps what it was told, and puts it where it belongs.

import { CLOSED, Candles, FINAL, PROVISIONAL, drawCandle, drawDiamond, fitted, merged, readColours } from "./candles.js";
import { Curve } from "./curves.js";
import { Link } from "./link.js";
import { clock, el, explanation, instant, length, price, put, seconds, short, shown, whole } from "./text.js";

const BAR = ["start", "end", "rev", "status", "trigger", "count", "first", "last", "open", "high", "low", "close", "volume", "vwap", "before"];
const POINT = ["at", "lag", "waiting", "eventLag", "level", "scale", "delay", "ticks", "committed", "frames"];
const STATUS_NAMES = ["provisional", "closed", "final"];
const MAX_BARS = 2000, MAX_POINTS = 900, MAX_EVENTS = 200;
const QUIET_MS = 20000;
const LARGER = [1e3, 5e3, 15e3, 3e4, 6e4, 3e5, 9e5, 36e5, 144e5, 864e5];

const byId = (id) => document.getElementById(id);
const hash = new URLSearchParams(location.hash.slice(1));
const state = {
  hello: null,
  symbol: hash.get("symbol"),
  size: Number(hash.get("size")) || 0,
  search: "",
  sort: hash.get("sort") === "late" ? "late" : "active",
  kind: "all",
  reason: "",
  text: "",
  bars: new Map(),
  points: [],
  owners: new Map(),
  offset: 0, // server's clock - ours, in ms
  sources: {},
  sum: null,
  connection: "",
  shownBar: null,
  explaining: null,
};

// -- asking -----------------------------------------------------------------------------------------------------------

let explain = null;
const link = new Link({
  onMessage: take,
  onState: connection,
  wish() {
    const asked = explain;
    explain = null;
    return { symbol: state.symbol, search: state.search, sort: state.sort, kind: state.kind, reason: state.reason, text: state.text, explain: asked };
  },
});

function remember() {
  const parts = new URLSearchParams();
  if (state.symbol !== null) parts.set("symbol", state.symbol);
  if (state.size) parts.set("size", state.size);
  if (state.sort !== "active") parts.set("sort", state.sort);
  history.replaceState(null, "", `#${parts}`);
}

function later(action, ms) {
  let timer;
  return () => {
    clearTimeout(timer);
    timer = setTimeout(action, ms);
  };
}
const askSoon = later(() => link.send(), 60);

// -- taking -----------------------------------------------------------------------------------------------------------

function take(message) {
  state.offset = message.t - Date.now();
  if (message.hello) takeHello(message.hello);
  if (message.bars) takeBars(message.bars);
  if (message.points) takePoints(message.points);
  if (message.symbols) takeSymbols(message.symbols);
  if (message.group) takeGroup(message.group);
  if (message.events) takeEvents(message.events);
  if (message.sum) takeSum(message.sum);
  if (message.ledger) takeLedger(message.ledger);
  if (message.sources) state.sources = message.sources;
  if (message.explained) takeExplained(message.explained);
  if (message.points || message.sources || message.hello) {
    tiles();
    notice();
  }
}

function takeHello(hello) {
  // Another version serves another page.
  if (state.hello && state.hello.version !== hello.version) location.reload();
  state.hello = hello;
  state.points = [];
  byId("events").replaceChildren(el("li", { class: "muted none", text: "None since the dashboard was started." }));
  put(byId("application"), shown(hello.application, 80));
  put(byId("about"), `${hello.window} windows of ${shown(hello.topics.ticks, 60)}, lag ${hello.lag}, allowed lateness ${hello.allowed_lateness}`);
  document.title = `${shown(hello.application, 60)} – workers dashboard`;
  sizes();
  for (const curve of curves) curve.limits = curve.limitsOf?.(hello) ?? [];
}

function takeBars({ symbol, reset, rows }) {
  if (symbol !== state.symbol) return;
  if (reset) state.bars = new Map();
  for (const row of rows) {
    const bar = Object.fromEntries(BAR.map((name, index) => [name, row[index]]));
    const known = state.bars.get(bar.start);
    if (bar.before) bar.before = { rev: bar.before[0], open: bar.before[1], high: bar.before[2], low: bar.before[3], close: bar.before[4] };
    bar.flash = known && bar.rev > known.rev && known.status !== PROVISIONAL ? performance.now() : (known?.flash ?? 0);
    state.bars.set(bar.start, bar);
  }
  drawBars();
}

function drawBars() {
  const sorted = [...state.bars.values()].sort((one, other) => one.start - other.start);
  if (sorted.length > MAX_BARS) for (const old of sorted.splice(0, sorted.length - MAX_BARS)) state.bars.delete(old.start);
  const priced = sorted.filter((bar) => bar.open !== null && bar.high !== null && bar.low !== null && bar.close !== null);
  const base = state.hello?.window_ms ?? 0;
  const bars = state.size > base && state.hello?.mergeable ? merged(priced, state.size) : priced;
  candles.show(bars);
  const empty = byId("chart-empty");
  empty.hidden = bars.length > 0;
  if (bars.length === 0)
    put(empty, state.symbol === null ? "Waiting for the first frame." : sorted.length ? "These frames carry no open, high, low and close." : "No bars of this symbol are held here yet; they come with its next frame.");
  if (state.shownBar !== null) {
    const bar = bars.find((each) => each.start === state.shownBar);
    if (bar) facts(bar);
  }
  if (candles.pointed === null) readout(bars.at(-1) ?? null);
}

function takePoints({ reset, rows }) {
  if (reset) state.points = [];
  for (const row of rows) state.points.push(Object.fromEntries(POINT.map((name, index) => [name, row[index]])));
  state.points.splice(0, state.points.length - MAX_POINTS);
  for (const curve of curves) curve.show(state.points);
}

// -- symbols ----------------------------------------------------------------------------------------------------------

const symbolRows = [];

function takeSymbols({ search, sort, known, matching, rows }) {
  if (search !== state.search || sort !== state.sort) return; // the answer to an earlier question
  put(byId("known"), search ? `${whole(matching)} of ${whole(known)}` : whole(known));
  const list = byId("symbol-list");
  while (symbolRows.length < rows.length) symbolRows.push(symbolRow(list));
  symbolRows.forEach((row, index) => {
    const entry = rows[index];
    row.button.hidden = entry === undefined;
    if (entry === undefined) return;
    const [symbol, ticks, perSecond, late, revisions, close] = entry;
    row.symbol = symbol;
    put(row.name, shown(symbol, 60) || "(empty)");
    put(row.close, price(close));
    put(row.rate, perSecond >= 10 ? whole(perSecond) : perSecond.toFixed(1));
    put(row.late, short(late));
    row.late.className = late ? "some-late" : "muted";
    row.button.title = `${shown(symbol, 300)}\n${whole(ticks)} ticks, ${whole(late)} late, ${whole(revisions)} revisions`;
    row.button.setAttribute("aria-current", String(symbol === state.symbol));
  });
  if (rows.length === 0) {
    if (!list.querySelector(".empty")) list.append(el("p", { class: "empty" }));
    put(list.querySelector(".empty"), search ? "No symbol contains that." : "No symbol yet.");
  } else list.querySelector(".empty")?.remove();
  if (state.symbol === null && rows.length) choose(rows[0][0]);
}

function symbolRow(list) {
  const parts = { name: el("bdi"), close: el("span"), rate: el("span"), late: el("span") };
  const button = el("button", { type: "button", class: "row" }, parts.name, parts.close, parts.rate, parts.late);
  const row = { ...parts, button, symbol: null };
  button.addEventListener("click", () => choose(row.symbol));
  list.append(button);
  return row;
}

function choose(symbol) {
  if (symbol === null || (symbol === state.symbol && state.bars.size)) return;
  state.symbol = symbol;
  state.bars = new Map();
  candles.reset();
  chosen(null, false);
  put(byId("symbol"), shown(symbol, 80) || "(empty)");
  for (const row of symbolRows) row.button.setAttribute("aria-current", String(row.symbol === symbol));
  drawBars();
  remember();
  link.send();
}

byId("search").addEventListener("input", (event) => {
  state.search = event.target.value;
  askSoon();
});
byId("search").addEventListener("keydown", (event) => {
  if (event.key === "Enter" || event.key === "ArrowDown") {
    const first = symbolRows.find((row) => !row.button.hidden);
    if (event.key === "Enter") choose(first?.symbol ?? null);
    else first?.button.focus();
    event.preventDefault();
  }
});
byId("symbol-list").addEventListener("keydown", (event) => {
  const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
  if (!step) return;
  event.preventDefault();
  const shownRows = symbolRows.filter((row) => !row.button.hidden);
  const next = shownRows.findIndex((row) => row.button === document.activeElement) + step;
  if (next < 0) byId("search").focus();
  else shownRows[Math.min(next, shownRows.length - 1)]?.button.focus();
});
document.addEventListener("keydown", (event) => {
  if (event.key !== "/" || event.ctrlKey || event.metaKey || event.target.matches("input, select")) return;
  event.preventDefault();
  byId("search").focus();
});

function pressed(attribute, name, onPress) {
  const buttons = [...document.querySelectorAll(`[data-${attribute}]`)];
  const mark = (value) => buttons.forEach((button) => button.setAttribute("aria-pressed", String(button.dataset[attribute] === value)));
  mark(state[name]);
  for (const button of buttons)
    button.addEventListener("click", () => {
      state[name] = button.dataset[attribute];
      mark(state[name]);
      onPress?.();
      link.send();
    });
}
pressed("sort", "sort", remember);

// -- the chart --------------------------------------------------------------------------------------------------------

const candles = new Candles(byId("candles"), { onChoose: chosen, onPoint: (bar) => readout(bar ?? candles.bars.at(-1) ?? null) });

function sizes() {
  const base = state.hello.window_ms;
  const offered = [base];
  if (state.hello.mergeable) for (const size of LARGER) if (offered.length < 4 && size % base === 0 && size >= 3 * offered.at(-1)) offered.push(size);
  if (!offered.includes(state.size)) state.size = base;
  if (base === 0) return byId("sizes").replaceChildren(); // windows of any length: there is nothing to choose
  byId("sizes").replaceChildren(
    ...offered.map((size) => {
      const button = el("button", { type: "button", text: length(size), "aria-pressed": String(size === state.size), "data-size": String(size) });
      button.addEventListener("click", () => {
        state.size = size;
        for (const each of byId("sizes").children) each.setAttribute("aria-pressed", String(Number(each.dataset.size) === size));
        candles.reset();
        chosen(null, false);
        drawBars();
        remember();
      });
      return button;
    }),
  );
}

function words(bar) {
  const revised = bar.rev > 0 ? (bar.parts > 1 ? `, ${bar.revisedParts} of its windows revised` : `, revised (rev ${bar.rev})`) : "";
  return `${STATUS_NAMES[bar.status]}${revised}`;
}

function readout(bar) {
  put(byId("readout"), bar === null ? "" : `${clock(bar.start)}  o ${price(bar.open)}  h ${price(bar.high)}  l ${price(bar.low)}  c ${price(bar.close)}  v ${short(bar.volume)}  ${words(bar)}`);
}

function chosen(bar, wantsExplanation) {
  const before = state.shownBar;
  state.shownBar = bar?.start ?? null;
  const says = byId("explained");
  if (bar === null) {
    byId("facts").replaceChildren();
    put(byId("detail-when"), "");
    put(says, "Choose a bar (click, or arrow keys in the chart) to see its facts and what workers explain says.");
    return;
  }
  facts(bar);
  if (bar.start !== before) put(says, "Enter, or a click on the bar, asks workers explain.");
  if (!wantsExplanation) return;
  if (!state.hello?.explain) {
    put(says, "This installation has no workers explain.");
    return;
  }
  const start = bar.newestPart ?? bar.start;
  state.explaining = `${state.symbol} ${start}`;
  put(says, bar.parts > 1 ? `Asking workers explain about its newest window, ${clock(start)}…` : "Asking workers explain…");
  explain = { symbol: state.symbol, start };
  link.send();
}

function facts(bar) {
  put(byId("detail-when"), `${instant(bar.start)} – ${clock(bar.end)} UTC`);
  const before = bar.before ? `o ${price(bar.before.open)} h ${price(bar.before.high)} l ${price(bar.before.low)} c ${price(bar.before.close)}` : null;
  const wide = [["status", words(bar)], ...(before ? [[`was (rev ${bar.before.rev})`, before]] : [])];
  const entries = [
    ...wide, ["open", price(bar.open)], ["high", price(bar.high)], ["low", price(bar.low)], ["close", price(bar.close)],
    ["volume", short(bar.volume)], ["vwap", price(bar.vwap)], ["ticks", whole(bar.count)], bar.parts > 1 ? ["windows", whole(bar.parts)] : ["trigger", shown(bar.trigger, 40)],
    ["first", `+${seconds((bar.first - bar.start) / 1000)}`], ["last", `+${seconds((bar.last - bar.start) / 1000)}`],
  ];
  const list = byId("facts");
  while (list.children.length > entries.length) list.lastChild.remove();
  while (list.children.length < entries.length) list.append(el("div", {}, el("dt"), el("dd")));
  entries.forEach(([name, text], index) => {
    const row = list.children[index];
    row.className = index < wide.length ? "wide" : "";
    put(row.firstChild, name);
    put(row.lastChild, text);
  });
}

function takeExplained(answer) {
  if (state.explaining !== `${answer.symbol} ${answer.start}`) return;
  const says = byId("explained");
  put(says, answer.error ? `workers explain: ${shown(answer.error, 2000)}` : explanation(answer.told).join("\n"));
}

const legendMarks = [];
function legend() {
  const kinds = [
    ["final", (context, c) => candleMark(context, c.up, c, FINAL)],
    ["closed, may be revised", (context, c) => candleMark(context, c.up, c, CLOSED)],
    ["provisional", (context, c) => candleMark(context, c.up, c, PROVISIONAL)],
    ["revised, with what it was", (context, c) => {
      context.strokeStyle = c.late;
      context.setLineDash([1.5, 2.5]);
      context.strokeRect(3.5, 9.5, 15, 6);
      context.setLineDash([]);
      candleMark(context, c.up, c, FINAL);
      drawDiamond(context, 11, 3.5, 3.2, c.late);
    }],
    ["up", (context, c) => candleMark(context, c.up, c, FINAL)],
    ["down", (context, c) => candleMark(context, c.down, c, FINAL, true)],
    ["windows without ticks", (context, c) => {
      context.strokeStyle = c.muted;
      context.setLineDash([1, 3]);
      context.beginPath();
      context.moveTo(11, 1);
      context.lineTo(11, 21);
      context.stroke();
    }],
  ];
  for (const [name, draw] of kinds) {
    const canvas = el("canvas", { class: "mark-canvas", "aria-hidden": "true", width: "22", height: "22" });
    legendMarks.push([canvas, draw]);
    byId("legend").append(el("span", {}, canvas, name));
  }
}

function candleMark(context, colour, colours, status, down = false) {
  drawCandle(context, { x: 11, wide: 9, high: 5, low: 20, open: down ? 8 : 17, close: down ? 17 : 8, colour, back: colours.panel, status });
}

function paintLegend() {
  const colours = readColours();
  for (const [canvas, draw] of legendMarks) {
    const { context } = fitted(canvas);
    draw(context, colours);
  }
}

// -- the group --------------------------------------------------------------------------------------------------------

const curves = [
  new Curve(byId("curves"), { title: "Lag, records", format: short, lines: [{ name: "lag", colour: "up", of: (point) => point.lag }] }),
  new Curve(byId("curves"), { title: "Seconds", format: seconds, lines: [
    { name: "waits", colour: "down", of: (point) => point.waiting },
    { name: "watermark delay", colour: "up", dash: [4, 3], of: (point) => point.delay },
  ] }),
  new Curve(byId("curves"), { title: "Rate scale and level", format: (value) => (value === null ? "–" : `× ${value}`), most: 1.05, lines: [{ name: "scale", colour: "good", step: true, of: (point) => point.scale }] }),
  new Curve(byId("curves"), { title: "Per second", format: short, lines: [
    { name: "ticks", colour: "up", of: (point) => point.ticks },
    { name: "done", colour: "good", dash: [2, 2], of: (point) => point.committed },
    { name: "frames", colour: "late", dash: [5, 3], of: (point) => point.frames },
  ] }),
];
curves[0].limitsOf = (hello) => [{ at: hello.soft_lag, colour: "warn" }, { at: hello.hard_lag, colour: "bad" }];

function mark(owner) {
  if (!state.owners.has(owner)) state.owners.set(owner, state.owners.size);
  const number = state.owners.get(owner);
  return el("span", { class: `mark m${number % 6}`, text: number < 26 ? String.fromCharCode(65 + number) : String(number) });
}

function ownerCell(owner) {
  if (owner === null) return el("span", { class: "muted", text: "nobody" });
  return el("span", { class: "owner", title: shown(owner) }, mark(owner), el("bdi", { class: "name", text: shown(owner, 60) }));
}

let groupShown = "";
function takeGroup(group) {
  state.group = group;
  const balancing = group.state.includes("Rebalance");
  put(byId("group-state"), `${group.state || "not described yet"}, ${group.members.length} ${group.members.length === 1 ? "member" : "members"}`);
  byId("group-state").className = balancing ? "level-soft" : "muted";
  const layout = JSON.stringify([group.members, group.partitions.map((row) => [row[0], row[1]])]);
  if (layout !== groupShown) {
    groupShown = layout;
    if (state.owners.size > 200) state.owners.clear();
    byId("members").replaceChildren(...(group.members.length ? group.members.map(([name, host, owned]) =>
      el("div", { class: "member" }, ownerCell(name), el("span", { class: "muted number", text: `${owned.length} of ${group.partitions.length} · ${shown(host, 40)}` }))) : [el("p", { class: "muted", text: "No worker is in the group." })]));
    byId("partitions").tBodies[0].replaceChildren(...group.partitions.map(([partition, owner]) =>
      el("tr", {}, el("td", { text: String(partition) }), el("td", {}, ownerCell(owner)), el("td", { class: "number" }), el("td", { class: "number" }), el("td", { class: "number" }))));
  }
  const rows = byId("partitions").tBodies[0].rows;
  group.partitions.forEach(([, , committed, end, lag, watermark, waits], index) => {
    const cells = rows[index].cells;
    rows[index].title = `committed ${committed === null ? "nothing yet" : whole(committed)} of ${whole(end)}`;
    put(cells[2], short(lag));
    put(cells[3], waits === null ? "–" : seconds(waits));
    put(cells[4], watermark === null ? "–" : clock(watermark));
  });
  tiles();
}

function takeEvents(rows) {
  const list = byId("events");
  list.querySelector("li.none")?.remove();
  for (const [at, kind, text] of rows) list.prepend(el("li", { class: `kind-${kind}` }, el("span", { class: "muted number", text: clock(at) }), el("span", { text: shown(text) })));
  while (list.children.length > MAX_EVENTS) list.lastChild.remove();
}

// -- at a glance ------------------------------------------------------------------------------------------------------

const TILES = ["lag, records", "lag, seconds", "level", "rate scale", "watermark delay", "ticks/s", "frames/s", "late", "dead letters"];
const tileParts = new Map();
for (const name of TILES) {
  const parts = { value: el("div", { class: "value", text: "–" }), under: el("div", { class: "under" }) };
  tileParts.set(name, parts);
  byId("tiles").append(el("div", { class: "tile", "data-tile": name }, el("div", { class: "label", text: name }), parts.value, parts.under));
}

function tile(name, value, under, kind = "") {
  const parts = tileParts.get(name);
  put(parts.value, value);
  put(parts.under, under);
  parts.value.className = `value ${kind}`;
}

const LEVEL_SIGNS = { OK: "● OK", SOFT: "▲ SOFT", HARD: "■ HARD" };

function tiles() {
  const { group, sum, hello } = state;
  const newest = state.points.at(-1);
  if (group) {
    const keepsUp = group.waiting_s !== null && group.waiting_s < 3; // then commits go as fast as arrivals, and the lag stays
    const drain = !group.lag ? (group.drain_s === null ? "" : "nothing waiting") : keepsUp ? "keeps up" : group.drain_s === null ? "not draining" : `drains in ${seconds(group.drain_s)}`;
    tile("lag, records", group.lag === null ? "–" : short(group.lag), group.lag === null ? "not measured" : drain);
    tile("lag, seconds", seconds(group.waiting_s), group.event_lag_s === null ? "in event time –" : `in event time ${seconds(group.event_lag_s)}`);
    tile("level", hello?.soft_lag === null ? "off" : (LEVEL_SIGNS[group.level] ?? group.level), group.pressure ? `told: ${group.pressure[0]} by ${shown(group.pressure[1], 20)}` : "nobody tells producers", `level-${group.level.toLowerCase()}`);
    tile("rate scale", `× ${group.scale}`, group.scale === 1 ? "producers at full rate" : group.scale === 0 ? "producers stopped" : "producers slowed", group.scale === 1 ? "" : group.scale === 0 ? "level-hard" : "level-soft");
  }
  if (newest) {
    tile("watermark delay", seconds(newest.delay), newest.delay === null ? "no clock moves" : newest.delay > 86400 ? "a replay of old data" : "slowest moving partition");
    tile("ticks/s", short(newest.ticks), `${short(newest.committed)} committed`);
    tile("frames/s", short(newest.frames), sum ? `${short(sum.frames)} seen` : "");
  }
  if (sum) tile("late", short(sum.counts.late), sum.counts.records ? `${((100 * sum.counts.late) / sum.counts.records).toFixed(2)} % of ticks` : "");
  if (sum) tile("dead letters", short(sum.counts.rejected), sum.unreadable ? `${short(sum.unreadable)} unreadable here` : "records that are no ticks");
}

function takeSum(sum) {
  state.sum = sum;
  const line = byId("sum");
  const { records, ...parts } = sum.counts;
  if (!records && !sum.partitions) {
    put(line, "No commit seen yet; the sum appears with the first one.");
    line.className = "sum";
    return;
  }
  const always = new Set(["aggregated", "late", "rejected"]);
  const said = Object.entries(parts).filter(([name, number]) => number || always.has(name)).map(([name, number]) => `${whole(number)} ${name.replaceAll("_", " ")}`);
  const broken = sum.balance !== 0 || sum.unbalanced.length > 0;
  const verdict = broken ? `✗ DOES NOT ADD UP: ${whole(sum.balance)} unaccounted for${sum.unbalanced.length ? `, partitions ${sum.unbalanced.join(", ")}` : ""}` : "✓ adds up: every record is accounted for, once";
  put(line, `${whole(records)} records = ${said.join(" + ")}   ${verdict}`);
  line.className = `sum ${broken ? "bad" : "good"}`;
}

// -- the ledger -------------------------------------------------------------------------------------------------------

const ledgerRows = new Map();

function takeLedger({ reasons, rows }) {
  const select = byId("reason");
  const named = [...new Set(["late", "dead"].filter((kind) => state.kind === "all" || state.kind === kind).flatMap((kind) => Object.keys(reasons[kind])))].sort();
  const wanted = JSON.stringify([named, reasons]);
  if (select.dataset.shown !== wanted && document.activeElement !== select) {
    select.dataset.shown = wanted;
    const count = (reason) => whole((reasons.late[reason] ?? 0) + (reasons.dead[reason] ?? 0));
    select.replaceChildren(el("option", { value: "", text: "every reason" }), ...named.map((reason) => el("option", { value: reason, text: `${shown(reason, 60)} (${count(reason)})` })));
    select.value = named.includes(state.reason) ? state.reason : "";
    if (select.value !== state.reason) {
      state.reason = select.value;
      link.send();
    }
  }
  const keep = new Set(rows.map((row) => row[0]));
  for (const seq of ledgerRows.keys()) if (!keep.has(seq)) ledgerRows.delete(seq);
  byId("ledger-rows").replaceChildren(...rows.map((row) => {
    if (!ledgerRows.has(row[0])) ledgerRows.set(row[0], ledgerRow(row));
    return ledgerRows.get(row[0]);
  }));
  const empty = byId("ledger-empty");
  empty.hidden = rows.length > 0;
  put(empty, state.kind !== "all" || state.reason || state.text ? "Nothing matches the filter." : "No late ticks and no dead letters.");
}

function ledgerRow([, kind, at, symbol, reason, text, place, value]) {
  const cells = [clock(at), kind === "late" ? "late" : "dead", shown(symbol, 60) || "(none)", shown(reason, 64), missed(text), shown(near(place), 120), shown(value, 200)];
  const row = el("tr", {}, ...cells.map((cell) => el("td", { text: cell })));
  row.cells[1].className = `kind-${kind}`;
  row.title = [symbol, reason, missed(text), place, value].map((part) => shown(part, 300)).join("\n");
  return row;
}

// A place in the ticks topic needs no name: that topic is the one that everything here is about.
function near(place) {
  const topic = state.hello?.topics.ticks ?? "";
  return topic && place.startsWith(`${topic}[`) ? place.slice(topic.length) : place;
}

// "missed the window from 1700000000000" in words.
function missed(text) {
  return shown(text).replace(/window from (\d{9,16})$/, (_, ms) => `window from ${clock(Number(ms))}`);
}

pressed("kind", "kind", () => {
  byId("reason").dataset.shown = "";
});
byId("reason").addEventListener("change", (event) => {
  state.reason = event.target.value;
  link.send();
});
byId("ledger-text").addEventListener("input", (event) => {
  state.text = event.target.value;
  askSoon();
});

// -- how the page is doing --------------------------------------------------------------------------------------------

function connection(name, { reason, seconds: wait, heard }) {
  state.connection = name;
  state.why = reason;
  const badge = byId("connection");
  const text = { live: "● live", silent: "▲ silent", lost: wait ? `■ reconnecting in ${wait} s` : "■ connecting…" }[name];
  put(badge, text);
  badge.className = `badge ${{ live: "live", silent: "wait", lost: "lost" }[name]}`;
  document.body.classList.toggle("lost", name !== "live");
  if (heard) state.heard = Date.now() - (performance.now() - heard);
  notice();
}

function notice() {
  const line = byId("notice");
  const said = [];
  if (state.connection !== "live") {
    const old = state.heard ? `What you see is from ${clock(state.heard + state.offset)} UTC.` : "";
    said.push(`${state.connection === "silent" ? "The dashboard's server says nothing." : "Not connected to the dashboard's server; trying again by itself."} ${shown(state.why ?? "", 200)} ${old}`.trim());
  } else {
    for (const [name, [kind, text]] of Object.entries(state.sources)) if (kind !== "ok") said.push(`${name}: ${shown(text)}`);
    const quiet = state.sum?.heard ? Date.now() + state.offset - state.sum.heard : 0;
    if (!said.length && quiet > QUIET_MS) said.push(`Stale: no frame has come for ${seconds(quiet / 1000)}.`);
    if (!said.length && state.group?.state === "Empty" && state.group.lag) said.push("No worker is running, and ticks are waiting.");
  }
  line.hidden = said.length === 0;
  put(line, said.join("  ·  "));
  line.className = `notice ${state.connection !== "live" ? "lost" : ""}`;
}

setInterval(() => {
  put(byId("clock"), `${clock(Date.now() + state.offset)} UTC`);
  notice();
}, 1000);

// -- theme ------------------------------------------------------------------------------------------------------------

const THEMES = { auto: "◐ auto", light: "☀ light", dark: "☾ dark" };
function stored(name, value) {
  try {
    if (value === undefined) return localStorage.getItem(name);
    localStorage.setItem(name, value);
  } catch {
    // Storage can be forbidden; the choice then lasts as long as the page.
  }
  return value ?? null;
}

function theme(name) {
  if (name === "auto") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = name;
  put(byId("theme"), THEMES[name]);
  byId("theme").setAttribute("aria-label", `Theme: ${name}`);
  recolour();
}

function recolour() {
  candles.recolour();
  for (const curve of curves) curve.recolour();
  paintLegend();
}

let themeName = stored("workers-theme") in THEMES ? stored("workers-theme") : "auto";
byId("theme").addEventListener("click", () => {
  const names = Object.keys(THEMES);
  themeName = names[(names.indexOf(themeName) + 1) % names.length];
  stored("workers-theme", themeName);
  theme(themeName);
});
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", recolour);
legend();
theme(themeName);
if (state.symbol !== null) put(byId("symbol"), shown(state.symbol, 80));
drawBars();
