// Plain words for what is watched and shown, and code to take away. Values in, texts out: nothing here touches the page.

export const CHANGES = ["INSERT", "UPDATE", "DELETE", "TRUNCATE"];

/** What a topic of 2021 says: `realtime:schema:table:column=eq.value`. */
export const parseTopic = (topic) => {
  const [prefix, schema, table, ...filter] = topic.split(":");
  if (prefix !== "realtime" || !schema) return null;
  return { schema, table: table || null, filter: filter.length ? filter.join(":") : null };
};

const OPERATORS = {
  eq: "is",
  neq: "is not",
  lt: "is less than",
  lte: "is at most",
  gt: "is greater than",
  gte: "is at least",
  in: "is one of",
  like: "is like",
  ilike: "is like, in any case,",
  is: "is",
  match: "matches",
  imatch: "matches, in any case,",
  isdistinct: "is distinct from",
};

/** `status=in.(a,b),age=gte.18` as "status is one of (a,b) and age is at least 18". */
export const filterInWords = (filter) =>
  splitFilter(filter)
    .map((part) => {
      const [, column, not, operator, value] = part.match(/^([^=]+)=(not\.)?([a-z]+)\.(.*)$/s) ?? [];
      if (!OPERATORS[operator]) return part;
      return `${column} ${not ? "not: " : ""}${OPERATORS[operator]} ${value === "" ? "empty" : value}`;
    })
    .join(" and ");

// At commas that separate comparisons, not at those inside of (…) or "…".
const splitFilter = (filter) => {
  const parts = [];
  let depth = 0;
  let isQuoted = false;
  let part = "";
  for (const character of filter) {
    if (character === '"') isQuoted = !isQuoted;
    else if (!isQuoted && character === "(") depth += 1;
    else if (!isQuoted && character === ")") depth -= 1;
    if (character === "," && !isQuoted && depth === 0) {
      parts.push(part);
      part = "";
    } else part += character;
  }
  return [...parts, part];
};

const tableInWords = (schema, table) => {
  if (!schema || schema === "*") return table && table !== "*" ? `tables called ${table}` : "all tables";
  return table && table !== "*" ? `${schema}.${table}` : `the schema ${schema}`;
};

const eventInWords = (event) =>
  ({ INSERT: "inserts into", UPDATE: "updates of", DELETE: "deletes from", TRUNCATE: "truncations of" })[event] ??
  "every change of";

const list = (words, last = "and") =>
  words.length < 2 ? words.join("") : `${words.slice(0, -1).join(", ")} ${last} ${words.at(-1)}`;

/** What one join asks for, as the end of a sentence: "in room:1 every change of public.todos where done is t". */
export const joinInWords = (join) =>
  join.kind === "legacy" ? heardInWords(join) : `in ${join.topic.replace(/^realtime:/, "")} ${heardInWords(join)}`;

/** The same without the name of a channel. */
export const heardInWords = (join) => {
  if (join.kind === "legacy") {
    const parsed = parseTopic(join.topic);
    if (parsed === null) return join.topic;
    const where = parsed.filter ? ` where ${filterInWords(parsed.filter)}` : "";
    return `every change of ${tableInWords(parsed.schema, parsed.table)}${where}`;
  }
  const parts = (join.bindings ?? []).map(({ event, schema, table, filter, select }) => {
    const where = filter ? ` where ${filterInWords(filter)}` : "";
    const returning = select?.length ? ` returning ${list(select)}` : "";
    return `${eventInWords(event)} ${tableInWords(schema, table)}${where}${returning}`;
  });
  if (join.broadcast) parts.push("broadcasts");
  if (join.presence) parts.push("who is present");
  return list(parts) || "nothing yet";
};

/** The sentence above the list. */
export const watchingInWords = (joins) => (joins.length ? `Watching ${joins.map(joinInWords).join("; ")}.` : "");

// ---------------------------------------------------------------------------------------------- what is shown

/**
 * A search: words that all have to be there, in any order. `"two words"` is one, `-word` must be missing, and
 * `column=value`, `column!=value`, `column>5`, `column<5`, `column~part` look at one column of the row.
 */
