// The sections of the dashboard, each from what the server says to elements. No state is kept here.

import { bytes, duration, h, latency, marked, number } from "./dashboard-dom.js";
import { sparkline } from "./dashboard-charts.js";

export const SPAN_S = 300;
const [AT, CHANGES, MESSAGES, , P50, P99, QUEUED, SOCKETS, LAG_BYTES] = [0, 1, 2, 3, 4, 5, 6, 7, 8];

const ago = (at, now) => (at ? `${duration(Math.max(0, now - at))} ago` : "–");

const moment = (at) => (at ? new Date(at * 1000).toISOString().replace("T", " ").slice(0, 19) + " UTC" : "");

const time = (at, now) => h("time", { datetime: at ? new Date(at * 1000).toISOString() : null, title: moment(at) }, ago(at, now));

const tag = (text, kind, title = null) => h("span", { class: "badge", "data-kind": kind, title }, text);

const empty = (title, ...words) => h("div", { class: "blank" }, h("h3", {}, title), ...words);

const code = (text) => h("pre", { tabindex: "0" }, h("code", {}, text));

const copyable = (text, label) =>
  h("div", { class: "copyable" }, code(text), h("button", { type: "button", "data-copy": text, "aria-label": `Copy: ${label}` }, "Copy"));

const title = (words, note, ...more) =>
  h("div", { class: "section-head" }, h("h2", {}, words), note && h("p", { class: "muted" }, note), ...more);

const facts = (pairs) =>
  h("dl", { class: "facts" }, pairs.filter(Boolean).map(([name, ...value]) => h("div", {}, h("dt", {}, name), h("dd", {}, ...value))));

// ------------------------------------------------------------------------------------------------ overview

const station = (name, note) => h("li", { class: "station" }, h("strong", {}, name), h("span", {}, note));

const arrow = (index, label, rate, details, isBusy, level) =>
  h(
    "li",
    { class: "arrow", "data-busy": isBusy ? "true" : "false", "data-level": level, "data-key": `arrow-${index}`, "aria-label": label },
    h("span", { class: "way", "aria-hidden": "true" }, h("i"), h("i"), h("i")),
    h("strong", { class: "rate" }, rate),
    h("dl", {}, details.map(([name, value, kind]) => h("div", { "data-kind": kind ?? null }, h("dt", {}, name), h("dd", {}, value)))),
  );

const pipeline = (state) => {
  const [read, match, send] = state.arrows;
  const active = state.replicators.find(({ role }) => role === "active");
  const isLagging = (read.backlog_s ?? 0) > 5 && read.backlog_bytes > 0;
  const lag = read.backlog_bytes === null ? "unknown" : read.backlog_bytes === 0 ? "none" : bytes(read.backlog_bytes);
  const lagTime = read.backlog_bytes && read.backlog_s >= 1 ? `, ${duration(read.backlog_s)}` : "";
  return h(
    "ol",
    { class: "pipeline", "aria-label": "The way of a change, with what moves on it now" },
    station("PostgreSQL", state.database.version ? `${state.database.version} · ${state.database.database}` : active?.server_version ?? "not reached"),
    arrow(
      0,
      "from PostgreSQL to decode",
      `${number(read.changes_per_s)} changes/s`,
      [
        ["p50", latency(read.p50)],
        ["p99", latency(read.p99)],
        ["log", `${bytes(read.wal_per_s)}/s`],
        ["backlog", lag + lagTime, isLagging ? "warn" : null],
      ],
      read.changes_per_s > 0,
      isLagging ? "fair" : active ? "good" : "bad",
    ),
    station("decode", active ? `${active.host} (${active.pid})` : "nobody"),
    arrow(
      1,
      "from decode to match",
      `${number(match.changes_per_s)} changes/s`,
      [
        ["p50", latency(match.p50)],
        ["p99", latency(match.p99)],
        ["backlog", match.behind ? `${match.behind} of ${match.processes} behind` : "none", match.behind ? "warn" : null],
      ],
      match.changes_per_s > 0,
      match.behind ? "fair" : "good",
    ),
    station("match", `${number(state.topics)} ${state.topics === 1 ? "topic" : "topics"}`),
    arrow(
      2,
      "from match to send",
      `${number(send.messages_per_s)} messages/s`,
      [
        ["p50", latency(send.p50)],
        ["p99", latency(send.p99)],
        ["sent", `${bytes(send.bytes_per_s)}/s`],
        ["backlog", send.backlog_bytes ? bytes(send.backlog_bytes) : "none", send.backlog_bytes > 1e6 ? "warn" : null],
      ],
      send.messages_per_s > 0,
      "good",
    ),
    station("send", `${number(state.clients)} ${state.clients === 1 ? "client" : "clients"}`),
  );
};

