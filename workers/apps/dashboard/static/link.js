// The connection: it comes back by itself, and knows when what is on the screen is old.

const SILENT_MS = 4000; // the server says something at least every second
const GONE_MS = 12000; // a connection that died without a word
const BACKOFF_MS = [250, 500, 1000, 2000, 4000];
const REFUSALS = { 4029: "too many browsers are connected already", 4000: "the server did not understand this page", 4008: "this browser was too slow" };

export class Link {
  constructor({ onMessage, onState, wish }) {
    this.onMessage = onMessage;
    this.onState = onState;
    this.wish = wish;
    this.failures = 0;
    this.heard = 0;
    this.state = "";
    this.open();
    setInterval(() => this.watch(), 500);
    for (const event of ["online", "pageshow"]) window.addEventListener(event, () => this.hurry());
  }

  open() {
    clearTimeout(this.timer);
    this.timer = undefined;
    const socket = new WebSocket(`${location.protocol === "https:" ? "wss" : "ws"}://${location.host}/live`);
    this.socket = socket;
    this.opened = performance.now();
    socket.onopen = () => this.send();
    socket.onmessage = (event) => {
      if (socket !== this.socket) return;
      this.failures = 0;
      this.heard = performance.now();
      this.reason = "";
      this.say("live");
      this.onMessage(JSON.parse(event.data));
    };
    socket.onclose = (event) => {
      if (socket === this.socket) this.again(REFUSALS[event.code] ?? "");
    };
  }

  again(reason) {
    this.socket = undefined;
    this.reason = reason;
    const wait = BACKOFF_MS[Math.min(this.failures, BACKOFF_MS.length - 1)] * (0.8 + 0.4 * Math.random());
    this.failures += 1;
    this.next = performance.now() + wait;
    this.say("lost");
    this.timer = setTimeout(() => this.open(), wait);
    // The page asks for a token where the server wants one now.
    if (this.failures % 3 === 2) fetch("/page.js", { method: "GET", cache: "no-store" }).then((answer) => answer.status === 401 && location.reload(), () => {});
  }

  hurry() {
    if (this.timer !== undefined) this.open();
  }

  send() {
    if (this.socket?.readyState === WebSocket.OPEN) this.socket.send(JSON.stringify(this.wish()));
  }

  watch() {
    const now = performance.now();
    if (this.socket === undefined) {
      this.say("lost");
      return;
    }
    const silent = now - Math.max(this.heard, this.opened);
    if (silent > GONE_MS) {
      const socket = this.socket;
      this.again("nothing came for a while");
      socket.close();
    } else if (this.heard && silent > SILENT_MS) this.say("silent");
  }

  say(state) {
    if (state === "live" && this.state === "live") return;
    this.state = state;
    const wait = state === "lost" && this.timer !== undefined ? Math.max(0, this.next - performance.now()) : 0;
    this.onState(state, { reason: this.reason ?? "", seconds: Math.ceil(wait / 1000), heard: this.heard });
  }
}
