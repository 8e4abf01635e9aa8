// One event, opened: its facts, old beside new, its JSON, and ways to take it along.

import { clock, make } from "./rows.js";
import { compareRows, lateness, pretty, shorten } from "./words.js";

const shown = (value) => (value === undefined ? "" : value === null ? "NULL" : typeof value === "object" ? JSON.stringify(value) : String(value));

const fact = (name, value, attributes = {}) => make("div", {}, make("dt", {}, name), make("dd", attributes, value));

const differences = (entry) => {
  const rows = compareRows(entry);
  if (rows.length === 0) return [];
  const isUpdate = entry.event === "UPDATE";
  const hasOld = isUpdate && rows.some((row) => row.old !== undefined);
  const heads = ["column", ...(hasOld ? ["old", "new"] : [entry.event === "DELETE" ? "what the log knows of it" : "value"])];
  const cell = (value, kind) =>
    make("td", { class: `mono ${kind}`, "data-null": value === null, "data-missing": value === undefined }, shown(value));
  const table = make(
    "table",
    { class: "columns" },
    make("caption", { class: "visually-hidden" }, "The columns of the row"),
    make("thead", {}, make("tr", {}, ...heads.map((head) => make("th", { scope: "col" }, head)))),
    make(
      "tbody",
      {},
      ...rows.map((row) =>
        make(
          "tr",
          { "data-changed": row.isChanged },
          make("th", { scope: "row" }, row.name, make("span", { class: "type" }, `${row.isKey ? " key" : ""} ${row.type ?? ""}`)),
          ...(hasOld ? [cell(row.old, "old"), cell(row.new, "new")] : [cell(row.new ?? row.old, "value")]),
        ),
      ),
    ),
  );
  const parts = [make("div", { class: "scroll", tabindex: "0", role: "group", "aria-label": "The columns of the row" }, table)];
  if (isUpdate && !hasOld && entry.schema) {
    parts.push(
      make(
        "p",
        { class: "hint" },
        "PostgreSQL logs the old row only with ",
        make("code", {}, `ALTER TABLE ${entry.schema}.${entry.table} REPLICA IDENTITY FULL`),
        ".",
      ),
    );
  }
  return parts;
};

/**
 * Fill `element` with an entry. `actions` are `[{text, title, run}]`, `skew` as the log has it, `close` is called by ×.
 */
export const showDetail = (element, entry, { actions, skew, close }) => {
  const isChange = entry.kind === "change";
  const title = isChange && entry.table ? `${entry.schema}.${entry.table}` : entry.kind === "note" ? entry.payload.title : entry.topic;
  const closer = make("button", { class: "quiet icon", "aria-label": "Close", type: "button" }, "×");
  closer.addEventListener("click", close);
  const head = make(
    "div",
    { class: "detail-head" },
    make("span", { class: "tag", "data-event": entry.kind === "note" ? `note-${entry.payload.level}` : entry.event }, entry.kind === "note" ? entry.payload.tag : entry.event.replace("phx_", "")),
    make("h3", {}, title),
    closer,
  );
  const late = lateness(entry, skew);
  const facts = make(
    "dl",
    { class: "facts" },
    fact(entry.direction === "out" ? "sent" : "arrived", clock(entry.at, true), { class: "mono" }),
    ...(isChange && entry.committedAt !== null ? [fact("committed", entry.isExact ? clock(entry.committedAt, true) : clock(entry.committedAt, true).slice(0, 19), { class: "mono" })] : []),
    ...(late === null ? [] : [fact("latency", late === "replayed" ? "replayed after a reconnect" : late, { class: "mono" })]),
    ...(entry.position ? [fact("position", entry.position, { class: "mono" })] : []),
    ...(title === entry.topic || entry.kind === "note" ? [] : [fact("topic", entry.topic, { class: "mono" })]),
    ...(entry.bytes ? [fact("size", `${entry.bytes.toLocaleString("en")} characters`)] : []),
    ...(entry.errors ? [fact("errors", entry.errors.join("; "), { class: "error" })] : []),
  );
  const bar = make("div", { class: "actions" });
  for (const { text, title: tip, run } of actions) {
    const button = make("button", { type: "button", title: tip ?? false }, text);
    button.addEventListener("click", () => run(button));
    bar.append(button);
  }
  const body = [head, facts];
  if (isChange) body.push(...differences(entry));
  if (entry.kind === "note") body.push(make("p", {}, entry.payload.text ?? ""));
  else {
    const whole = pretty(entry.payload);
    body.push(
      make("h4", {}, "Payload"),
      make("pre", { tabindex: "0", role: "group", "aria-label": "The payload" }, whole.length > 200_000 ? shorten(whole, 200_000) : whole),
    );
  }
  if (actions.length) body.splice(2, 0, bar);
  element.replaceChildren(...body);
};
