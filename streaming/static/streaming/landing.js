// The landing page's own client: a plain websocket that speaks Phoenix's V1 frames, and shows each of them.
// No library, so that what goes over the wire can be read here.
"use strict";

(() => {
  const HEARTBEAT_MS = 25_000;
  const RECONNECT_MS = [1_000, 2_000, 5_000, 10_000];
  const REJOIN_MS = 2_000;
  const SHOWN_FRAMES = 100;
  const SHOWN_ROWS = 8;
  const FLASH_MS = 900;
  const CHANGES = new Set(["INSERT", "UPDATE", "DELETE", "TRUNCATE"]);

  const byId = (id) => document.getElementById(id);
  const { socketPath, demoTopic, demoUrl } = document.body.dataset;

  const make = (tag, attributes = {}, ...children) => {
    const element = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
    element.append(...children);
    return element;
  };

  // ------------------------------------------------------------------------------------------------ the socket

  let socket = null;
  let refs = 0;
  let attempts = 0;
  let token = null; // in memory only: never in this page's URL, never in storage
  let heartbeat = { ref: null, sentAt: 0, timer: null };
  let reconnectTimer = null;
  const topics = new Map(); // topic -> {state: "joining" | "joined" | "refused", ref, reason}

  const setStatus = (state, text) => {
    byId("status").dataset.state = state;
    byId("status-text").textContent = text;
    if (state !== "live") byId("round-trip").textContent = "";
  };

  const socketUrl = () => {
    const url = new URL(socketPath, location.href);
    url.protocol = location.protocol === "https:" ? "wss:" : "ws:";
    url.search = new URLSearchParams(token ? { vsn: "1.0.0", token } : { vsn: "1.0.0" });
    return url;
  };

  const send = (topic, event, payload, isShown = true) => {
    const frame = { topic, event, payload, ref: String(++refs) };
    socket.send(JSON.stringify(frame));
    if (isShown) showFrame(frame, "sent");
    return frame.ref;
  };

  const connect = () => {
    clearTimeout(reconnectTimer);
    setStatus(attempts ? "reconnecting" : "connecting", attempts ? "reconnecting" : "connecting");
    const current = (socket = new WebSocket(socketUrl()));
    let wasOpen = false;
    current.onopen = () => {
      wasOpen = true;
      attempts = 0;
      byId("refusal").hidden = true;
      setStatus("live", "live");
      for (const topic of topics.keys()) join(topic);
      beat();
    };
    current.onmessage = ({ data }) => receive(JSON.parse(data));
    current.onclose = async () => {
      if (current !== socket) return;
      clearTimeout(heartbeat.timer);
      for (const entry of topics.values()) if (entry.state === "joined") entry.state = "joining";
      showTopics();
      if (!wasOpen && (await isRefused())) {
        setStatus("refused", "token needed");
        if (token) {
          byId("refusal-title").textContent = "The server refused this token";
          byId("refusal-text").textContent =
            "It may have expired, be signed with another secret, or lack a claim that the server asks for. Paste another one.";
        }
        byId("refusal").hidden = false;
        byId("token").focus();
        return;
      }
      setStatus("reconnecting", "reconnecting");
      reconnectTimer = setTimeout(connect, RECONNECT_MS[Math.min(attempts++, RECONNECT_MS.length - 1)]);
    };
  };

  // A browser does not say why a websocket failed. The same path without an upgrade does: 403 means that the token,
  // or its absence, was not accepted.
  const isRefused = async () => {
    try {
      const answer = await fetch(`${socketPath}?vsn=1.0.0`, { headers: token ? { "x-api-key": token } : {} });
      return answer.status === 403;
    } catch {
      return false;
    }
  };

  const beat = () => {
    if (heartbeat.ref !== null && heartbeat.socket === socket) {
      socket.close(); // the last one was never answered
      return;
    }
    heartbeat = { socket, ref: send("phoenix", "heartbeat", {}, false), sentAt: performance.now() };
    heartbeat.timer = setTimeout(beat, HEARTBEAT_MS);
  };

  const join = (topic) => {
    topics.set(topic, { state: "joining", ref: send(topic, "phx_join", {}) });
    showTopics();
  };

  const watch = (topic) => {
    if (topics.has(topic) && topics.get(topic).state !== "refused") return;
    topics.set(topic, { state: "joining", ref: null });
    if (socket?.readyState === WebSocket.OPEN) join(topic);
    showTopics();
  };

  const unwatch = (topic) => {
    const isJoined = topics.get(topic)?.state === "joined";
    topics.delete(topic);
    if (isJoined && socket.readyState === WebSocket.OPEN) send(topic, "phx_leave", {});
    showTopics();
  };

  const receive = (frame) => {
    const arrivedAt = performance.now();
    if (frame.topic === "phoenix") {
      if (frame.ref === heartbeat.ref) {
        heartbeat.ref = null;
        byId("round-trip").textContent = milliseconds(arrivedAt - heartbeat.sentAt);
      }
      return;
    }
    const entry = topics.get(frame.topic);
    if (frame.event === "phx_reply" && entry?.ref === frame.ref) {
      entry.state = frame.payload.status === "ok" ? "joined" : "refused";
      entry.reason = frame.payload.response?.reason;
      showTopics();
      // Joined first, read afterwards: a change between the two comes as a frame, and may only repeat what was read.
      if (frame.topic === demoTopic && entry.state === "joined") fetchRows();
    }
    if (frame.event === "phx_error" && entry) {
      entry.state = "joining";
      showTopics();
      setTimeout(() => {
        if (topics.get(frame.topic) === entry && socket.readyState === WebSocket.OPEN) join(frame.topic);
      }, REJOIN_MS);
    }
    const isChange = CHANGES.has(frame.event);
    const element = showFrame(frame, "received");
    if (isChange) {
      travel(frame.event);
      byId("latest").textContent = `${frame.event} in ${frame.payload.schema}.${frame.payload.table} arrived.`;
      if (frame.topic === demoTopic) {
        applyToRows(frame);
        matchClick(frame, arrivedAt, element);
      }
    }
  };

  // ------------------------------------------------------------------------------------------------ the frames

  let paused = false;
  let waiting = []; // while paused: [frame, direction, when], oldest first

  const milliseconds = (value) => `${value < 10 ? value.toFixed(1) : Math.round(value)} ms`;

  const clock = (date) => date.toTimeString().slice(0, 8) + "." + String(date.getMilliseconds()).padStart(3, "0");

  const gist = ({ event, payload, topic, ref }, direction) => {
    if (event === "phx_reply") {
      return [payload.status === "ok" ? "ok" : `refused: ${payload.response?.reason ?? "no reason given"}`, ` to ref ${ref}`];
    }
    if (!CHANGES.has(event)) return [direction === "sent" ? topic : "", direction === "sent" ? ` ref ${ref}` : topic];
    const values = Object.entries(payload.record ?? payload.old_record ?? {});
    const name = `${payload.schema}.${payload.table}`;
    const words = values.slice(0, 3).map(([column, value]) => `${column}=${value}`);
    return [name, `  ${words.join("  ")}${values.length > 3 ? " …" : ""}`];
  };

  // Like JSON.stringify with an indent, but what fits on a line stays on it: a frame is mostly column descriptions.
  const pretty = (value, indent = "") => {
    const short = JSON.stringify(value);
    if (value === null || typeof value !== "object" || indent.length + short.length <= 96) return short;
    const deeper = `${indent}  `;
    const [open, close, parts] = Array.isArray(value)
      ? ["[", "]", value.map((part) => pretty(part, deeper))]
      : ["{", "}", Object.entries(value).map(([key, part]) => `${JSON.stringify(key)}: ${pretty(part, deeper)}`)];
    return `${open}\n${parts.map((part) => deeper + part).join(",\n")}\n${indent}${close}`;
  };

  const showFrame = (frame, direction, when = new Date()) => {
    if (paused) {
      waiting = [...waiting.slice(1 - SHOWN_FRAMES), [frame, direction, when]];
      byId("pause").textContent = `Resume (${waiting.length} waiting)`;
      return null;
    }
    const [strong, quiet] = gist(frame, direction);
    const arrow = direction === "sent" ? "↑" : "↓";
    const summary = make(
      "summary",
      {},
      make("span", { class: "tag", "data-event": frame.event }, frame.event.replace("phx_", "")),
      make("span", { class: "gist" }, strong, make("span", { class: "mono" }, quiet)),
      make("span", { class: "when" }, `${arrow} ${clock(when)}`),
    );
    summary.querySelector(".tag").title = `${direction}: ${frame.event} on ${frame.topic}`;
    const details = make("details", {}, summary);
    details.addEventListener(
      "toggle",
      () => details.append(make("pre", { tabindex: "0" }, pretty(frame))), // made when first opened
      { once: true },
    );
    const item = make("li", { class: "frame fresh" }, details);
    byId("frames").prepend(item);
    while (byId("frames").children.length > SHOWN_FRAMES) byId("frames").lastElementChild.remove();
    byId("frames-empty").hidden = true;
    return item;
  };

  byId("pause").addEventListener("click", () => {
    paused = !paused;
    byId("pause").setAttribute("aria-pressed", String(paused));
    byId("pause").textContent = paused ? "Resume" : "Pause";
    if (!paused) {
      const held = waiting;
      waiting = [];
      for (const [frame, direction, when] of held) showFrame(frame, direction, when);
    }
  });

  byId("clear").addEventListener("click", () => {
    byId("frames").replaceChildren();
    byId("frames-empty").hidden = false;
    waiting = [];
    if (paused) byId("pause").textContent = "Resume";
  });

  // ------------------------------------------------------------------------------------------------ the topics

  const showTopics = () => {
    byId("topics").replaceChildren(
      ...[...topics].map(([topic, { state, reason }]) => {
        const note = { joining: " …", joined: "", refused: `: ${reason ?? "refused"}` }[state];
        const item = make("li", { "data-state": state }, topic + note);
        if (topic !== demoTopic) {
          const leave = make("button", { type: "button", "aria-label": `Stop watching ${topic}` }, "×");
          leave.addEventListener("click", () => unwatch(topic));
          item.append(leave);
        }
        return item;
      }),
    );
  };

  byId("topic-form").addEventListener("submit", (event) => {
    event.preventDefault();
    watch(byId("topic").value.trim());
    byId("topic").value = "";
  });

  byId("token-form").addEventListener("submit", (event) => {
    event.preventDefault();
    token = byId("token").value.trim();
    byId("token").value = "";
    attempts = 0;
    connect();
  });

  // ------------------------------------------------------------------------------------------------ the corridor

  const travel = (change) => {
    const dot = byId("dot");
    dot.dataset.event = change;
    dot.classList.remove("travels");
    void dot.offsetWidth; // so that the animation begins anew
    dot.classList.add("travels");
  };

  // ------------------------------------------------------------------------------------------------ the demo table

  const rows = new Map(); // id (text, as the wire has it) -> {task, done}
  const leaving = new Map(); // id -> the row that was deleted, while it is still shown
  const flashing = new Map(); // id -> the change that touched it last

  const newestFirst = ([a], [b]) => (BigInt(a) < BigInt(b) ? 1 : -1);

  const showRows = () => {
    const shown = [...rows].sort(newestFirst).slice(0, SHOWN_ROWS);
    const all = [...shown, ...leaving].sort(newestFirst).slice(0, SHOWN_ROWS);
    const body = byId("rows");
    const old = new Map([...body.children].map((row) => [row.dataset.id, row]));
    body.replaceChildren(
      ...all.map(([id, { task, done }]) => {
        // An element that stays keeps fading its colour.
        const row =
          old.get(id) ??
          make("tr", { "data-id": id }, make("td", { class: "id" }), make("td", { class: "task" }), make("td", { class: "done" }));
        row.dataset.done = String(done);
        if (flashing.has(id)) row.dataset.change = flashing.get(id);
        else delete row.dataset.change;
        row.children[0].textContent = id;
        row.children[1].textContent = row.children[1].title = task;
        row.children[2].textContent = done ? "true" : "false";
        return row;
      }),
    );
    byId("rows-empty").hidden = all.length > 0;
  };

  const flash = (id, change) => {
    flashing.set(id, change);
    setTimeout(() => {
      if (flashing.get(id) !== change) return;
      flashing.delete(id);
      leaving.delete(id);
      showRows();
    }, FLASH_MS);
  };

  const applyToRows = ({ event, payload }) => {
    if (event === "TRUNCATE") {
      rows.clear();
    } else if (event === "DELETE") {
      const { id } = payload.old_record;
      if (rows.has(id)) leaving.set(id, rows.get(id));
      rows.delete(id);
      flash(id, event);
    } else {
      const { id, task, done } = payload.record;
      rows.set(id, { task, done: done === "t" });
      flash(id, event);
    }
    showRows();
  };

  const fetchRows = async () => {
    try {
      const answer = await fetch(demoUrl);
      if (!answer.ok) throw new Error(String(answer.status));
      rows.clear();
      for (const { id, task, done } of (await answer.json()).rows) rows.set(String(id), { task, done });
      byId("rows-waiting").hidden = true;
      showRows();
    } catch {
      byId("demo-note").textContent = "The rows could not be read; the frames still arrive.";
    }
  };

  // A click and its frame meet by the row's id, whichever of the two answers comes first.
  const clicks = new Map(); // "INSERT:17" -> when the button was pressed
  const arrivals = new Map(); // "INSERT:17" -> [when, the frame's element]

  const matchClick = ({ event, payload }, arrivedAt, element) => {
    const key = `${event}:${(payload.record ?? payload.old_record ?? {}).id}`;
    arrivals.set(key, [arrivedAt, element]);
    if (arrivals.size > SHOWN_FRAMES) arrivals.delete(arrivals.keys().next().value);
    meet(key);
  };

  const meet = (key) => {
    if (!clicks.has(key) || !arrivals.has(key)) return;
    const [arrivedAt, element] = arrivals.get(key);
    const took = milliseconds(arrivedAt - clicks.get(key));
    clicks.delete(key);
    arrivals.delete(key);
    byId("latest").replaceChildren(
      `${key.split(":")[0]}: click, commit, log, websocket, frame in `,
      make("strong", {}, took),
    );
    element?.querySelector(".when").prepend(make("strong", {}, took), "  ");
  };

  byId("demo-form")?.addEventListener("submit", async (event) => {
    event.preventDefault();
    const { change, url } = event.submitter.dataset;
    const clickedAt = performance.now();
    const note = byId("demo-note");
    try {
      const csrf = new FormData(event.target).get("csrfmiddlewaretoken");
      const answer = await fetch(url, { method: "POST", headers: { "X-CSRFToken": csrf } });
      const { id, message } = await answer.json();
      if (id === undefined) {
        note.textContent = message;
        return;
      }
      const key = `${change}:${id}`;
      clicks.set(key, clickedAt);
      meet(key);
    } catch {
      note.textContent = "The server did not answer. Is it still running?";
    }
  });

  // ------------------------------------------------------------------------------------------------ how to connect

  for (const element of document.querySelectorAll("[data-endpoint]")) {
    element.textContent = socketUrl().href.replace(/\/websocket\?.*/, "");
  }

  for (const button of document.querySelectorAll("[data-copy]")) {
    button.addEventListener("click", async () => {
      const source = byId(button.dataset.copy);
      try {
        await navigator.clipboard.writeText(source.textContent);
        button.textContent = "Copied";
      } catch {
        getSelection().selectAllChildren(source); // no clipboard on plain http: select it, and let the person copy
        button.textContent = "Selected";
      }
      setTimeout(() => (button.textContent = "Copy"), 1_500);
    });
  }

  if (demoTopic) watch(demoTopic);
  connect();
})();