const chart = (name, history, column, show, note, bridges = false) => {
  const values = history.map((row) => row[column]);
  const known = values.filter((value) => value !== null && value !== undefined);
  const newest = bridges ? known.at(-1) : values.at(-1);
  const most = known.length ? Math.max(...known) : null;
  return h(
    "figure",
    { class: "chart", "data-key": `chart-${column}` },
    h("figcaption", {}, h("span", { class: "name" }, name), h("span", { class: "muted" }, note)),
    h("strong", { class: "now" }, known.length ? show(newest) : "–"),
    h("span", { class: "most muted" }, known.length ? `most ${show(most)}` : "nothing yet"),
    sparkline(values, Math.max(60, values.length), bridges),
  );
};

const finding = ({ level, what, why, cure, section }, index, isFirst) =>
  h(
    "li",
    { class: "finding card", "data-level": level, "data-key": `finding-${what.replace(/[\d.,]+/g, "#")}` },
    isFirst ? null : h("h3", {}, what),
    h("p", {}, why),
    h("p", { class: "cure" }, h("strong", {}, "What to do: "), marked(cure)),
    h("a", { href: `#${section}` }, `See ${section[0].toUpperCase()}${section.slice(1)}`),
  );

export const overview = ({ state, history }) => [
  state.verdict.findings.length
    ? h("ul", { class: "findings" }, state.verdict.findings.map((item, index) => finding(item, index, index === 0)))
    : null,
  pipeline(state),
  h(
    "div",
    { class: "charts" },
    chart("Changes", history, CHANGES, (value) => `${number(value)}/s`, "decoded, a second"),
    chart("Messages", history, MESSAGES, (value) => `${number(value)}/s`, "to sockets, a second"),
    chart("Latency", history, P99, latency, "commit to socket, p99", true),
    chart("Lag", history, LAG_BYTES, bytes, "log not yet read"),
    chart("Clients", history, SOCKETS, number, "open sockets"),
    chart("Waiting", history, QUEUED, bytes, "not yet taken by clients"),
  ),
  h("p", { class: "muted foot" }, "The last minutes, five at most. Latencies beside the arrows are those of the last ten seconds, measured from the commit."),
].filter(Boolean);

// ------------------------------------------------------------------------------------------------ slots

const meter = (share, label) =>
  h("meter", { min: 0, max: 1, low: 0.5, high: 0.8, optimum: 0, value: Math.min(1, share).toFixed(3), "aria-label": label });

const slotState = (slot) => {
  if (slot.lost_because) return tag("lost", "bad", slot.lost_because);
  return slot.active ? tag("active", "good") : tag("inactive", "fair");
};

const headroom = ({ headroom: room, name }) => {
  if (!room) return h("span", { class: "muted" }, "no limit set: see max_slot_wal_keep_size");
  const left = room.left_s === null || room.left_s === undefined ? "" : `, about ${duration(room.left_s)} at the present rate`;
  return h(
    "span",
    { class: "headroom" },
    meter(room.share, `How much of ${room.name} the slot ${name} has used`),
    h("span", {}, `${Math.round(room.share * 100)} % of ${bytes(room.limit)} used; ${bytes(Math.max(0, room.limit - room.used))} left${left} `, h("code", {}, room.name)),
  );
};

