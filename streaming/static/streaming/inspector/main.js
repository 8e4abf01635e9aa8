// The inspector: joins topics of this server, and shows what comes. It has no authority of its own: a token is all
// that counts, and it stays in memory.

import { showDetail } from "./detail.js";
import { HIDDEN_AT_FIRST, KINDS, Log } from "./log.js";
import { Rows, make } from "./rows.js";
import { Connection } from "./wire.js";
import {
  curl,
  heardInWords,
  javascript,
  joinInWords,
  milliseconds,
  parseQuery,
  pretty,
  queryInWords,
  readLink,
  readToken,
  tailCommand,
  watchingInWords,
  writeLink,
} from "./words.js";

const byId = (id) => document.getElementById(id);
const isSecured = "secured" in document.body.dataset;

const log = new Log();
const rows = new Rows(byId("rows"), byId("space"), log, (entry) => openDetail(entry));
const presence = new Map(); // topic -> Map(key -> metas)
const replaying = new Map(); // topic -> how many changes are still replayed ones

// -------------------------------------------------------------------------------------------------- the socket

const note = (level, tag, title, text, topic = "") => {
  log.add({ topic, event: "note", payload: { level, tag, title, text } }, "note");
  byId("announce").textContent = text ? `${title}: ${text}` : title;
  rows.changed();
};

let wasLive = false;
let retryTicker = null;

const connection = new Connection({
  status({ state, retryAt, code, reason }) {
    clearInterval(retryTicker);
    byId("status").dataset.state = state;
    byId("retry").hidden = state !== "reconnecting" || retryAt === undefined;
    const text = { connecting: "connecting", live: "live", reconnecting: "reconnecting", refused: isSecured && !connection.token ? "token needed" : "refused" }[state];
    byId("status-text").textContent = text;
    if (state !== "live") byId("round-trip").textContent = "";
    if (state === "reconnecting" && retryAt) {
      const tick = () => {
        const seconds = Math.max(0, Math.ceil((retryAt - performance.now()) / 1000));
        byId("status-text").textContent = seconds ? `reconnecting in ${seconds} s` : "reconnecting";
      };
      tick();
      retryTicker = setInterval(tick, 500);
    }
    if (state === "reconnecting" && wasLive) {
      wasLive = false;
      const why = reason || (code === 1012 ? "the server shuts down" : code && code !== 1006 ? `code ${code}` : "");
      note("warning", "cut", "Connection lost", `${why ? `${why}; ` : ""}reconnecting, and resuming where the changes stopped`);
    }
    if (state === "live") {
      if (!wasLive && log.total) note("good", "live", "Connected again");
      wasLive = true;
    }
    if (state === "refused") {
      byId("token").focus();
      byId("identity").textContent = connection.token
        ? "The server refused this token: it may have expired, be signed with another secret, or lack a claim. Try another one."
        : "This server asks for a token, signed with its secret. Paste one; manage.py token make makes them.";
      byId("identity").dataset.state = "bad";
    }
  },
  roundTrip(ms) {
    byId("round-trip").textContent = milliseconds(ms);
  },
  channels: () => showChannels(),
  frame(frame, direction) {
    const { topic, event, payload } = frame;
    let isReplayed = false;
    const left = replaying.get(topic);
    if (left && direction === "in" && (event === "postgres_changes" || /^[A-Z]+$/.test(event))) {
      isReplayed = true;
      if (left > 1) replaying.set(topic, left - 1);
      else replaying.delete(topic);
    }
    log.add(frame, direction, { isReplayed });
    if (direction === "in") takePresence(topic, event, payload);
    if (rows.isPaused) showPaused();
    else rows.changed();
    showMeters();
  },
  resumed({ topic, replayed }) {
    if (replayed) replaying.set(topic, replayed);
    const missed = replayed === 1 ? "1 change that was missed comes" : `${replayed} changes that were missed come`;
    note("good", "resumed", "Resumed", replayed ? `${missed} now, nothing is missing` : "nothing was missed", topic);
  },
  gap({ topic }) {
    note("bad", "gap", "Changes are missing", `the server no longer has all that was missed in ${topic}; it goes on from here`, topic);
  },
});

// -------------------------------------------------------------------------------------------------- what is joined

const joins = () => [...connection.channels.values()].map((channel) => channel.join);

