// Elements from plain calls, and a page that is brought up to date instead of being drawn anew: what has focus keeps it,
// what is open stays open, and a selection survives.

const SVG = "http://www.w3.org/2000/svg";
const SVG_TAGS = new Set(["svg", "path", "line", "circle", "text", "g"]);

/** An element: `h("a", {href: "/", "data-key": 1}, "text", [more])`. Attributes that are null or false are left out. */
export const h = (tag, attributes = {}, ...children) => {
  const element = SVG_TAGS.has(tag) ? document.createElementNS(SVG, tag) : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes ?? {})) {
    if (value !== null && value !== undefined && value !== false) element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false));
  return element;
};

const keyOf = (node) => node.nodeType === Node.ELEMENT_NODE && (node.getAttribute("data-key") || node.id || null);

const alike = (one, other) =>
  one.nodeType === other.nodeType && one.nodeName === other.nodeName && keyOf(one) === keyOf(other);

const becomeLike = (old, wanted) => {
  if (old.nodeType !== Node.ELEMENT_NODE) {
    if (old.data !== wanted.data) old.data = wanted.data;
    return;
  }
  for (const { name } of [...old.attributes]) {
    // Whether a <details> is open is for who looks to say.
    if (!wanted.hasAttribute(name) && !(name === "open" && old.nodeName === "DETAILS")) old.removeAttribute(name);
  }
  for (const { name, value } of [...wanted.attributes]) {
    if (old.getAttribute(name) !== value) old.setAttribute(name, value);
  }
  if (old.nodeName !== "INPUT") morph(old, [...wanted.childNodes]);
};

/** Make the children of `parent` like these, touching no more than what differs. Children with a data-key keep theirs. */
export const morph = (parent, wanted) => {
  const keyed = new Map();
  for (const node of parent.childNodes) if (keyOf(node)) keyed.set(keyOf(node), node);
  let at = parent.firstChild;
  for (const next of wanted) {
    const key = keyOf(next);
    let old = key ? keyed.get(key) : at;
    while (!key && old && keyOf(old)) old = old.nextSibling;
    if (old && alike(old, next)) {
      if (old !== at) parent.insertBefore(old, at);
      else at = at.nextSibling;
      becomeLike(old, next);
    } else {
      parent.insertBefore(next, at);
    }
  }
  while (at) {
    const gone = at;
    at = at.nextSibling;
    gone.remove();
  }
};

// ------------------------------------------------------------------------------------------------ words and numbers

const plain = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });

/** 7, 1,234, 12.3k, 4.5M. */
export const number = (value) => {
  if (value === null || value === undefined) return "–";
  if (value < 10 && value % 1) return value.toFixed(1);
  if (value < 10_000) return plain.format(value);
  return value < 999_500 ? `${(value / 1000).toFixed(value < 99_950 ? 1 : 0)}k` : `${(value / 1e6).toFixed(1)}M`;
};

/** 512 B, 64 kB, 1.5 GB. */
export const bytes = (value) => {
  if (value === null || value === undefined) return "–";
  let [amount, unit] = [value, "B"];
  for (const larger of ["kB", "MB", "GB", "TB"]) {
    if (amount < 1000) break;
    [amount, unit] = [amount / 1000, larger];
  }
  return `${amount < 10 && unit !== "B" ? amount.toFixed(1) : Math.round(amount)} ${unit}`;
};

/** 0.8 ms, 12 ms, 1.4 s; of seconds. */
export const latency = (seconds) => {
  if (seconds === null || seconds === undefined) return "–";
  if (seconds >= 1) return `${seconds.toFixed(1)} s`;
  return `${seconds < 0.01 ? (seconds * 1000).toFixed(1) : Math.round(seconds * 1000)} ms`;
};

/** 5 s, 3 min, 2 h, 4 days. */
export const duration = (seconds) => {
  if (seconds === null || seconds === undefined) return "–";
  if (seconds < 120) return `${Math.max(0, Math.round(seconds))} s`;
  if (seconds < 7200) return `${Math.round(seconds / 60)} min`;
  return seconds < 172_800 ? `${Math.round(seconds / 3600)} h` : `${Math.round(seconds / 86_400)} days`;
};

/** Markdown of the README's tables: `code` and **bold**, nothing else. */
export const marked = (text) =>
  (text ?? "").split(/(`[^`]+`|\*\*[^*]+\*\*)/).map((part) => {
    if (part.startsWith("`")) return h("code", {}, part.slice(1, -1));
    return part.startsWith("**") ? h("strong", {}, part.slice(2, -2)) : part;
  });