const slot = (item, state, isSuperuser) =>
  h(
    "li",
    { class: "card slot", "data-key": `slot-${item.name}`, "data-ours": item.is_ours ? "true" : "false" },
    h(
      "div",
      { class: "card-head" },
      h("h3", {}, h("code", {}, item.name), item.is_ours ? tag("ours", "accent") : null, slotState(item)),
      item.active
        ? null
        : h(
            "button",
            {
              type: "button",
              class: "danger quiet",
              "data-action": "drop-slot",
              "data-name": item.name,
              disabled: !isSuperuser,
              title: isSuperuser ? null : "It takes a superuser",
            },
            "Drop",
          ),
    ),
    facts([
      ["Headroom", headroom(item)],
      ["Read by", item.active_pid ? `the backend ${item.active_pid}` : "nobody"],
      ["Kept on disk", bytes(item.retained_bytes)],
      ["Not acknowledged", bytes(item.lag_bytes)],
      item.is_ours && ["Not published", state.lag.bytes === null ? "unknown" : `${bytes(state.lag.bytes)}, ${duration(state.lag.s)}`],
      ["wal_status", item.wal_status ?? "–"],
      ["safe_wal_size", item.safe_wal_size === null ? "no limit" : bytes(item.safe_wal_size)],
      ["restart_lsn", h("code", {}, item.restart_lsn ?? "–")],
      ["confirmed_flush_lsn", h("code", {}, item.confirmed_flush_lsn ?? "–")],
      ["Plugin", `${item.plugin ?? item.slot_type}${item.temporary ? ", temporary" : ""}${item.failover ? ", failover" : ""}`],
      item.database && ["Database", item.database],
      item.catalog_xmin_age !== null && ["catalog_xmin age", `${number(item.catalog_xmin_age)} transactions`],
      item.inactive_since && ["Inactive since", item.inactive_since.replace("T", " ").slice(0, 19)],
      item.invalidation_reason && ["Invalidated", item.invalidation_reason],
    ]),
  );

export const slots = ({ state, isSuperuser }) => [
  title(
    "Replication slots",
    "A slot keeps PostgreSQL’s log until its reader has it. One that nobody reads keeps it for ever, until the disk is full.",
  ),
  state.slots.length
    ? h("ul", { class: "stack" }, state.slots.map((item) => slot(item, state, isSuperuser)))
    : empty(
        "There is no slot",
        h("p", {}, "The replicator makes its own when it first connects. A slot with a name keeps what is committed while Walcast is stopped:"),
        copyable("SLOT_NAME=walcast", "the setting"),
      ),
];

// ------------------------------------------------------------------------------------------------ clients

const COLUMNS = [
  ["address", "Client"],
  ["user", "User"],
  [null, "Protocol"],
  ["topics", "Topics"],
  ["messages", "Sent"],
  ["queued", "Waiting"],
  ["connected", "Connected"],
  ["heartbeat", "Heartbeat"],
];

const header = ([key, name], wanted) => {
  if (!key) return h("th", { scope: "col" }, name);
  const sorted = wanted.sort === key ? (wanted.descending ? "descending" : "ascending") : "none";
  return h(
    "th",
    { scope: "col", "aria-sort": sorted },
    h("button", { type: "button", "data-sort": key }, name, h("span", { "aria-hidden": "true" }, { ascending: " ↑", descending: " ↓", none: "" }[sorted])),
  );
};

const client = (row, now) => {
  const who = row.sub ?? (row.role ? "" : "anonymous");
  return h(
    "tr",
    { "data-key": `client-${row.process}-${row.id}` },
    h("td", { "data-label": "Client" }, h("span", { class: "mono strong" }, row.address), h("span", { class: "sub" }, row.library || "unknown library")),
    h("td", { "data-label": "User" }, h("span", { class: row.sub ? "" : "muted" }, who || "–"), row.role && h("span", { class: "sub" }, row.role)),
    h("td", { "data-label": "Protocol" }, row.protocol, h("span", { class: "sub" }, `vsn ${row.vsn}`)),
    h(
      "td",
      { "data-label": "Topics" },
      row.topic_count
        ? h(
            "details",
            {},
            h("summary", {}, row.topic_count === 1 ? h("span", { class: "mono clip" }, row.topics[0]) : `${row.topic_count} topics`),
            h("ul", {}, row.topics.map((topic) => h("li", { class: "mono" }, topic)), row.topic_count > row.topics.length ? h("li", {}, `and ${row.topic_count - row.topics.length} more`) : null),
          )
        : h("span", { class: "muted" }, "none joined"),
    ),
    h("td", { "data-label": "Sent" }, number(row.messages), h("span", { class: "sub" }, bytes(row.bytes))),
    h("td", { "data-label": "Waiting", "data-warn": row.queued_bytes > 1e6 ? "true" : null }, row.queued_bytes ? bytes(row.queued_bytes) : "0"),
    h("td", { "data-label": "Connected" }, time(row.connected_at, now)),
    h("td", { "data-label": "Heartbeat" }, row.heartbeat_at ? time(row.heartbeat_at, now) : h("span", { class: "muted" }, "none yet")),
    h(
      "td",
      { class: "act" },
      h("button", { type: "button", class: "quiet", "data-action": "disconnect", "data-process": row.process, "data-id": row.id, "data-name": row.address, "aria-label": `Disconnect ${row.address}` }, "Disconnect"),
    ),
  );
};

