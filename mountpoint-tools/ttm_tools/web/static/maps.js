// The map of a region: a cell is a page, or a power of two of pages, row by row.

import { addresses, css, mix, ofName, ofOrder, plain } from "./colours.js";
import { element, shown, sizeText } from "./words.js";

const PAGE = 4096;
const SIDE = 6; // pixels of the canvas for a cell

export function decoded(part, intern) {
  const raw = atob(part.runs);
  const bytes = new Uint8Array(raw.length);
  for (let at = 0; at < raw.length; at += 1) bytes[at] = raw.charCodeAt(at);
  return { ...part, owners: part.owners.map(intern), runs: new Int32Array(bytes.buffer) };
}

// By cell: the owner of its longest run (-1: nobody), pages taken, their mean order.
export function cellsOf(map, most) {
  let per = 1;
  while (map.pages > most * per) per *= 2;
  const count = Math.ceil(map.pages / per);
  const owner = new Int32Array(count).fill(-1);
  const best = new Int32Array(count);
  const taken = new Int32Array(count);
  const order = new Float32Array(count);
  const runs = map.runs;
  for (let at = 0; at < runs.length; at += 4) {
    let first = runs[at];
    let left = runs[at + 1];
    while (left > 0) {
      const cell = Math.floor(first / per);
      const here = Math.min(left, (cell + 1) * per - first);
      if (here > best[cell]) { best[cell] = here; owner[cell] = runs[at + 3]; }
      taken[cell] += here;
      order[cell] += here * runs[at + 2];
      first += here;
      left -= here;
    }
  }
  for (let cell = 0; cell < count; cell += 1) if (taken[cell]) order[cell] /= taken[cell];
  return { per, count, owner, taken, order };
}

// The run (offset into map.runs) that holds a page, or -1.
export function runAt(map, page) {
  let low = 0;
  let high = map.runs.length / 4 - 1;
  while (low <= high) {
    const middle = (low + high) >> 1;
    const first = map.runs[4 * middle];
    if (page < first) high = middle - 1;
    else if (page >= first + map.runs[4 * middle + 1]) low = middle + 1;
    else return 4 * middle;
  }
  return -1;
}

export class RegionView {
  constructor(name, hooks) {
    this.name = name;
    this.hooks = hooks;
    this.map = null;
    this.cursor = -1;
    this.root = element("div", "", { class: "region" });
    this.line = element("div", "", { class: "line" });
    this.canvas = element("canvas", "", { role: "img", tabindex: "0" });
    this.canvas.dataset.region = name;
    this.root.append(this.line, this.canvas);
    this.canvas.addEventListener("pointermove", (event) => this.point(event));
    this.canvas.addEventListener("pointerleave", () => hooks.tip(null));
    this.canvas.addEventListener("click", (event) => this.choose(this.cellAt(event)));
    this.canvas.addEventListener("keydown", (event) => this.key(event));
    this.canvas.addEventListener("blur", () => { this.cursor = -1; hooks.tip(null); hooks.redraw(); });
  }

  title(facts) {
    const part = facts.size ? (100 * facts.used) / facts.size : 0;
    const words = [`${sizeText(facts.used)} of ${sizeText(facts.size)} · ${part.toFixed(0)}%`, `${facts.bos} BOs`];
    if (facts.visible_size < facts.size) words.push(`the CPU sees ${sizeText(facts.visible_size)}`);
    if (this.map?.free_runs) {
      words.push(`free in ${this.map.free_runs} ${this.map.free_runs === 1 ? "piece" : "pieces"}`);
      if (this.map.blocks) words.push(`${Math.round(100 * this.map.unusable)}% of it too broken for 2M`);
    }
    if (this.cells) words.push(`a cell is ${sizeText(this.cells.per * PAGE)}`);
    this.line.replaceChildren(element("h2", this.name), element("span", words.join(" · ")));
    this.canvas.setAttribute("aria-label", `${this.name}: ${words.join(", ")}`);
  }

