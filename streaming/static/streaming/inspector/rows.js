// The list: only the rows that can be seen are in the page, whatever their number.

import { gist, lateness } from "./words.js";

const OVERSCAN = 6;

export const make = (tag, attributes = {}, ...children) => {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) if (value !== false && value !== null) element.setAttribute(name, value === true ? "" : value);
  element.append(...children);
  return element;
};

export const clock = (at, isLong = false) => {
  const date = new Date(at);
  const time = date.toTimeString().slice(0, 8) + "." + String(date.getMilliseconds()).padStart(3, "0");
  return isLong ? `${date.toLocaleDateString("sv")} ${time}` : time;
};

/** The last part of a position: what differs from row to row. */
export const shortPosition = (position) => (position ? position.split(".").slice(-3, -1).join(".") : "");

/**
 * Draws `log` into `frame`. `onSelect(entry)` hears of the row that was chosen. Call `changed()` as often as you like:
 * it draws once before the next picture, and not at all while `isPaused`.
 */
export class Rows {
  constructor(frame, space, log, onSelect) {
    Object.assign(this, { frame, space, log, onSelect });
    this.pool = [];
    this.selected = null;
    this.isPaused = false;
    this.held = null; // while paused: the entries that were there
    this.isAsked = false;
    this.rowHeight = 36;
    frame.addEventListener("scroll", () => this.changed(), { passive: true });
    frame.addEventListener("click", (event) => {
      const row = event.target.closest(".row");
      if (row) this.select(this.#at(Number(row.dataset.index)));
    });
    new ResizeObserver(() => {
      this.rowHeight = parseFloat(getComputedStyle(frame).getPropertyValue("--row-height")) || 36;
      this.changed();
    }).observe(frame);
  }

  get length() {
    return this.held ? this.held.length : this.log.length;
  }

  #at(index) {
    return this.held ? this.held[this.held.length - 1 - index] : this.log.at(index);
  }

  indexOf(entry) {
    return this.held ? (this.held.includes(entry) ? this.held.length - 1 - this.held.indexOf(entry) : -1) : this.log.indexOf(entry);
  }

  /** Whether the newest row is in sight, and so what comes moves the list. */
  get isFollowing() {
    return this.frame.scrollTop < this.rowHeight / 2;
  }

  pause(isPaused) {
    this.isPaused = isPaused;
    this.held = isPaused ? this.log.shown() : null;
    this.log.added = 0;
    this.changed();
  }

  /** The view is another one: a search, a kind, a clear. */
  reset() {
    if (this.held) this.held = this.log.shown();
    this.frame.scrollTop = 0;
    this.changed();
  }

  changed() {
    if (this.isAsked) return;
    this.isAsked = true;
    requestAnimationFrame(() => {
      this.isAsked = false;
      this.#draw();
    });
  }

  select(entry) {
    this.selected = entry ?? null;
    if (entry) {
      const index = this.indexOf(entry);
      const top = index * this.rowHeight;
      if (top < this.frame.scrollTop) this.frame.scrollTop = top;
      else if (top + this.rowHeight > this.frame.scrollTop + this.frame.clientHeight) {
        this.frame.scrollTop = top + this.rowHeight - this.frame.clientHeight;
      }
    }
    this.changed();
    this.onSelect(this.selected);
  }

  /** Select the row that stands `step` rows further down. */
  move(step) {
    if (this.length === 0) return;
    const from = this.selected ? this.indexOf(this.selected) : -1;
    const index = from < 0 ? 0 : Math.min(Math.max(from + step, 0), this.length - 1);
    this.select(this.#at(index));
  }

  first() {
    this.frame.scrollTop = 0;
    if (this.length) this.select(this.#at(0));
  }

  #draw() {
    const { frame, rowHeight, log } = this;
    if (this.held === null) {
      // Who reads further down goes on reading the same rows.
      if (log.added && !this.isFollowing) frame.scrollTop += log.added * rowHeight;
      log.added = 0;
    }
    const length = this.length;
    this.space.style.height = `${length * rowHeight}px`;
    const first = Math.max(0, Math.floor(frame.scrollTop / rowHeight) - OVERSCAN);
    const last = Math.min(length, Math.ceil((frame.scrollTop + frame.clientHeight) / rowHeight) + OVERSCAN);
    while (this.pool.length < last - first) this.pool.push(this.#row());
    while (this.pool.length > last - first) this.pool.pop().remove();
    let active = null;
    this.pool.forEach((row, offset) => {
      const index = first + offset;
      const entry = this.#at(index);
      this.#fill(row, entry, index, length);
      if (entry === this.selected) active = row.id;
    });
    if (active) frame.setAttribute("aria-activedescendant", active);
    else frame.removeAttribute("aria-activedescendant");
  }

  #row() {
    const row = make(
      "div",
      { class: "row", role: "option", id: `row-${this.pool.length}` },
      make("span", { class: "when mono" }),
      make("span", { class: "tag" }),
      make("span", { class: "strong" }),
      make("span", { class: "quiet mono" }),
      make("span", { class: "position mono" }),
      make("span", { class: "late mono" }),
    );
    this.space.append(row);
    return row;
  }

  #fill(row, entry, index, length) {
    row.style.transform = `translateY(${index * this.rowHeight}px)`;
    const isSelected = entry === this.selected;
    if (row.entry === entry && row.dataset.index === String(index) && row.isSelected === isSelected) return;
    row.dataset.index = index;
    row.isSelected = isSelected;
    row.setAttribute("aria-selected", String(isSelected));
    row.setAttribute("aria-setsize", String(length));
    row.setAttribute("aria-posinset", String(index + 1));
    if (row.entry === entry) return;
    row.entry = entry;
    row.dataset.kind = entry.kind;
    row.dataset.level = entry.payload?.level ?? "";
    const [when, tag, strong, quiet, position, late] = row.children;
    const [what, more] = gist(entry);
    when.textContent = clock(entry.at);
    tag.textContent = entry.kind === "note" ? entry.payload.tag : entry.event.replace("phx_", "").replace("presence_", "");
    tag.dataset.event = entry.kind === "note" ? `note-${entry.payload.level}` : entry.event;
    strong.textContent = what;
    quiet.textContent = more;
    position.textContent = shortPosition(entry.position);
    late.textContent = lateness(entry, this.log.skew) ?? (entry.direction === "out" ? "↑ sent" : "");
  }
}