const found = ({ matching, total, rows, silent }, what, search) => {
  const words = search ? `${number(matching)} of ${number(total)} ${what}` : `${number(total)} ${what}`;
  const shown = rows.length < matching ? `, the first ${rows.length} are shown` : "";
  return words + shown + (silent ? `; ${silent} ${silent === 1 ? "process does" : "processes do"} not answer` : "");
};

export const searchBox = (section, label, placeholder, value) =>
  h(
    "div",
    { class: "search", "data-key": `search-${section}` },
    h("label", { for: `search-${section}`, class: "visually-hidden" }, label),
    h("input", { id: `search-${section}`, type: "search", placeholder, value, autocomplete: "off", spellcheck: "false", "data-search": section }),
  );

const waiting = h("p", { class: "muted" }, "Asking the processes…");

export const clients = ({ lists, wanted, state, socketUrl }) => {
  const list = lists.clients;
  const head = title("Clients", list ? found(list, list.total === 1 ? "client" : "clients", wanted.search) : null, searchBox("clients", "Search clients", "Address, user, role, topic, library", wanted.search ?? ""));
  if (!list) return [head, waiting.cloneNode(true)];
  if (!list.total) {
    return [
      head,
      empty("Nobody is connected", h("p", {}, "Any client of Supabase Realtime connects to this address, and appears here while it is open:"), copyable(socketUrl, "the address")),
    ];
  }
  if (!list.rows.length) return [head, empty("No client matches", h("p", {}, "The search looks at addresses, users, roles, topics and libraries."))];
  return [
    head,
    h(
      "div",
      { class: "card scroll", tabindex: "0", role: "group", "aria-label": "Clients" },
      h(
        "table",
        { class: "grid" },
        h("thead", {}, h("tr", {}, COLUMNS.map((column) => header(column, wanted)), h("th", { scope: "col" }, h("span", { class: "visually-hidden" }, "Action")))),
        h("tbody", {}, list.rows.map((row) => client(row, state.now))),
      ),
    ),
    list.rows.length < list.matching ? h("button", { type: "button", "data-action": "more", class: "more" }, "Show more") : null,
  ].filter(Boolean);
};

// ------------------------------------------------------------------------------------------------ topics

const KINDS = { legacy: "changes, legacy", postgres_changes: "postgres_changes", room: "broadcast, presence" };

export const topics = ({ lists, wanted }) => {
  const list = lists.topics;
  const head = title("Topics", list ? found(list, list.total === 1 ? "topic" : "topics", wanted.search) : null, searchBox("topics", "Search topics", "realtime:public:todos", wanted.search ?? ""));
  if (!list) return [head, waiting.cloneNode(true)];
  if (!list.total) {
    return [
      head,
      empty(
        "Nobody has joined a topic",
        h("p", {}, "A topic is what clients join. Those of 2021 name what they want to hear in it:"),
        h(
          "dl",
          { class: "grammar" },
          [
            ["realtime:*", "every change"],
            ["realtime:public", "a schema"],
            ["realtime:public:todos", "a table"],
            ["realtime:public:todos:id=eq.7", "rows with a value"],
          ].map(([name, meaning]) => h("div", {}, h("dt", {}, h("code", {}, name)), h("dd", {}, meaning))),
        ),
        h("p", {}, "Today’s clients give their channel any name, and say in the join what they want."),
      ),
    ];
  }
  if (!list.rows.length) return [head, empty("No topic matches")];
  return [
    head,
    h(
      "div",
      { class: "card scroll", tabindex: "0", role: "group", "aria-label": "Topics" },
      h(
        "table",
        { class: "grid" },
        h("thead", {}, h("tr", {}, ["Topic", "Members", "Events", "What it is", "Filters"].map((name) => h("th", { scope: "col" }, name)))),
        h(
          "tbody",
          {},
          list.rows.map((row) =>
            h(
              "tr",
              { "data-key": `topic-${row.topic}` },
              h("td", { "data-label": "Topic", class: "mono strong" }, row.topic),
              h("td", { "data-label": "Members" }, number(row.members)),
              h("td", { "data-label": "Events" }, `${number(row.events_per_s)}/s`),
              h("td", { "data-label": "What it is" }, row.kinds.map((kind) => KINDS[kind] ?? kind).join(" + ")),
              h(
                "td",
                { "data-label": "Filters" },
                row.filters.length
                  ? h("details", {}, h("summary", {}, row.filters.length === 1 ? h("span", { class: "mono clip" }, row.filters[0]) : `${row.filters.length} filters`), h("ul", {}, row.filters.map((text) => h("li", { class: "mono" }, text))))
                  : h("span", { class: "muted" }, row.kinds.includes("legacy") ? "in its name" : "none"),
              ),
            ),
          ),
        ),
      ),
    ),
    list.rows.length < list.matching ? h("button", { type: "button", "data-action": "more", class: "more" }, "Show more") : null,
  ].filter(Boolean);
};