export const parseQuery = (text) => {
  const terms = [];
  for (const [, minus, column, operator, quoted, bare] of text.matchAll(
    /(-?)(?:([\p{L}_][\p{L}\p{N}_.]*)(!=|=|>|<|~))?(?:"([^"]*)"?|(\S+))/gu,
  )) {
    const value = quoted ?? bare;
    if (value !== undefined && (value !== "" || column)) terms.push({ isNot: minus === "-", column, operator, value });
  }
  return terms;
};

const MEANINGS = { "=": "is", "!=": "is not", ">": "is above", "<": "is below", "~": "contains" };

/** "that contain “sofa”, and whose done is t". */
export const queryInWords = (terms) =>
  list(
    terms.map(({ isNot, column, operator, value }) => {
      if (!column) return `${isNot ? "without" : "with"} “${value}”`;
      return `${isNot ? "not those " : ""}whose ${column} ${MEANINGS[operator]} ${value || "empty"}`;
    }),
  );

const asText = (value) => (value === null || value === undefined ? "null" : typeof value === "object" ? JSON.stringify(value) : String(value));

/** Whether an entry of the log is looked for. */
export const matches = (entry, terms) =>
  terms.every(({ isNot, column, operator, value }) => {
    const found = column ? matchesColumn(entry, column, operator, value) : entry.text.includes(value.toLowerCase());
    return found !== isNot;
  });

const matchesColumn = ({ record, old }, column, operator, value) => {
  const row = record && Object.hasOwn(record, column) ? record : old;
  if (!row || !Object.hasOwn(row, column)) return false;
  const text = asText(row[column]);
  switch (operator) {
    case "=":
      return text === value;
    case "!=":
      return text !== value;
    case "~":
      return text.toLowerCase().includes(value.toLowerCase());
    default: {
      const [a, b] = [Number(text), Number(value)];
      const order = Number.isNaN(a) || Number.isNaN(b) ? (text < value ? -1 : Number(text > value)) : a - b;
      return operator === ">" ? order > 0 : order < 0;
    }
  }
};

/** The columns of a change: `[{name, type, isKey, old, new, isChanged}]`; `undefined` where the log has no value. */
export const compareRows = ({ columns, record, old, event }) => {
  const types = new Map((columns ?? []).map(({ name, type, flags }) => [name, { type, isKey: flags?.includes("key") }]));
  const names = [...new Set([...types.keys(), ...Object.keys(record ?? {}), ...Object.keys(old ?? {})])];
  return names
    .map((name) => {
      const [before, after] = [old && Object.hasOwn(old, name) ? old[name] : undefined, record?.[name]];
      const isChanged = event === "UPDATE" && before !== undefined && asText(before) !== asText(after);
      return { name, ...(types.get(name) ?? {}), old: before, new: after, isChanged };
    })
    .filter((row) => row.old !== undefined || row.new !== undefined);
};

/** One line that tells what happened: `[strong, quiet]`. */
export const gist = (entry) => {
  const { kind, event, payload, topic, ref, direction } = entry;
  if (kind === "change") {
    const where = entry.table ? `${entry.schema}.${entry.table}` : topic;
    const rows = compareRows(entry);
    const changed = rows.filter((row) => row.isChanged);
    if (changed.length) {
      const key = rows.filter((row) => !row.isChanged).slice(0, 1);
      return [where, [...key.map((row) => `${row.name}=${shorten(row.new)}`), ...changed.map((row) => `${row.name}: ${shorten(row.old)} → ${shorten(row.new)}`)].join("  ")];
    }
    const shown = rows.filter((row) => (event === "DELETE" ? row.old !== null : true)).slice(0, 6);
    return [where, shown.map((row) => `${row.name}=${shorten(row.new ?? row.old)}`).join("  ")];
  }
  if (kind === "note") return [payload.title, payload.text ?? ""];
  if (kind === "broadcast") return [String(payload?.event ?? ""), shorten(payload?.payload ?? payload, 200)];
  if (event === "presence_diff") {
    const [joins, leaves] = [Object.keys(payload?.joins ?? {}), Object.keys(payload?.leaves ?? {})];
    return [topic, [...joins.map((key) => `+${key}`), ...leaves.map((key) => `−${key}`)].join("  ")];
  }
  if (event === "presence_state") return [topic, `${Object.keys(payload ?? {}).length} present`];
  if (event === "system") return [topic, `${payload?.status}: ${payload?.message}`];
  if (event === "phx_reply") {
    return [topic, payload?.status === "ok" ? `ok, to ${ref}` : `refused: ${payload?.response?.reason ?? "no reason given"}`];
  }
  return [topic, direction === "out" ? shorten(payload, 200) : ""];
};