  draw(map, mode, selected) {
    const wide = this.canvas.clientWidth || 300;
    const columns = wide >= 1100 ? 256 : wide >= 500 ? 128 : 64;
    if (map !== this.map || columns !== this.columns) {
      this.cells = cellsOf(map, columns * 32);
      this.map = map;
      this.columns = columns;
    }
    const { per, count, owner, taken, order } = this.cells;
    const rows = Math.ceil(count / columns);
    const image = new ImageData(columns, rows);
    const free = plain("free");
    const chosen = selected === null ? -1 : map.owners.indexOf(selected);
    const palette = map.owners.map((name) => ofName(name));
    const special = map.owners.map((name) => name === "(pool)" || name === "(ghost)");
    const used = plain("accent");
    for (let cell = 0; cell < count; cell += 1) {
      const who = owner[cell];
      let colour = free;
      if (who >= 0) {
        if (mode === "who" || special[who]) colour = palette[who];
        else if (mode === "order") colour = map.blocks ? ofOrder(order[cell]) : addresses();
        else colour = used;
        colour = mix(free, colour, 0.35 + (0.65 * taken[cell]) / per);
        if (chosen >= 0 && who !== chosen) colour = mix(colour, free, 0.6);
      }
      image.data.set(colour, 4 * cell);
      image.data[4 * cell + 3] = 255;
    }
    this.paint(image, columns, rows, chosen);
  }

  paint(image, columns, rows, chosen) {
    const { count, owner, per } = this.cells;
    const canvas = this.canvas;
    if (canvas.width !== columns * SIDE || canvas.height !== rows * SIDE) {
      canvas.width = columns * SIDE;
      canvas.height = rows * SIDE;
      canvas.style.height = `${Math.min(rows * 8, 220)}px`;
    }
    const context = canvas.getContext("2d");
    if (this.small?.width !== columns || this.small.height !== rows) this.small = new OffscreenCanvas(columns, rows);
    const small = this.small;
    small.getContext("2d").putImageData(image, 0, 0);
    context.imageSmoothingEnabled = false;
    context.clearRect(0, 0, canvas.width, canvas.height);
    context.drawImage(small, 0, 0, canvas.width, canvas.height);
    // A line between two BOs, whatever their colours.
    context.fillStyle = css(plain("edge"));
    for (let cell = 1; cell < count; cell += 1) {
      if (owner[cell] !== owner[cell - 1] && owner[cell] + owner[cell - 1] > -2 && cell % columns) {
        context.fillRect((cell % columns) * SIDE, Math.floor(cell / columns) * SIDE, 1, SIDE);
      }
    }
    if (chosen >= 0) this.outline(context, columns, (cell) => owner[cell] === chosen);
    if (this.cursor >= 0) this.outline(context, columns, (cell) => cell === this.cursor);
    if (this.map.visible < this.map.pages) this.edge(context, this.map.visible / per, columns);
    canvas.dataset.cell = String(per);
  }

  outline(context, columns, inside) {
    context.fillStyle = css(plain("mark"));
    for (let cell = 0; cell < this.cells.count; cell += 1) {
      if (!inside(cell)) continue;
      const x = (cell % columns) * SIDE;
      const y = Math.floor(cell / columns) * SIDE;
      if (!inside(cell - columns)) context.fillRect(x, y, SIDE, 1);
      if (!inside(cell + columns)) context.fillRect(x, y + SIDE - 1, SIDE, 1);
      if (cell % columns === 0 || !inside(cell - 1)) context.fillRect(x, y, 1, SIDE);
      if (cell % columns === columns - 1 || !inside(cell + 1)) context.fillRect(x + SIDE - 1, y, 1, SIDE);
    }
  }

  // Where the CPU's view ends.
  edge(context, cell, columns) {
    const y = Math.floor(cell / columns) * SIDE;
    const x = (cell % columns) * SIDE;
    context.strokeStyle = css(plain("mark"));
    context.setLineDash([6, 4]);
    context.lineWidth = 2;
    context.beginPath();
    context.moveTo(0, y + SIDE);
    context.lineTo(x, y + SIDE);
    context.lineTo(x, y);
    context.lineTo(columns * SIDE, y);
    context.stroke();
  }