const endpoint = () => connection.url.href.replace(/\/websocket\?.*/, "");

const STATES = { waiting: "waiting for the connection", joining: "joining", joined: "joined", refused: "refused", closed: "ended by the server" };

const showChannels = () => {
  byId("channels").replaceChildren(
    ...[...connection.channels].map(([topic, { join, state, reason }]) => {
      const words = heardInWords(join);
      const leave = make("button", { type: "button", class: "quiet icon", "aria-label": `Leave ${topic}`, title: "Leave" }, "×");
      leave.addEventListener("click", () => {
        connection.leave(topic);
        presence.delete(topic);
        showPresence();
        changed();
      });
      const menu = make("details", { class: "menu" }, make("summary", { class: "button quiet", "aria-label": `Code for ${topic}`, title: "Code for this" }, "Code"));
      const items = make("div", { class: "menu-items" });
      for (const [text, code] of [
        ["Copy as JavaScript", () => javascript(join, { endpoint: endpoint(), isSecured })],
        ["Copy as tail command", () => tailCommand(join, { endpoint: endpoint() })],
      ]) {
        const button = make("button", { type: "button" }, text);
        button.addEventListener("click", () => copy(code(), button));
        items.append(button);
      }
      const edit = make("button", { type: "button" }, "Edit");
      edit.addEventListener("click", () => fillForm(join));
      items.append(edit);
      menu.append(items);
      return make(
        "li",
        { "data-state": state, "data-topic": topic },
        make("span", { class: "dot", title: STATES[state] }),
        make(
          "div",
          { class: "channel" },
          make("span", { class: "mono name" }, topic.replace(/^realtime:(?=.)/, join.kind === "legacy" ? "realtime:" : "")),
          make("span", { class: "words" }, reason ? `${STATES[state]}: ${reason}` : state === "joined" ? words : `${STATES[state]} · ${words}`),
        ),
        menu,
        leave,
      );
    }),
  );
  byId("rows").dataset.joined = String(connection.channels.size);
  showSentence();
  showSending();
  showPresence();
};

const changed = () => {
  const link = writeLink({
    joins: joins(),
    query: byId("search").value.trim(),
    hidden: isHiddenAsAtFirst() ? [] : [...log.hidden],
    path: connection.path,
  });
  // Not in the history: it would be a step back for each word that is searched.
  history.replaceState(null, "", link ? `#${link}` : location.pathname);
  showSentence();
};

const isHiddenAsAtFirst = () => log.hidden.size === HIDDEN_AT_FIRST.length && HIDDEN_AT_FIRST.every((kind) => log.hidden.has(kind));

const showSentence = () => {
  const watching = watchingInWords(joins());
  const showing = log.terms.length ? ` Showing those ${queryInWords(log.terms)}.` : "";
  const text = watching + showing;
  if (byId("sentence").textContent !== text) byId("sentence").textContent = text;
  const isEmpty = log.length === 0;
  byId("empty").hidden = !isEmpty;
  if (!isEmpty) return;
  byId("empty-words").textContent = !joins().length
    ? "Nothing is joined yet. Say at the left what you want to hear, and press Join: each change appears here the moment its transaction commits."
    : log.size
      ? "Nothing that has arrived is shown: the search or the buttons above leave it out."
      : "Joined, and quiet. Change a row in the database, with psql or your application, and it appears here the moment the transaction commits.";
};

// -------------------------------------------------------------------------------------------------- the join form

const bindingRow = (binding = { event: "*", schema: "public", table: "" }) => {
  const row = byId("binding").content.firstElementChild.cloneNode(true);
  for (const input of row.querySelectorAll("[data-part]")) {
    const value = binding[input.dataset.part];
    input.value = Array.isArray(value) ? value.join(",") : (value ?? "");
  }
  row.querySelector("[data-remove]").addEventListener("click", () => {
    row.remove();
    showPreview();
  });
  byId("bindings").append(row);
};