export const shorten = (value, length = 60) => {
  const text = typeof value === "string" ? value : asText(value);
  return text.length > length ? `${text.slice(0, length - 1)}…` : text;
};

/** Like JSON.stringify with an indent, but what fits on a line stays on it. */
export const pretty = (value, indent = "") => {
  const short = JSON.stringify(value) ?? "undefined";
  if (value === null || typeof value !== "object" || indent.length + short.length <= 76) return short;
  const deeper = `${indent}  `;
  const [open, close, parts] = Array.isArray(value)
    ? ["[", "]", value.map((part) => pretty(part, deeper))]
    : ["{", "}", Object.entries(value).map(([key, part]) => `${JSON.stringify(key)}: ${pretty(part, deeper)}`)];
  return `${open}\n${parts.map((part) => deeper + part).join(",\n")}\n${indent}${close}`;
};

export const milliseconds = (value) =>
  Math.abs(value) < 10 ? `${value.toFixed(1)} ms` : Math.abs(value) < 10_000 ? `${Math.round(value)} ms` : `${(value / 1000).toFixed(1)} s`;

/** How late a change was when it came here: null where that cannot be known. `skew` is that of the two clocks. */
export const lateness = ({ kind, at, committedAt, isExact, isReplayed }, skew = 0) => {
  if (kind !== "change" || committedAt === null) return null;
  if (isReplayed) return "replayed";
  const late = at - committedAt - skew;
  // Legacy payloads have whole seconds: the rest of the second is not known.
  return isExact ? milliseconds(Math.max(late, 0)) : `≤ ${milliseconds(Math.max(late, 0))}`;
};

// ---------------------------------------------------------------------------------------------- to take away

const literal = (value) => JSON.stringify(value);
const quoted = (text) => `'${String(text).replaceAll("'", "'\\''")}'`;

/** A program that joins the same, for the client of its protocol. The token is left out: say where it comes from. */
export const javascript = (join, { endpoint, isSecured }) => {
  const resumeFrom = endpoint.replace(/^ws/, "http").replace(/\/(socket|realtime\/v1)$/, "") + "/static/streaming/walcast-resume.mjs";
  const head = (version, parameters) =>
    `import { RealtimeClient } from '@supabase/realtime-js' // ${version}\n` +
    `import { resuming } from '${resumeFrom}'\n\n` +
    `const client = new RealtimeClient(${literal(endpoint)}, {\n${parameters}  transport: resuming(), // after a reconnect, nothing is missing\n})\n`;
  if (join.kind === "legacy") {
    return (
      head("1.x", isSecured ? "  params: { apikey: token },\n" : "") +
      `client.connect()\nclient.channel(${literal(join.topic)})\n` +
      `  .on('*', (change) => console.log(change))\n  .subscribe()\n`
    );
  }
  const lines = (join.bindings ?? []).map(
    (binding) => `  .on('postgres_changes', ${literal(binding)}, (change) => console.log(change))\n`,
  );
  if (join.broadcast) lines.push("  .on('broadcast', { event: '*' }, (message) => console.log(message))\n");
  if (join.presence) lines.push("  .on('presence', { event: 'sync' }, () => console.log(channel.presenceState()))\n");
  const options = {
    ...(join.broadcast && { broadcast: { self: Boolean(join.self), ack: Boolean(join.ack) } }),
    ...(join.presence && { presence: { key: join.key ?? "" } }),
    ...(join.private && { private: true }),
  };
  const more = Object.keys(options).length ? `, { config: ${literal(options)} }` : "";
  return (
    head("2.x", `  params: { apikey: ${isSecured ? "token" : "'none'"} },\n`) +
    `const channel = client.channel(${literal(join.topic.replace(/^realtime:/, ""))}${more})\n` +
    `${lines.join("")}  .subscribe((status) => console.log(status))\n`
  );
};