  cellAt(event) {
    const box = this.canvas.getBoundingClientRect();
    if (!this.cells) return -1;
    const rows = Math.ceil(this.cells.count / this.columns);
    const column = Math.floor(((event.clientX - box.left) / box.width) * this.columns);
    const row = Math.floor(((event.clientY - box.top) / box.height) * rows);
    const cell = row * this.columns + column;
    return cell >= 0 && cell < this.cells.count && column < this.columns ? cell : -1;
  }

  // What is in a cell, and its owner (null: nobody).
  about(cell) {
    const { per, owner, taken } = this.cells;
    const first = cell * per;
    const last = Math.min(this.map.pages, first + per) - 1;
    const where = `${this.name} pages ${first}${last > first ? `–${last}` : ""}`;
    if (owner[cell] < 0) return { name: null, text: `free · ${where}` };
    const name = this.map.owners[owner[cell]];
    let run = -1;
    for (let page = first; page <= last && run < 0; page += 1) {
      const found = runAt(this.map, page);
      if (found >= 0 && this.map.runs[found + 3] === owner[cell]) run = found;
    }
    const order = run >= 0 && this.map.blocks ? ` · order ${this.map.runs[run + 2]}` : "";
    const part = taken[cell] < per ? ` · ${taken[cell]} of ${per} pages taken` : "";
    return { name, text: `${shown(name)} · ${where}${order}${part}` };
  }

  point(event) {
    const cell = this.cellAt(event);
    this.hooks.tip(cell < 0 ? null : this.about(cell).text, event.clientX, event.clientY);
  }

  choose(cell) {
    if (cell < 0) return;
    const { name } = this.about(cell);
    this.hooks.select(name !== null && !/^\((ghost|pool)\)$/.test(name) ? name : null);
  }

  key(event) {
    const by = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -this.columns, ArrowDown: this.columns }[event.key];
    if (event.key === "Enter" && this.cursor >= 0) this.choose(this.cursor);
    if (by === undefined || !this.cells) return;
    event.preventDefault();
    const next = this.cursor < 0 ? 0 : this.cursor + by;
    if (next >= 0 && next < this.cells.count) this.cursor = next;
    const { text } = this.about(this.cursor);
    const box = this.canvas.getBoundingClientRect();
    const row = Math.floor(this.cursor / this.columns);
    const tall = box.height / Math.ceil(this.cells.count / this.columns);
    const x = box.left + ((this.cursor % this.columns) * box.width) / this.columns;
    this.hooks.tip(text, x, box.top + row * tall);
    this.hooks.say(text);
    this.hooks.redraw();
  }
}

export function legend(views, mode) {
  const entry = (colour, text) => {
    const made = element("span");
    const square = element("i");
    square.style.background = css(colour);
    made.append(square, text);
    return made;
  };
  const out = [];
  if (mode === "order") {
    for (const order of [0, 2, 4, 6, 8, 9, 10]) out.push(entry(ofOrder(order), `order ${order}: ${sizeText(PAGE << order)}`));
    out.push(entry(addresses(), "addresses"));
  } else if (mode === "state") out.push(entry(plain("accent"), "of a BO"));
  else {
    const sums = new Map();
    for (const { map } of views) {
      for (let at = 0; map && at < map.runs.length; at += 4) {
        const name = map.owners[map.runs[at + 3]];
        if (!/^\((ghost|pool)\)$/.test(name)) sums.set(name, (sums.get(name) ?? 0) + map.runs[at + 1]);
      }
    }
    const ranked = [...sums].sort((a, b) => b[1] - a[1]);
    for (const [name] of ranked.slice(0, 10)) out.push(entry(ofName(name), shown(name)));
    if (ranked.length > 10) out.push(element("span", `and ${ranked.length - 10} more`));
  }
  out.push(entry(plain("pool"), "pool"), entry(plain("ghost"), "ghost"), entry(plain("free"), "free"));
  return out;
}
