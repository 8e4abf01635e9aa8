// The socket: Phoenix's protocol 2.0.0, reconnecting and resuming. It knows channels and frames, and nothing of the page.

import { resuming } from "../walcast-resume.mjs";

const HEARTBEAT_MS = 25_000;
const RECONNECT_MS = [1_000, 2_000, 5_000, 10_000];
const REJOIN_MS = [1_000, 2_000, 5_000, 10_000];
const REPLY_MS = 10_000;

/** What the server is asked for by a join; where it does not say `since`, `resume` is added underneath. */
export const joinPayload = (join, { since, token } = {}) => {
  const resume = since ? { resume: { since } } : {};
  if (join.kind === "legacy") return { ...resume, ...(token && { user_token: token }) };
  return {
    config: {
      broadcast: { self: Boolean(join.self), ack: Boolean(join.ack) },
      presence: { enabled: Boolean(join.presence), key: join.key ?? "" },
      postgres_changes: join.bindings ?? [],
      private: Boolean(join.private),
    },
    ...resume,
    ...(token && { access_token: token }),
  };
};

/**
 * One websocket and its channels. `on` is told of everything, at once and in order:
 *
 * - `status({state, retryAt})`: connecting, live, reconnecting (again at `retryAt`, by `performance.now`), refused
 * - `roundTrip(ms)`: of a heartbeat
 * - `channels()`: a channel has another state
 * - `frame({topic, event, payload, ref, bytes}, direction)`: "in" or "out"; heartbeats are not told
 * - `resumed({topic, replayed})`, `gap({topic})`: after a reconnect; the replayed changes come next
 */
export class Connection {
  constructor(on) {
    this.on = on;
    this.path = "/socket/websocket";
    this.token = null; // in memory only: never in this page's URL, never in storage
    this.channels = new Map(); // topic -> {join, state, ref, reason, attempts}
    this.state = "closed";
    this.socket = null;
    this.refs = 0;
    this.attempts = 0;
    this.replies = new Map(); // ref -> {resolve, timer}
    this.heartbeat = { ref: null, sentAt: 0, timer: null };
    this.#forget();
    addEventListener("online", () => this.state === "reconnecting" && this.open());
  }

  /** The address of the socket, with the token if there is one. */
  get url() {
    const url = new URL(this.path, location.href);
    url.protocol = location.protocol === "https:" ? "wss:" : "ws:";
    url.search = new URLSearchParams(this.token ? { vsn: "2.0.0", token: this.token } : { vsn: "2.0.0" });
    return url;
  }