/** The same in a terminal. */
export const tailCommand = (join, { endpoint, since }) => {
  const words = ["python manage.py tail"];
  if (join.kind === "legacy") words.push(quoted(join.topic));
  else {
    words.push(quoted(join.topic.replace(/^realtime:/, "")));
    for (const { schema, table, event, filter } of join.bindings ?? []) {
      words.push("--current", quoted(`${schema ?? "*"}.${table ?? "*"}`));
      if (event && event !== "*") words.push("--event", event);
      if (filter) words.push("--filter", quoted(filter));
    }
  }
  words.push("--url", quoted(endpoint));
  if (since) words.push("--since", quoted(since));
  return words.join(" ");
};

/** A broadcast, sent by HTTP. */
export const curl = ({ topic, event, payload, isPrivate }, { endpoint, isSecured }) => {
  const base = endpoint.replace(/^ws/, "http").replace(/\/socket$/, "");
  const message = { topic: topic.replace(/^realtime:/, ""), event, payload, ...(isPrivate && { private: true }) };
  return (
    `curl -X POST ${quoted(`${base}/api/broadcast`)} \\\n` +
    (isSecured ? `  -H "Authorization: Bearer $TOKEN" \\\n` : "") +
    `  -H 'Content-Type: application/json' \\\n` +
    `  -d ${quoted(JSON.stringify({ messages: [message] }))}`
  );
};

// ---------------------------------------------------------------------------------------------- links

/** What the address bar holds: everything but the token. */
export const writeLink = ({ joins, query, hidden, path }) => {
  const link = new URLSearchParams();
  if (path && path !== "/socket/websocket") link.append("path", path);
  for (const join of joins) {
    if (join.kind === "legacy") link.append("legacy", join.topic);
    else {
      const { kind, ...rest } = join;
      link.append("current", JSON.stringify(rest));
    }
  }
  if (query) link.append("q", query);
  if (hidden.length) link.append("hide", hidden.join(","));
  return link.toString();
};

/** The same, read from an address somebody sent: what does not make sense is left out. */
export const readLink = (fragment) => {
  const link = new URLSearchParams(fragment.replace(/^#/, ""));
  const joins = link.getAll("legacy").map((topic) => ({ kind: "legacy", topic }));
  for (const text of link.getAll("current")) {
    try {
      const join = readJoin(JSON.parse(text));
      if (join) joins.push(join);
    } catch {
      // not ours
    }
  }
  const path = link.get("path");
  return {
    joins,
    query: link.get("q") ?? "",
    hidden: link.has("hide") ? link.get("hide").split(",").filter(Boolean) : null,
    path: path === "/realtime/v1/websocket" ? path : "/socket/websocket",
  };
};

const readJoin = (value) => {
  if (value === null || typeof value !== "object" || typeof value.topic !== "string" || !value.topic) return null;
  const bindings = (Array.isArray(value.bindings) ? value.bindings : []).filter(
    (binding) => binding !== null && typeof binding === "object",
  );
  const text = (name) => (typeof value[name] === "string" ? { [name]: value[name] } : {});
  const flags = ["broadcast", "self", "ack", "presence", "private"].filter((name) => value[name] === true);
  return {
    kind: "current",
    topic: value.topic,
    ...text("key"),
    bindings: bindings.map((binding) =>
      Object.fromEntries(
        Object.entries(binding).filter(
          ([name, part]) =>
            (["event", "schema", "table", "filter"].includes(name) && typeof part === "string") ||
            (name === "select" && Array.isArray(part)),
        ),
      ),
    ),
    ...Object.fromEntries(flags.map((name) => [name, true])),
  };
};

/** What a token says of itself. It is not verified here; the server does that. */
export const readToken = (token) => {
  try {
    const part = token.split(".")[1].replaceAll("-", "+").replaceAll("_", "/");
    const claims = JSON.parse(new TextDecoder().decode(Uint8Array.from(atob(part), (c) => c.charCodeAt(0))));
    return claims !== null && typeof claims === "object" ? claims : null;
  } catch {
    return null;
  }
};
