// Rates as lines, latencies as a heat map over time.

import { css, ofPart, plain } from "./colours.js";
import { countText, element, sizeText, timeText } from "./words.js";

const SHOWN = 120; // moments

export const RATES = [
  ["faults", ["faults", "count"], countText],
  ["moves", ["moves", "count"], countText],
  ["moved", ["moves", "bytes"], sizeText],
  ["evictions", ["moves", "evictions"], countText],
  ["reads", ["requests", "read"], countText],
  ["writes", ["requests", "write"], countText],
];

const PATHS = RATES.map(([, path]) => path);

function sized(canvas, width, height) {
  if (canvas.width !== width || canvas.height !== height) {
    canvas.width = width;
    canvas.height = height;
  }
  const context = canvas.getContext("2d");
  context.clearRect(0, 0, width, height);
  return context;
}

export class Rates {
  constructor(root) {
    this.lines = RATES.map(([name]) => {
      const box = element("div");
      const value = element("b");
      const canvas = element("canvas", "", { role: "img", "aria-label": name });
      const title = element("div", name);
      title.append(value);
      box.append(title, canvas);
      root.append(box);
      return { value, canvas };
    });
  }

  draw(history, index) {
    const first = Math.max(1, index - SHOWN + 1);
    const columns = [];
    for (let at = first; at <= index; at += 1) columns.push(history.rates(at, PATHS) ?? PATHS.map(() => 0));
    this.lines.forEach(({ value, canvas }, line) => {
      const values = columns.map((column) => column[line]);
      const text = RATES[line][2];
      const top = Math.max(...values, 0);
      value.textContent = `${text(values.at(-1) ?? 0)}/s`;
      canvas.setAttribute("aria-label", `${RATES[line][0]} ${value.textContent}, at most ${text(top)}/s`);
      const context = sized(canvas, 2 * SHOWN, 34);
      context.fillStyle = css(plain("accent"));
      const from = SHOWN - values.length;
      values.forEach((rate, column) => {
        const tall = rate > 0 ? Math.max(1, (32 * rate) / top) : 0;
        context.fillRect(2 * (from + column), 34 - tall, 2, tall);
      });
      context.fillRect(0, 33, 2 * SHOWN, 1);
    });
  }
}

// A column is a moment, a row a bucket of the histogram; brighter is more of them.
export function drawLatency(canvas, facts, history, index) {
  const last = history.at(index);
  if (!last?.latency?.length) return;
  const rows = last.latency.length;
  const cell = 8;
  const context = sized(canvas, SHOWN * 4, rows * cell);
  context.fillStyle = css(plain("free"));
  context.fillRect(0, 0, canvas.width, canvas.height);
  const first = Math.max(1, index - SHOWN + 1);
  let total = 0;
  let slowest = -1;
  for (let at = first; at <= index; at += 1) {
    const before = history.at(at - 1).latency;
    const now = history.at(at).latency;
    if (now === before || !before) continue;
    for (let row = 0; row < rows; row += 1) {
      const count = now[row][1] - (before[row]?.[1] ?? 0);
      if (count <= 0) continue;
      total += count;
      slowest = Math.max(slowest, row);
      context.fillStyle = css(ofPart(0.3 + Math.log10(1 + count) / 4));
      context.fillRect(4 * (SHOWN - 1 - (index - at)), (rows - 1 - row) * cell, 4, cell - 1);
    }
  }
  const bound = (row) => (last.latency[row][0] ? `up to ${timeText(last.latency[row][0])}` : `over ${timeText(last.latency[row - 1][0])}`);
  const words = total
    ? `${countText(total)} that waited; the slowest ${bound(slowest)}. Top row: ${bound(rows - 1)}, bottom: ${bound(0)}`
    : `none that waited. Top row: ${bound(rows - 1)}, bottom: ${bound(0)}`;
  facts.textContent = words;
  canvas.setAttribute("aria-label", `fault latency: ${words}`);
}