// ------------------------------------------------------------------------------------------------ tables

const LEVELS = { good: ["heard", "good"], fair: ["heard in part", "fair"], bad: ["writes fail", "bad"], off: ["not heard", "quiet"] };

const table = (row) => {
  const [word, kind] = LEVELS[row.level];
  return h(
    "li",
    { class: "card table", "data-key": `table-${row.schema}.${row.name}`, "data-level": row.level },
    h("div", { class: "table-head" }, h("h3", {}, h("code", {}, `${row.schema}.${row.name}`)), tag(word, kind), h("span", { class: "muted rows" }, row.rows ? `about ${number(row.rows)} rows` : "")),
    h("p", { class: "receives" }, h("span", { class: "muted" }, "A subscriber gets: "), row.receives),
    facts([
      ["Published", row.published.length ? row.published.join(", ") : "no"],
      ["Replica identity", row.replica_identity],
      ["Primary key", row.has_primary_key ? "yes" : "no"],
      ["Row security", row.row_security ? "on" : "off"],
      row.kind !== "table" && ["Kind", row.kind],
    ]),
    row.cures.length
      ? h("details", { class: "cures" }, h("summary", {}, row.level === "good" ? "Could be more" : "The cure"), row.cures.map(([why, sql]) => h("div", {}, h("p", {}, why), copyable(sql, why))))
      : null,
  );
};

const ORDER = { bad: 0, fair: 1, good: 2, off: 3 };

export const tables = ({ lists, wanted }) => {
  const list = lists.tables;
  const search = (wanted.search ?? "").toLowerCase();
  const rows = (list?.tables ?? []).filter((row) => `${row.schema}.${row.name}`.toLowerCase().includes(search));
  const heard = (list?.tables ?? []).filter(({ level }) => level !== "off").length;
  const note = list?.tables ? `${heard} of ${list.tables.length} are heard, through ${list.publications.join(", ")}.` : null;
  const head = title("Tables", note, searchBox("tables", "Search tables", "public.todos", wanted.search ?? ""));
  if (!list) return [head, h("p", { class: "muted" }, "Asking the database…")];
  if (list.error) return [head, empty("The database does not answer", h("p", {}, list.error))];
  const missing = list.missing_publications.map((name) =>
    h("div", { class: "finding card", "data-level": "bad", "data-key": `missing-${name}` }, h("h3", {}, `The publication ${name} is missing`), h("p", {}, "Nothing can be streamed without it."), copyable(`CREATE PUBLICATION ${name} FOR ALL TABLES;`, "the SQL")),
  );
  if (!list.tables.length) return [head, ...missing, empty("There are no tables", h("p", {}, "Make one in the database that is streamed, and it appears here within seconds."))];
  if (!rows.length) return [head, ...missing, empty("No table matches")];
  rows.sort((one, other) => ORDER[one.level] - ORDER[other.level]);
  return [head, ...missing, h("ul", { class: "stack two" }, rows.map(table))];
};

// ------------------------------------------------------------------------------------------------ processes

const ROLES = { active: ["reads the slot", "good"], standby: ["stands by", "quiet"], connecting: ["connecting", "fair"] };
const PROCESS_KINDS = { realtime: "everything in one", sockets: "sockets", replicator: "replicator" };