  /** Connect, or connect anew. Positions are kept: channels resume. */
  open() {
    clearTimeout(this.retry);
    clearTimeout(this.heartbeat.timer);
    this.heartbeat.ref = null;
    const old = this.socket;
    const socket = (this.socket = new this.Resuming(this.url));
    socket.binaryType = "arraybuffer";
    old?.close();
    this.#lost();
    this.#status(this.attempts ? "reconnecting" : "connecting");
    let wasOpen = false;
    socket.onopen = () => {
      if (socket !== this.socket) return;
      wasOpen = true;
      this.attempts = 0;
      this.#status("live");
      for (const topic of this.channels.keys()) this.#sendJoin(topic);
      this.#beat();
    };
    socket.onmessage = ({ data }) => {
      if (socket === this.socket) this.#receive(data);
    };
    socket.onclose = async (event) => {
      if (socket !== this.socket) return;
      clearTimeout(this.heartbeat.timer);
      this.#lost();
      if (!wasOpen && (await this.#isRefused())) {
        if (socket === this.socket) this.#status("refused");
        return;
      }
      if (socket !== this.socket) return;
      const wait = RECONNECT_MS[Math.min(this.attempts++, RECONNECT_MS.length - 1)] * (0.8 + 0.4 * Math.random());
      this.retry = setTimeout(() => this.open(), wait);
      this.#status("reconnecting", { retryAt: performance.now() + wait, code: event.code, reason: event.reason });
    };
  }

  /** Another token: channels that are joined get it, and a socket that was refused is tried again. */
  setToken(token) {
    this.token = token || null;
    if (this.state !== "live") {
      this.attempts = 0;
      this.open();
    } else if (token) {
      for (const [topic, channel] of this.channels) {
        if (channel.state === "joined") this.push(topic, "access_token", { access_token: token }, { isAnswered: false });
        else if (channel.state === "closed" || channel.state === "refused") {
          channel.state = "waiting"; // it ended with its token, or for want of one
          this.#sendJoin(topic);
        }
      }
    } else {
      this.open(); // a socket keeps the token that it was opened with
    }
  }

  /** Another way in (`/socket/websocket` or `/realtime/v1/websocket`). */
  setPath(path) {
    if (path === this.path) return;
    this.path = path;
    if (this.socket) this.open();
  }

  /** Join, or join anew if it was joined otherwise; with `since`, what came after that position comes again. */
  join(join, { since } = {}) {
    const { topic } = join;
    if (this.channels.has(topic)) this.leave(topic);
    this.channels.set(topic, { join, state: "waiting", ref: null, reason: null, attempts: 0, since });
    if (this.state === "live") this.#sendJoin(topic);
    this.on.channels();
  }

  /** Leave, and forget the channel. */
  leave(topic) {
    const channel = this.channels.get(topic);
    this.channels.delete(topic);
    clearTimeout(channel?.timer);
    if (this.state === "live" && channel && channel.state !== "waiting") this.#send(channel.ref, topic, "phx_leave", {});
    this.on.channels();
  }

  /** Send an event on a joined channel; the reply's payload, `null` if none is awaited. Rejects after ten seconds. */
  push(topic, event, payload, { isAnswered = true } = {}) {
    const channel = this.channels.get(topic);
    if (this.state !== "live" || channel?.state !== "joined") return Promise.reject(new Error(`${topic} is not joined`));
    const ref = this.#send(channel.ref, topic, event, payload);
    if (!isAnswered) return Promise.resolve(null);
    return new Promise((resolve, reject) => {
      const timer = setTimeout(() => {
        this.replies.delete(ref);
        reject(new Error("the server did not answer within 10 s"));
      }, REPLY_MS);
      this.replies.set(ref, { resolve, timer });
    });
  }

  // The socket class holds what is known of positions.
  #forget() {
    this.Resuming = resuming({
      onGap: ({ topic }) => this.on.gap({ topic }),
      onResume: ({ topic, replayed }) => this.on.resumed({ topic, replayed }),
    });
  }