const readForm = () => {
  const form = byId("join-form");
  if (form.elements.kind.value === "legacy") {
    const topic = byId("topic").value.trim();
    return { kind: "legacy", topic: topic.startsWith("realtime:") || topic.includes(":") ? topic : topic && `realtime:${topic}` };
  }
  const bindings = [...byId("bindings").querySelectorAll(".binding")].map((row) => {
    const value = (part) => row.querySelector(`[data-part="${part}"]`).value.trim();
    const select = value("select").split(",").map((name) => name.trim()).filter(Boolean);
    return {
      event: value("event") || "*",
      schema: value("schema") || "*",
      ...(value("table") && { table: value("table") }),
      ...(value("filter") && { filter: value("filter") }),
      ...(select.length && { select }),
    };
  });
  const name = byId("channel").value.trim();
  const flags = ["broadcast", "self", "ack", "presence", "private"].filter((id) => byId(id).checked);
  return {
    kind: "current",
    topic: name && `realtime:${name.replace(/^realtime:/, "")}`,
    bindings,
    ...Object.fromEntries(flags.map((flag) => [flag, true])),
    ...(byId("presence").checked && byId("key").value.trim() && { key: byId("key").value.trim() }),
  };
};

const fillForm = (join) => {
  const form = byId("join-form");
  form.elements.kind.value = join.kind;
  if (join.kind === "legacy") byId("topic").value = join.topic;
  else {
    byId("channel").value = join.topic.replace(/^realtime:/, "");
    for (const row of byId("bindings").querySelectorAll(".binding")) row.remove();
    for (const binding of join.bindings ?? []) bindingRow(binding);
    for (const id of ["broadcast", "self", "ack", "presence", "private"]) byId(id).checked = Boolean(join[id]);
    byId("key").value = join.key ?? "";
  }
  showPreview();
  (join.kind === "legacy" ? byId("topic") : byId("channel")).focus();
};

const showPreview = () => {
  const { kind } = byId("join-form").elements;
  for (const part of byId("join-form").querySelectorAll("[data-kind]")) part.hidden = part.dataset.kind !== kind.value;
  const join = readForm();
  const words = join.topic ? joinInWords(join) : "";
  byId("preview").textContent = words && words[0].toUpperCase() + words.slice(1);
  byId("join").textContent = connection.channels.has(join.topic) ? "Join anew" : "Join";
  for (const id of ["self", "ack"]) byId(id).disabled = !byId("broadcast").checked;
  byId("key").disabled = !byId("presence").checked;
};

byId("add-binding").addEventListener("click", () => {
  bindingRow();
  showPreview();
  byId("bindings").lastElementChild.querySelector('[data-part="table"]').focus();
});

byId("join-form").addEventListener("input", showPreview);

byId("join-form").addEventListener("submit", (event) => {
  event.preventDefault();
  const join = readForm();
  if (!join.topic) {
    (join.kind === "legacy" ? byId("topic") : byId("channel")).focus();
    return;
  }
  connection.join(join);
  changed();
  showPreview();
});

// -------------------------------------------------------------------------------------------------- server, token

const showServer = () => {
  byId("server").value = endpoint();
  byId("paths").replaceChildren(
    ...["/socket", "/realtime/v1"].map((path) => make("option", { value: endpoint().replace(/\/(socket|realtime\/v1)$/, path) })),
  );
};

const readServer = () => {
  try {
    return new URL(byId("server").value.trim().replace(/^http/, "ws").replace(/^(?!\w+:\/\/)/, "ws://"));
  } catch {
    return null;
  }
};

byId("server").addEventListener("input", () => {
  const url = readServer();
  const isElsewhere = url !== null && url.host !== location.host;
  byId("elsewhere").hidden = !isElsewhere;
  if (isElsewhere) byId("elsewhere-link").href = `${url.protocol === "wss:" ? "https" : "http"}://${url.host}/inspector${location.hash}`;
});

const useServer = () => {
  const url = readServer();
  if (url === null || url.host !== location.host) return;
  connection.setPath(url.pathname.startsWith("/realtime/v1") ? "/realtime/v1/websocket" : "/socket/websocket");
  showServer();
  changed();
};

byId("server").addEventListener("change", useServer);

byId("server-form").addEventListener("submit", (event) => {
  event.preventDefault();
  useServer();
  const token = byId("token").value.trim();
  if (token !== (connection.token ?? "")) connection.setToken(token);
  else if (connection.state === "refused") connection.open();
  showIdentity();
});

