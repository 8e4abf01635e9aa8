// What has arrived: bounded, searched, counted. Fast enough for thousands of events a second; draws nothing.

import { CHANGES, matches } from "./words.js";

const KEPT = 5_000;
const SECONDS = 60;
const LATENCIES = 500;

/** What the buttons above the list show and hide. Notes of the inspector itself are always shown. */
export const KINDS = [...CHANGES, "broadcast", "presence", "system", "protocol"];

export const HIDDEN_AT_FIRST = ["protocol"];

/** The newest `KEPT` entries, and the view of those that are looked for. Index 0 of the view is the newest. */
export class Log {
  constructor() {
    this.hidden = new Set(HIDDEN_AT_FIRST);
    this.terms = [];
    this.counts = new Map(KINDS.map((kind) => [kind, 0]));
    this.clear();
    this.perSecond = new Array(SECONDS).fill(0);
    this.second = Math.floor(performance.now() / 1000);
    this.latencies = [];
    this.skew = 0;
    this.serial = 0;
    this.total = 0;
    this.added = 0; // to the view, since the list was drawn
  }

  /** Take what came (or went out). Returns the entry. */
  add({ topic, event, payload, ref = null, bytes = 0 }, direction, { at = performance.timeOrigin + performance.now(), isReplayed = false } = {}) {
    const entry = { serial: ++this.serial, at, direction, topic, event, payload, ref, bytes, kind: kindOf(event), isReplayed };
    if (entry.kind === "change") readChange(entry);
    entry.filterName = entry.kind === "change" ? entry.event : entry.kind;
    this.total += 1;
    if (entry.kind !== "note") {
      this.counts.set(entry.filterName, (this.counts.get(entry.filterName) ?? 0) + 1);
      this.#tick();
      this.perSecond[SECONDS - 1] += 1;
    }
    if (entry.isExact && !isReplayed) {
      const late = entry.at - entry.committedAt;
      // Nothing comes before it was committed: where it seems so, the two clocks differ by at least as much.
      if (late < this.skew) this.skew = late;
      this.latencies.push(late);
      if (this.latencies.length > 2 * LATENCIES) this.latencies.splice(0, LATENCIES);
    }
    this.entries.push(entry);
    if (this.entries.length - this.start > KEPT) {
      const dropped = this.entries[this.start];
      this.entries[this.start++] = undefined;
      if (this.view[this.viewStart] === dropped) this.view[this.viewStart++] = undefined;
      this.#compact();
    }
    if (this.#isShown(entry)) {
      this.view.push(entry);
      this.added += 1;
    }
    return entry;
  }

  /** How many entries are looked for. */
  get length() {
    return this.view.length - this.viewStart;
  }

  /** How many entries there are. */
  get size() {
    return this.entries.length - this.start;
  }

  /** The entry at a place of the view, 0 the newest. */
  at(index) {
    return this.view[this.view.length - 1 - index];
  }

  /** Where an entry stands in the view, -1 if it does not. */
  indexOf(entry) {
    let [low, high] = [this.viewStart, this.view.length - 1];
    while (low <= high) {
      const middle = (low + high) >> 1;
      if (this.view[middle].serial === entry.serial) return this.view.length - 1 - middle;
      if (this.view[middle].serial < entry.serial) low = middle + 1;
      else high = middle - 1;
    }
    return -1;
  }

  /** All that are looked for, oldest first. */
  shown() {
    return this.view.slice(this.viewStart);
  }

  /** Look for something else. */
  search(terms) {
    this.terms = terms;
    this.#lookAgain();
  }

  /** Show or hide a kind. */
  show(kind, isShown) {
    if (isShown) this.hidden.delete(kind);
    else this.hidden.add(kind);
    this.#lookAgain();
  }

  /** Forget all entries; the counts stay those of what is kept. */
  clear() {
    this.entries = [];
    this.start = 0;
    this.view = [];
    this.viewStart = 0;
    this.added = 0;
    for (const kind of this.counts.keys()) this.counts.set(kind, 0);
  }

  /** Events in the last full second, and in each of the last sixty. */
  get rates() {
    this.#tick();
    return { now: this.perSecond[SECONDS - 2], perSecond: this.perSecond };
  }

  /** Milliseconds from commit to here, of the newest changes whose commit time is exact; null if there are none. */
  percentile(share) {
    const newest = this.latencies.slice(-LATENCIES).sort((a, b) => a - b);
    if (newest.length === 0) return null;
    return newest[Math.min(newest.length - 1, Math.floor(share * newest.length))] - this.skew;
  }

  #tick() {
    const second = Math.floor(performance.now() / 1000);
    for (let passed = Math.min(second - this.second, SECONDS); passed > 0; passed -= 1) {
      this.perSecond.shift();
      this.perSecond.push(0);
    }
    this.second = second;
  }

  #isShown(entry) {
    if (entry.kind === "note") return true;
    return !this.hidden.has(entry.filterName) && (this.terms.length === 0 || matches(searchable(entry), this.terms));
  }

  #lookAgain() {
    this.view = this.entries.slice(this.start).filter((entry) => this.#isShown(entry));
    this.viewStart = 0;
    this.added = 0;
  }

  #compact() {
    if (this.start > KEPT) {
      this.entries = this.entries.slice(this.start);
      this.start = 0;
    }
    if (this.viewStart > KEPT) {
      this.view = this.view.slice(this.viewStart);
      this.viewStart = 0;
    }
  }
}

const kindOf = (event) => {
  if (CHANGES.includes(event) || event === "postgres_changes") return "change";
  if (event === "broadcast" || event === "system" || event === "note") return event;
  if (event === "presence" || event.startsWith("presence_")) return "presence";
  return "protocol";
};

// A legacy change and one of postgres_changes become the same.
const readChange = (entry) => {
  const data = entry.event === "postgres_changes" ? (entry.payload?.data ?? {}) : (entry.payload ?? {});
  if (entry.event === "postgres_changes") entry.event = data.type ?? "UPDATE";
  entry.schema = data.schema;
  entry.table = data.table;
  entry.columns = data.columns;
  entry.record = data.record ?? null;
  entry.old = data.old_record ?? null;
  entry.errors = data.errors ?? null;
  entry.position = data.position ?? null;
  const committedAt = Date.parse(data.commit_timestamp);
  entry.committedAt = Number.isNaN(committedAt) ? null : committedAt;
  entry.isExact = entry.committedAt !== null && /\.\d/.test(data.commit_timestamp);
};

// Made when first searched, and kept.
const searchable = (entry) => {
  entry.text ??= `${entry.event} ${entry.topic} ${JSON.stringify(entry.payload)}`.toLowerCase();
  return entry;
};