  #status(state, facts = {}) {
    this.state = state;
    this.on.status({ state, ...facts });
  }

  #lost() {
    for (const channel of this.channels.values()) {
      clearTimeout(channel.timer);
      if (channel.state !== "closed") channel.state = "waiting";
    }
    for (const { resolve, timer } of this.replies.values()) {
      clearTimeout(timer);
      resolve({ status: "error", response: { reason: "the connection was lost" } });
    }
    this.replies.clear();
    this.on.channels();
  }

  // A browser does not say why a websocket failed. The same path without an upgrade does.
  async #isRefused() {
    try {
      const query = new URLSearchParams({ vsn: "2.0.0" });
      const answer = await fetch(`${this.path}?${query}`, { headers: this.token ? { "x-api-key": this.token } : {} });
      return answer.status === 403 || answer.status === 401;
    } catch {
      return false;
    }
  }

  #send(joinRef, topic, event, payload) {
    const ref = String(++this.refs);
    const text = JSON.stringify([joinRef, ref, topic, event, payload]);
    this.socket.send(text);
    if (topic !== "phoenix") this.on.frame({ topic, event, payload: withoutTokens(payload), ref, bytes: text.length }, "out");
    return ref;
  }

  #sendJoin(topic) {
    const channel = this.channels.get(topic);
    if (channel === undefined || channel.state === "closed") return;
    clearTimeout(channel.timer);
    channel.state = "joining";
    channel.ref = String(this.refs + 1); // the join_ref of a join is its own ref
    this.#send(channel.ref, topic, "phx_join", joinPayload(channel.join, { since: channel.since, token: this.token }));
    channel.timer = setTimeout(() => this.#sendJoin(topic), REPLY_MS);
    this.on.channels();
  }

  #rejoinLater(topic, channel) {
    clearTimeout(channel.timer);
    const wait = REJOIN_MS[Math.min(channel.attempts++, REJOIN_MS.length - 1)];
    channel.timer = setTimeout(() => {
      if (this.channels.get(topic) === channel && this.state === "live") this.#sendJoin(topic);
    }, wait);
  }

  #beat() {
    if (this.heartbeat.ref !== null) {
      this.socket.close(); // the last one was never answered
      return;
    }
    this.heartbeat.sentAt = performance.now();
    this.heartbeat.ref = this.#send(null, "phoenix", "heartbeat", {});
    this.heartbeat.timer = setTimeout(() => this.#beat(), HEARTBEAT_MS);
  }

  #receive(data) {
    const frame = typeof data === "string" ? readText(data) : readBroadcast(data);
    if (frame === null) return;
    const { topic, event, payload, ref } = frame;
    if (topic === "phoenix") {
      if (ref === this.heartbeat.ref) {
        this.heartbeat.ref = null;
        this.on.roundTrip(performance.now() - this.heartbeat.sentAt);
      }
      return;
    }
    const channel = this.channels.get(topic);
    if (event === "phx_reply") this.#replied(topic, channel, frame);
    else if (event === "phx_error" && channel && channel.state !== "waiting") {
      channel.state = "joining";
      this.#rejoinLater(topic, channel);
      this.on.channels();
    } else if (event === "phx_close" && channel && frame.joinRef === channel.ref) {
      channel.state = "closed"; // for good: the server ended it, with its token for example
      this.on.channels();
    } else if (event === "system" && channel && payload?.status === "error") {
      channel.reason = payload.message;
      this.on.channels();
    }
    this.on.frame(frame, "in");
  }

  #replied(topic, channel, { ref, payload }) {
    const waiting = this.replies.get(ref);
    if (waiting) {
      clearTimeout(waiting.timer);
      this.replies.delete(ref);
      waiting.resolve(payload);
    }
    if (channel === undefined || ref !== channel.ref) return;
    clearTimeout(channel.timer);
    if (payload.status === "ok") {
      channel.state = "joined";
      channel.reason = null;
      channel.attempts = 0;
      delete channel.since; // from here on the position is that of the newest change
    } else {
      channel.state = "refused";
      channel.reason = payload.response?.reason ?? "no reason given";
      if (!/unmatched topic/.test(channel.reason)) this.#rejoinLater(topic, channel);
    }
    this.on.channels();
  }
}

// What is shown can be copied and exported: no token is part of it.
const withoutTokens = (payload) =>
  Object.fromEntries(
    Object.entries(payload).map(([name, value]) => [name, name === "access_token" || name === "user_token" ? "(hidden)" : value]),
  );

const readText = (text) => {
  let value;
  try {
    value = JSON.parse(text);
  } catch {
    return null;
  }
  if (!Array.isArray(value)) return null;
  const [joinRef, ref, topic, event, payload] = value;
  return { joinRef, ref, topic, event, payload, bytes: text.length };
};

/** A binary frame of kind 4: a broadcast whose payload may be bytes. */
const readBroadcast = (buffer) => {
  const bytes = new Uint8Array(buffer);
  if (bytes[0] !== 4) return null;
  const [, topicLength, eventLength, metadataLength, encoding] = bytes;
  const utf8 = new TextDecoder();
  const part = (start, length) => utf8.decode(bytes.subarray(start, start + length));
  const topic = part(5, topicLength);
  const event = part(5 + topicLength, eventLength);
  const rest = bytes.subarray(5 + topicLength + eventLength + metadataLength);
  let payload;
  if (encoding === 0) payload = { bytes: rest.length, hex: [...rest.subarray(0, 256)].map((b) => b.toString(16).padStart(2, "0")).join("") };
  else {
    try {
      payload = JSON.parse(utf8.decode(rest));
    } catch {
      return null;
    }
  }
  return { joinRef: null, ref: null, topic, event: "broadcast", payload: { type: "broadcast", event, payload }, bytes: bytes.length };
};