const showIdentity = () => {
  const { token } = connection;
  const identity = byId("identity");
  delete identity.dataset.state;
  if (!token) {
    identity.textContent = "It stays in this tab’s memory, and is never part of a link.";
    return;
  }
  const claims = readToken(token);
  if (claims === null) {
    identity.textContent = "This does not look like a token (three parts with dots between); the server will say.";
    identity.dataset.state = "bad";
    return;
  }
  const who = [claims.sub && `sub ${claims.sub}`, claims.role && `role ${claims.role}`].filter(Boolean).join(", ") || "no sub, no role";
  if (typeof claims.exp !== "number") {
    identity.textContent = `${who}; it does not expire.`;
    return;
  }
  const seconds = Math.round(claims.exp - Date.now() / 1000);
  const duration = Math.abs(seconds) >= 7200 ? `${Math.round(Math.abs(seconds) / 3600)} h` : Math.abs(seconds) >= 120 ? `${Math.round(Math.abs(seconds) / 60)} min` : `${Math.abs(seconds)} s`;
  identity.textContent = seconds > 0 ? `${who}; expires in ${duration}.` : `${who}; expired ${duration} ago.`;
  if (seconds <= 0) identity.dataset.state = "bad";
};
setInterval(() => connection.token && connection.state === "live" && showIdentity(), 10_000);

byId("retry").addEventListener("click", () => connection.open());

// -------------------------------------------------------------------------------------------------- broadcast

const channelsWith = (flag) => [...connection.channels.values()].filter(({ join, state }) => join[flag] && state === "joined").map(({ join }) => join);

const fillSelect = (select, topics) => {
  const before = select.value;
  if ([...select.options].map((option) => option.value).join("\n") === topics.join("\n")) return;
  select.replaceChildren(...topics.map((topic) => make("option", { value: topic }, topic.replace(/^realtime:/, ""))));
  if (topics.includes(before)) select.value = before;
};

const showSending = () => {
  const topics = channelsWith("broadcast").map((join) => join.topic);
  fillSelect(byId("send-channel"), topics);
  byId("send-empty").hidden = topics.length > 0;
  byId("send-form").hidden = byId("copy-curl").hidden = topics.length === 0;
};

const readJson = (input, noteElement) => {
  try {
    const value = JSON.parse(input.value.trim() || "{}");
    input.removeAttribute("aria-invalid");
    return { value };
  } catch (error) {
    input.setAttribute("aria-invalid", "true");
    noteElement.textContent = `That is no JSON: ${error.message}`;
    noteElement.dataset.state = "bad";
    input.focus();
    return null;
  }
};

const say = (element, text, state = "") => {
  element.textContent = text;
  element.dataset.state = state;
};

byId("send-form").addEventListener("submit", async (event) => {
  event.preventDefault();
  const read = readJson(byId("send-payload"), byId("send-note"));
  if (read === null) return;
  const topic = byId("send-channel").value;
  const channel = connection.channels.get(topic);
  const isAnswered = Boolean(channel?.join.ack);
  const sentAt = performance.now();
  try {
    const reply = await connection.push(topic, "broadcast", { type: "broadcast", event: byId("send-event").value, payload: read.value }, { isAnswered });
    if (reply === null) say(byId("send-note"), "sent");
    else if (reply.status === "ok") say(byId("send-note"), `acknowledged in ${milliseconds(performance.now() - sentAt)}`, "good");
    else say(byId("send-note"), `refused: ${reply.response?.reason ?? JSON.stringify(reply.response)}`, "bad");
  } catch (error) {
    say(byId("send-note"), error.message, "bad");
  }
});

byId("copy-curl").addEventListener("click", () => {
  const read = readJson(byId("send-payload"), byId("send-note"));
  if (read === null) return;
  const topic = byId("send-channel").value;
  const isPrivate = Boolean(connection.channels.get(topic)?.join.private);
  copy(curl({ topic, event: byId("send-event").value, payload: read.value, isPrivate }, { endpoint: endpoint(), isSecured }), byId("copy-curl"));
});

// -------------------------------------------------------------------------------------------------- presence