const replicator = (item) => {
  const [word, kind] = ROLES[item.role] ?? [item.role, "quiet"];
  return h(
    "li",
    { class: "card", "data-key": `replicator-${item.instance}` },
    h("div", { class: "card-head" }, h("h3", {}, `Replicator `, h("span", { class: "muted" }, `${item.host} (${item.pid})`)), tag(word, kind)),
    item.error ? h("p", { class: "trouble" }, item.error.message) : null,
    facts([
      ["Slot", item.slot_name ? h("code", {}, item.slot_name) : "none yet", item.temporary ? " (temporary)" : ""],
      ["Publications", item.publications.join(", ")],
      ["Changes", `${number(item.rates?.changes_per_s)}/s, ${number(item.changes)} since its start`],
      ["Transactions", `${number(item.rates?.transactions_per_s)}/s`],
      ["Heard from PostgreSQL", item.progress_age_s === null ? "not yet" : `${duration(item.progress_age_s)} ago`],
      ["Published", h("code", {}, item.published ?? "–")],
      ["Ring", `${bytes(item.ring.bytes)} of ${bytes(item.ring.max_bytes)}, ${duration(item.ring.age_s)} of ${duration(item.ring.max_age_s)}`],
      ["Epoch", h("code", {}, item.epoch || "–")],
    ]),
  );
};

const process = (item, now) =>
  h(
    "li",
    { class: "card", "data-key": `process-${item.process}` },
    h("div", { class: "card-head" }, h("h3", {}, `${item.host} (${item.pid}) `, h("span", { class: "muted" }, PROCESS_KINDS[item.kind] ?? item.kind)), item.serves ? tag(item.is_level ? "level" : "behind", item.is_level ? "good" : "fair") : null),
    facts([
      item.serves && ["Clients", number(item.sockets)],
      item.serves && ["Topics", number(item.topics)],
      item.serves && ["Messages", `${number(item.messages_per_s)}/s, ${bytes(item.bytes_per_s)}/s`],
      item.serves && ["Commit to socket", `p50 ${latency(item.p50)}, p99 ${latency(item.p99)}`],
      item.serves && ["Waiting", `${bytes(item.queued_bytes)}, most ${bytes(item.queued_most)}`],
      ["CPU", `${Math.round(item.cpu * 100)} %`],
      ["Memory", bytes(item.rss_bytes)],
      ["Loop delay", latency(item.loop_delay_s)],
      ["Started", time(item.started_at, now)],
      ["Version", `Walcast ${item.version}, Python ${item.python}`],
    ]),
  );

export const processes = ({ state }) => [
  title("Processes", "One replicator reads the slot; the others stand by. Each process that serves sockets follows it."),
  state.replicators.length
    ? null
    : empty("No replicator tells of itself", h("p", {}, "Nothing is read from PostgreSQL, unless one has just been stopped or started. Start one:"), copyable("manage.py run_replicator", "the command")),
  h("ul", { class: "stack two" }, state.replicators.map(replicator), state.processes.map((item) => process(item, state.now))),
].filter(Boolean);

// ------------------------------------------------------------------------------------------------ errors

const problem = (item, now) =>
  h(
    "li",
    { class: "card problem", "data-key": `problem-${item.logger}-${item.message}` },
    h("div", { class: "card-head" }, h("h3", {}, item.message), tag(item.level.toLowerCase(), item.level === "WARNING" ? "fair" : "bad"), h("span", { class: "times" }, item.count === 1 ? "once" : `${number(item.count)} times`)),
    item.meaning ? h("p", {}, marked(item.meaning)) : null,
    item.cure ? h("p", { class: "cure" }, h("strong", {}, "What to do: "), marked(item.cure)) : null,
    facts([
      ["Last", time(item.last_at, now)],
      item.count > 1 && ["First", time(item.first_at, now)],
      ["Where", item.where.join(", ")],
      ["Logger", h("code", {}, item.logger)],
      ...Object.entries(item.facts).map(([name, value]) => [name, h("code", { class: "wrap" }, value)]),
    ]),
  );

export const errors = ({ state }) => [
  title("Errors", "Warnings and errors of all processes within the last hour, the newest first, each message once."),
  state.problems.length
    ? h("ul", { class: "stack" }, state.problems.map((item) => problem(item, state.now)))
    : empty("Nothing has gone wrong in the last hour", h("p", {}, "What does will stand here: how often, where, and what to do about it. The whole story is in the log.")),
];

export const newestAt = (rows) => (rows.length ? rows.at(-1)[AT] : 0);
export const medianColumn = P50;
