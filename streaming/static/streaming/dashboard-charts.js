// Small charts in SVG: the last minutes as a line with a wash under it. No axis but the largest value, and the present.

import { h } from "./dashboard-dom.js";

const WIDTH = 300;
const HEIGHT = 56;
const TOP = 4;

/** `values` are one a second, the newest last, null where nothing is known; `span` is how many fit.
 *  With `bridges` the line goes on across what is not known. */
export const sparkline = (values, span, bridges = false) => {
  const known = values.filter((value) => value !== null && value !== undefined);
  const most = Math.max(...known, 1e-9);
  const x = (index) => WIDTH - ((values.length - 1 - index) * WIDTH) / (span - 1);
  const y = (value) => HEIGHT - 1 - (value / most) * (HEIGHT - 1 - TOP);
  let line = "";
  let area = "";
  let start = null;
  let last = null;
  const close = (index) => {
    if (start !== null) area += `L${x(index).toFixed(1)},${HEIGHT}L${x(start).toFixed(1)},${HEIGHT}Z`;
    start = null;
  };
  values.forEach((value, index) => {
    if (value === null || value === undefined) {
      if (!bridges) close(last);
      return;
    }
    const point = `${x(index).toFixed(1)},${y(value).toFixed(1)}`;
    line += `${start === null ? "M" : "L"}${point}`;
    area += `${start === null ? "M" : "L"}${point}`;
    start ??= index;
    last = index;
  });
  close(last);
  return h(
    "svg",
    { class: "spark", viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none", "aria-hidden": "true" },
    h("path", { class: "wash", d: area || "M0,0" }),
    h("path", { class: "line", d: line || "M0,0" }),
  );
};