const takePresence = (topic, event, payload) => {
  if (event === "presence_state") presence.set(topic, new Map(Object.entries(payload ?? {}).map(([key, { metas }]) => [key, metas])));
  else if (event === "presence_diff") {
    const people = presence.get(topic) ?? new Map();
    presence.set(topic, people);
    for (const [key, { metas }] of Object.entries(payload?.joins ?? {})) {
      const refs = new Set(metas.map((meta) => meta.phx_ref));
      people.set(key, [...(people.get(key) ?? []).filter((meta) => !refs.has(meta.phx_ref)), ...metas]);
    }
    for (const [key, { metas }] of Object.entries(payload?.leaves ?? {})) {
      const refs = new Set(metas.map((meta) => meta.phx_ref));
      const left = (people.get(key) ?? []).filter((meta) => !refs.has(meta.phx_ref));
      if (left.length) people.set(key, left);
      else people.delete(key);
    }
  } else return;
  showPresence();
};

const MAX_PEOPLE = 200;

const showPresence = () => {
  const topics = channelsWith("presence").map((join) => join.topic);
  fillSelect(byId("presence-channel"), topics);
  byId("presence-empty").hidden = topics.length > 0;
  byId("presence-form").hidden = topics.length === 0;
  const people = [...(presence.get(byId("presence-channel").value) ?? [])];
  byId("presence-count").textContent = topics.length ? `${people.length} here` : "";
  byId("people").replaceChildren(
    ...people.slice(0, MAX_PEOPLE).map(([key, metas]) =>
      make(
        "li",
        {},
        make("span", { class: "mono name", title: key }, key),
        ...metas.map((meta) => {
          const { phx_ref, phx_ref_prev, ...rest } = meta;
          return make("code", { class: "meta", title: `phx_ref ${phx_ref}` }, JSON.stringify(rest));
        }),
      ),
    ),
    ...(people.length > MAX_PEOPLE ? [make("li", { class: "muted" }, `and ${people.length - MAX_PEOPLE} more`)] : []),
  );
};

byId("presence-channel").addEventListener("change", showPresence);

const track = async (event, payload) => {
  try {
    const reply = await connection.push(byId("presence-channel").value, "presence", { type: "presence", event, payload });
    if (reply.status === "ok") say(byId("presence-note"), event === "track" ? "tracked" : "untracked", "good");
    else say(byId("presence-note"), `refused: ${reply.response?.reason ?? JSON.stringify(reply.response)}`, "bad");
  } catch (error) {
    say(byId("presence-note"), error.message, "bad");
  }
};

byId("presence-form").addEventListener("submit", (event) => {
  event.preventDefault();
  const read = readJson(byId("presence-payload"), byId("presence-note"));
  if (read !== null) track("track", read.value);
});

byId("untrack").addEventListener("click", () => track("untrack", {}));

// -------------------------------------------------------------------------------------------------- the list

let isMeterAsked = false;

const showMeters = () => {
  if (isMeterAsked) return;
  isMeterAsked = true;
  setTimeout(() => {
    isMeterAsked = false;
    drawMeters();
  }, 250);
};

const drawMeters = () => {
  const { now, perSecond } = log.rates;
  byId("rate").textContent = `${now.toLocaleString("en")}/s`;
  const full = perSecond.slice(0, -1); // without the second that has just begun
  const most = Math.max(1, ...full);
  const points = full.map((count, second) => `L${(second * 120) / (full.length - 1)} ${(23 - (22 * count) / most).toFixed(1)}`);
  byId("spark").setAttribute("d", `M0 24${points.join("")}L120 24Z`);
  const [half, most99] = [log.percentile(0.5), log.percentile(0.99)];
  byId("latency").textContent = half === null ? "" : `p50 ${milliseconds(half)} · p99 ${milliseconds(most99)}`;
  for (const button of byId("kinds").children) {
    const count = log.counts.get(button.dataset.filter) ?? 0;
    button.querySelector(".count").textContent = count ? count.toLocaleString("en") : "";
  }
  const dropped = log.total - log.size;
  byId("foot-count").textContent = log.size
    ? `${log.length === log.size ? log.size.toLocaleString("en") : `${log.length.toLocaleString("en")} of ${log.size.toLocaleString("en")}`} events` +
      (dropped > 0 && log.size >= 5_000 ? `; the oldest make room for the newest` : "")
    : "";
  byId("jump").hidden = rows.isPaused || rows.isFollowing;
  showSentence();
};
setInterval(drawMeters, 1_000);
byId("rows").addEventListener("scroll", () => (byId("jump").hidden = rows.isPaused || rows.isFollowing), { passive: true });
byId("jump").addEventListener("click", () => (byId("rows").scrollTop = 0));

