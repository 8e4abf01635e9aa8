// The dashboard: one websocket that says how everything is once a second, and a page that follows. What is done goes by
// HTTP, with a CSRF token. Libraries: none.

import { morph, number } from "./dashboard-dom.js";
import * as views from "./dashboard-views.js";

const RECONNECT_MS = [500, 1_000, 2_000, 5_000];
const SILENT_MS = 6_000;
const TOAST_MS = 6_000;
const TYPING_MS = 200;
const PAGE = 50;
const SECTIONS = ["overview", "slots", "clients", "topics", "tables", "processes", "errors"];

const byId = (id) => document.getElementById(id);
const { live, disconnect, dropSlot, login, superuser } = document.body.dataset;

const model = {
  state: null,
  history: [],
  lists: {},
  section: "overview",
  wanted: {
    clients: { search: "", sort: "connected", descending: true, limit: PAGE },
    topics: { search: "", limit: PAGE },
    tables: { search: "" },
  },
};

// ------------------------------------------------------------------------------------------------ the page

const socketUrl = `${location.protocol === "https:" ? "wss" : "ws"}://${location.host}/socket`;

const showVerdict = ({ verdict, now, database, processes }) => {
  const section = byId("verdict");
  section.dataset.level = verdict.level;
  const count = processes.length;
  const where = database.version ? `PostgreSQL ${database.version} at ${database.host}` : "the database was not reached";
  const note = `${where} · ${count} ${count === 1 ? "process" : "processes"} · ${new Date(now * 1000).toISOString().slice(11, 19)} UTC`;
  section.querySelector("h1").textContent = verdict.sentence;
  byId("where").textContent = note;
  // Who listens is told what changes in kind: not each millisecond of a latency.
  const kind = verdict.level + verdict.sentence.replace(/[\d.,]+/g, "");
  if (kind !== byId("spoken").dataset.kind) {
    byId("spoken").dataset.kind = kind;
    byId("spoken").textContent = verdict.sentence;
  }
};

const showCounts = ({ slots, clients, topics, processes, problems }) => {
  const counts = { slots: slots.length, clients, topics, processes: processes.length, errors: problems.length, tables: model.lists.tables?.tables?.length };
  for (const element of document.querySelectorAll("[data-count]")) {
    const count = counts[element.dataset.count];
    element.textContent = count === undefined ? "" : number(count);
    element.hidden = count === undefined;
  }
  const worst = problems.some(({ level }) => level !== "WARNING") ? "bad" : problems.length ? "fair" : "";
  document.querySelector('[data-count="errors"]').dataset.level = worst;
};

const render = () => {
  if (!model.state) return;
  showVerdict(model.state);
  showCounts(model.state);
  byId("verdict").classList.toggle("small", model.section !== "overview");
  morph(
    byId("view"),
    views[model.section]({
      state: model.state,
      history: model.history,
      lists: model.lists,
      wanted: model.wanted[model.section] ?? {},
      isSuperuser: superuser === "true",
      socketUrl,
    }),
  );
};

const look = () => {
  if (socket?.readyState === WebSocket.OPEN) socket.send(JSON.stringify({ section: model.section, ...model.wanted[model.section] }));
};

const go = () => {
  const wanted = location.hash.slice(1);
  model.section = SECTIONS.includes(wanted) ? wanted : "overview";
  for (const link of document.querySelectorAll("#sections a")) {
    if (link.dataset.section === model.section) link.setAttribute("aria-current", "true");
    else link.removeAttribute("aria-current");
  }
  document.querySelector('#sections [aria-current="true"]').scrollIntoView({ block: "nearest", inline: "nearest" });
  document.title = `${model.section[0].toUpperCase()}${model.section.slice(1)} · Walcast`;
  byId("view").replaceChildren();
  byId("view").dataset.section = model.section;
  look();
  render();
};

addEventListener("hashchange", () => {
  go();
  scrollTo(0, 0);
});

// ------------------------------------------------------------------------------------------------ the socket

let socket = null;
let attempts = 0;
let silence = null;

const setStatus = (state, text) => {
  byId("status").dataset.state = state;
  byId("status-text").textContent = text;
};

const receive = (message) => {
  clearTimeout(silence);
  silence = setTimeout(() => socket?.close(), SILENT_MS);
  setStatus("live", "live");
  switch (message.type) {
    case "history":
      model.history = message.rows;
      break;
    case "state":
      model.state = message;
      if (message.sample[0] > views.newestAt(model.history)) model.history.push(message.sample);
      if (model.history.length > views.SPAN_S) model.history.splice(0, model.history.length - views.SPAN_S);
      break;
    default:
      model.lists[message.type] = message;
  }
  render();
};