let pausedAt = 0;

const showPaused = () => {
  byId("pause").setAttribute("aria-pressed", String(rows.isPaused));
  const waiting = log.total - pausedAt;
  byId("pause").textContent = rows.isPaused ? `Go on${waiting ? ` (${waiting.toLocaleString("en")})` : ""}` : "Pause";
};

const pause = () => {
  pausedAt = log.total;
  rows.pause(!rows.isPaused);
  showPaused();
  drawMeters();
};

const clear = () => {
  log.clear();
  log.total = 0;
  pausedAt = 0;
  rows.select(null);
  rows.reset();
  showPaused();
  drawMeters();
};

byId("pause").addEventListener("click", pause);
byId("clear").addEventListener("click", clear);

const WORDS = { broadcast: "broadcast", presence: "presence", system: "system", protocol: "protocol" };

byId("kinds").append(
  ...KINDS.map((kind) => {
    const button = make(
      "button",
      { type: "button", "aria-pressed": String(!log.hidden.has(kind)), "data-filter": kind, class: "kind" },
      make("span", {}, WORDS[kind] ?? kind),
      make("span", { class: "count" }),
    );
    button.addEventListener("click", () => {
      const isShown = log.hidden.has(kind);
      log.show(kind, isShown);
      button.setAttribute("aria-pressed", String(isShown));
      rows.reset();
      drawMeters();
      changed();
    });
    return button;
  }),
);

let searchTimer = null;

byId("search").addEventListener("input", () => {
  clearTimeout(searchTimer);
  searchTimer = setTimeout(search, 120);
});

const search = () => {
  log.search(parseQuery(byId("search").value));
  rows.reset();
  drawMeters();
  changed();
};

// -------------------------------------------------------------------------------------------------- one event

const openDetail = (entry) => {
  byId("detail").hidden = entry === null;
  byId("events").dataset.detail = entry === null ? "closed" : "open";
  if (entry === null) return;
  const actions = [];
  if (entry.kind !== "note") {
    actions.push({ text: "Copy JSON", run: (button) => copy(pretty(whole(entry)), button) });
    const join = connection.channels.get(entry.topic)?.join;
    if (join) actions.push({ text: "JavaScript", title: "Copy a program that joins the same", run: (button) => copy(javascript(join, { endpoint: endpoint(), isSecured }), button) });
    if (entry.kind === "broadcast") {
      const { event, payload } = entry.payload;
      actions.push({ text: "curl", title: "Copy a command that sends it again", run: (button) => copy(curl({ topic: entry.topic, event, payload, isPrivate: join?.private }, { endpoint: endpoint(), isSecured }), button) });
    }
    if (join && entry.position) {
      actions.push({ text: "tail", title: "Copy a command that goes on after this change, in a terminal", run: (button) => copy(tailCommand(join, { endpoint: endpoint(), since: entry.position }), button) });
      actions.push({
        text: "Replay from here",
        title: "Join anew, and get what came after this change once more",
        run: () => {
          note("good", "replay", "Replay", `asked for what came after ${entry.position}`, entry.topic);
          connection.join(join, { since: entry.position });
        },
      });
    }
  }
  showDetail(byId("detail"), entry, { actions, skew: log.skew, close: () => closeDetail() });
  byId("detail").scrollTop = 0;
  drawMeters();
};

const closeDetail = () => {
  rows.select(null);
  byId("rows").focus();
};

/** What is copied and exported of an event. */
const whole = ({ at, direction, topic, event, payload, position, kind }) => ({
  at: new Date(at).toISOString(),
  direction,
  topic,
  event,
  ...(kind === "change" && position && { position }),
  payload,
});

const download = (name, type, text) => {
  const url = URL.createObjectURL(new Blob([text], { type }));
  const link = make("a", { href: url, download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(url), 60_000);
};

for (const button of document.querySelectorAll("[data-export]")) {
  button.addEventListener("click", () => {
    const events = (rows.held ?? log.shown()).filter((entry) => entry.kind !== "note").map(whole);
    const stamp = new Date().toISOString().slice(0, 19).replaceAll(":", "");
    if (button.dataset.export === "json") download(`walcast-${stamp}.json`, "application/json", JSON.stringify(events, null, 1));
    else download(`walcast-${stamp}.ndjson`, "application/x-ndjson", events.map((event) => `${JSON.stringify(event)}\n`).join(""));
    byId("take").open = false;
  });
}

const copy = async (text, button) => {
  const before = button?.textContent;
  let isCopied = true;
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    // No clipboard on plain http: an element that is selected can be copied all the same.
    const area = make("textarea", { class: "visually-hidden", "aria-hidden": "true" });
    area.value = text;
    (button?.closest("dialog, .detail, .menu") ?? document.body).append(area);
    area.select();
    isCopied = document.execCommand("copy");
    area.remove();
    button?.focus();
  }
  byId("announce").textContent = isCopied ? "Copied" : "It could not be copied";
  if (button && !button.dataset.busy) {
    button.dataset.busy = "true";
    button.textContent = isCopied ? "Copied" : "Not copied";
    setTimeout(() => {
      button.textContent = before;
      delete button.dataset.busy;
      button.closest(".menu")?.removeAttribute("open");
    }, 1_200);
  }
};

byId("copy-link").addEventListener("click", () => copy(location.href, byId("copy-link")));

// A menu closes when something else is pressed.
addEventListener("click", ({ target }) => {
  for (const menu of document.querySelectorAll(".menu[open]")) if (!menu.contains(target)) menu.open = false;
});

// -------------------------------------------------------------------------------------------------- the keyboard

const KEYS = {
  "/": () => byId("search").focus(),
  p: pause,
  x: clear,
  j: () => rows.move(1),
  ArrowDown: () => rows.move(1),
  k: () => rows.move(-1),
  ArrowUp: () => rows.move(-1),
  PageDown: () => rows.move(10),
  PageUp: () => rows.move(-10),
  g: () => rows.first(),
  Home: () => rows.first(),
  Enter: () => rows.selected || rows.move(0),
  Escape: () => rows.selected && closeDetail(),
  c: () => rows.selected && copy(pretty(whole(rows.selected)), byId("detail").querySelector(".actions button")),
  t: () => (byId("join-form").elements.kind.value === "legacy" ? byId("topic") : byId("channel")).focus(),
  l: () => copy(location.href),
  "?": () => byId("help").showModal(),
};
const LIST_KEYS = new Set(["ArrowDown", "ArrowUp", "PageDown", "PageUp", "Home", "Enter"]);

addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || byId("help").open) return;
  const menu = event.target.closest?.(".menu[open]");
  if (menu && event.key === "Escape") {
    menu.open = false;
    menu.querySelector("summary").focus();
    return;
  }
  if (event.target.matches("input:not([type=checkbox], [type=radio]), textarea, select")) {
    if (event.key === "Escape") event.target.blur();
    return;
  }
  if (!Object.hasOwn(KEYS, event.key)) return;
  // The arrows scroll and the like, but where the list has the focus.
  if (LIST_KEYS.has(event.key) && document.activeElement !== byId("rows")) return;
  event.preventDefault();
  KEYS[event.key]();
});

byId("help-open").addEventListener("click", () => byId("help").showModal());

// -------------------------------------------------------------------------------------------------- the beginning

const openLink = () => {
  const { joins: wanted, query, hidden, path } = readLink(location.hash);
  for (const topic of [...connection.channels.keys()]) {
    if (!wanted.some((join) => join.topic === topic)) connection.leave(topic);
  }
  connection.setPath(path);
  byId("search").value = query;
  log.terms = parseQuery(query);
  log.hidden = new Set(hidden ?? HIDDEN_AT_FIRST);
  log.search(log.terms);
  for (const button of byId("kinds").children) button.setAttribute("aria-pressed", String(!log.hidden.has(button.dataset.filter)));
  for (const join of wanted) {
    const there = connection.channels.get(join.topic)?.join;
    if (JSON.stringify(there) !== JSON.stringify(join)) connection.join(join);
  }
  if (wanted.length) fillForm(wanted[0]);
  document.activeElement?.blur();
  showServer();
  showPreview();
  rows.reset();
};

bindingRow({ event: "*", schema: "public", table: "demo" in document.body.dataset ? "todos" : "" });
openLink();
addEventListener("hashchange", openLink);
showChannels();
drawMeters();
connection.open();