const connect = () => {
  const url = new URL(live, location.href);
  url.protocol = location.protocol === "https:" ? "wss:" : "ws:";
  let wasOpen = false;
  const current = (socket = new WebSocket(url));
  current.onopen = () => {
    wasOpen = true;
    attempts = 0;
    look();
  };
  current.onmessage = ({ data }) => receive(JSON.parse(data));
  current.onclose = async () => {
    if (current !== socket) return;
    clearTimeout(silence);
    setStatus("reconnecting", "reconnecting");
    // A browser does not say why; the page itself does: whoever is signed out is sent to the door.
    if (!wasOpen || attempts > 1) {
      try {
        const answer = await fetch(location.pathname, { redirect: "manual", cache: "no-store" });
        if (answer.type === "opaqueredirect") location.assign(`${login}?next=${encodeURIComponent(location.pathname + location.hash)}`);
      } catch {
        // the server is away: try again
      }
    }
    setTimeout(connect, RECONNECT_MS[Math.min(attempts++, RECONNECT_MS.length - 1)]);
  };
};

// ------------------------------------------------------------------------------------------------ what one does

let toastTimer = null;

const toast = (words, kind = "good") => {
  const element = byId("toast");
  element.hidden = false;
  element.dataset.kind = kind;
  element.textContent = words;
  clearTimeout(toastTimer);
  toastTimer = setTimeout(() => (element.hidden = true), TOAST_MS);
};

const isConfirmed = (title, text, yes) =>
  new Promise((resolve) => {
    byId("confirm-title").textContent = title;
    byId("confirm-text").textContent = text;
    byId("confirm-yes").textContent = yes;
    const dialog = byId("confirm");
    dialog.returnValue = "cancel";
    dialog.addEventListener("close", () => resolve(dialog.returnValue === "yes"), { once: true });
    dialog.showModal();
  });

const post = async (url, fields) => {
  const csrf = document.querySelector("#sign-out [name=csrfmiddlewaretoken]").value;
  try {
    const answer = await fetch(url, { method: "POST", headers: { "X-CSRFToken": csrf }, body: new URLSearchParams(fields), redirect: "manual" });
    const { ok, words } = await answer.json();
    toast(words, ok ? "good" : "bad");
  } catch {
    toast("The server did not answer. Are you still signed in?", "bad");
  }
  look();
};

const actions = {
  disconnect: async ({ process, id, name }) => {
    const text = "Its websocket is closed. Most clients reconnect by themselves; what keeps one out is its token.";
    if (await isConfirmed(`Disconnect ${name}?`, text, "Disconnect")) await post(disconnect, { process, id, name });
  },
  "drop-slot": async ({ name }) => {
    const text = "What its reader has not read yet is lost to it, and cannot be had again. PostgreSQL then frees the log that it kept.";
    if (await isConfirmed(`Drop the slot ${name}?`, text, "Drop it")) await post(dropSlot, { name });
  },
  more: () => {
    model.wanted[model.section].limit += 2 * PAGE;
    look();
  },
};

document.addEventListener("click", async ({ target }) => {
  const button = target.closest?.("button");
  if (!button) return;
  const { action, sort, copy } = button.dataset;
  if (action) await actions[action](button.dataset);
  if (sort) {
    const wanted = model.wanted.clients;
    wanted.descending = wanted.sort === sort ? !wanted.descending : ["messages", "bytes", "queued", "topics", "connected"].includes(sort);
    wanted.sort = sort;
    look();
    render();
  }
  if (copy) {
    try {
      await navigator.clipboard.writeText(copy);
      toast("Copied.");
    } catch {
      toast("The browser does not let this page copy; select the text instead.", "bad");
    }
  }
});

let typing = null;

document.addEventListener("input", ({ target }) => {
  const { search } = target.dataset ?? {};
  if (!search) return;
  model.wanted[search].search = target.value.trim();
  clearTimeout(typing);
  typing = setTimeout(() => {
    look();
    render();
  }, TYPING_MS);
});

document.addEventListener("keydown", (event) => {
  if (event.key !== "/" || event.target.matches("input, textarea") || event.ctrlKey || event.metaKey) return;
  const box = document.querySelector("#view input[type=search]");
  if (box) {
    event.preventDefault();
    box.focus();
  }
});

// A menu closes when one clicks beside it, or presses Escape.
document.addEventListener("click", ({ target }) => {
  const menu = document.querySelector(".person[open]");
  if (menu && !menu.contains(target)) menu.open = false;
});
document.addEventListener("keydown", ({ key }) => {
  const menu = document.querySelector(".person[open]");
  if (menu && key === "Escape") {
    menu.open = false;
    menu.querySelector("summary").focus();
  }
});

go();
connect();
