// The list of BOs: any number, of which only the rows on the screen are made.

import { css, ofName } from "./colours.js";
import { countText, element, shown, sizeText } from "./words.js";

const HEIGHT = 22;
const FRESH = 900; // ms: what is on the screen is read anew after so long
const STALE = 20000;
const BATCH = 100;

const known = (text) => (row) => (row.status ? text(row.status) : "·");
const counted = (name, key) => ({
  name,
  status: true,
  text: known((status) => countText(count(status[key]))),
  key: (row) => (row.status ? count(row.status[key]) : -1),
});
const count = (value) => (Array.isArray(value) ? value.length : Number(value ?? 0));
const placeOf = (row) => row.place || row.status?.mem_type || "";
const sizeOf = (row) => row.status?.size ?? row.pages * 4096;

export const COLUMNS = [
  { name: "name", left: true, text: (row) => shown(row.name), key: (row) => row.name, up: true },
  { name: "place", text: (row) => placeOf(row) || "·", key: placeOf, up: true },
  { name: "memory", text: (row) => sizeText(row.pages * 4096), key: (row) => row.pages },
  { name: "size", text: known((status) => sizeText(status.size)), key: sizeOf, status: true },
  counted("faults", "faults"),
  counted("evict", "evictions"),
  { name: "order", text: (row) => (row.order < 0 ? "-" : String(row.order)), key: (row) => row.order },
  { name: "runs", text: (row) => countText(row.runs), key: (row) => row.runs },
  counted("pins", "pin_count"),
  counted("moves", "moves"),
  counted("fences", "fences"),
];

export class BoList {
  constructor(parts, hooks) {
    Object.assign(this, parts); // head, rows, spacer, filter, count, sweep
    this.hooks = hooks;
    this.byName = new Map();
    this.ordered = [];
    this.column = 0;
    this.up = true;
    this.selected = null;
    this.made = [];
    this.asking = false;
    COLUMNS.forEach((column, number) => {
      const button = element("button", column.name, { type: "button", role: "columnheader", "aria-sort": "none" });
      button.addEventListener("click", () => this.sortBy(number));
      this.head.append(button);
    });
    this.rows.addEventListener("scroll", () => this.draw());
    this.rows.addEventListener("keydown", (event) => this.key(event));
    this.filter.addEventListener("input", () => this.arrange());
  }

  sortBy(number) {
    this.up = number === this.column ? !this.up : Boolean(COLUMNS[number].up);
    this.column = number;
    this.arrange();
  }

  // New names, or new maps: what each BO has of which region.
  take(names, maps) {
    const rows = new Map();
    for (const name of names) {
      const row = this.byName.get(name) ?? { name, status: null, at: 0 };
      row.place = "";
      row.pages = row.runs = 0;
      row.order = -1;
      rows.set(name, row);
    }
    for (const [region, map] of maps) {
      const here = map.owners.map((name) => rows.get(name) ?? null);
      const own = map.blocks && region !== "system";
      for (let at = 0; at < map.runs.length; at += 4) {
        const row = here[map.runs[at + 3]];
        if (row === null) continue;
        if (region !== "system" || row.place === "") row.place = region;
        if (map.blocks || own) {
          row.pages += map.runs[at + 1];
          row.runs += 1;
          row.order = Math.max(row.order, map.runs[at + 2]);
        }
      }
    }
    this.byName = rows;
    this.arrange();
  }

  arrange() {
    const { key, status } = COLUMNS[this.column];
    const pattern = this.filter.value;
    const rows = [];
    for (const row of this.byName.values()) if (row.name.includes(pattern)) rows.push(row);
    const sign = this.up ? 1 : -1;
    const keys = new Map(rows.map((row) => [row, key(row)]));
    rows.sort((a, b) => {
      const one = keys.get(a);
      const other = keys.get(b);
      if (one !== other) return one < other ? -sign : sign;
      return a.name < b.name ? -1 : 1;
    });
    this.ordered = rows;
    this.needsAll = Boolean(status);
    [...this.head.children].forEach((button, number) => {
      button.setAttribute("aria-sort", number !== this.column ? "none" : this.up ? "ascending" : "descending");
    });
    this.count.textContent = rows.length === this.byName.size ? `${rows.length}` : `${rows.length} of ${this.byName.size}`;
    this.spacer.style.height = `${rows.length * HEIGHT}px`;
    this.rows.setAttribute("aria-rowcount", String(rows.length));
    this.draw();
  }

  visible() {
    const first = Math.max(0, Math.floor(this.rows.scrollTop / HEIGHT));
    return [first, Math.min(this.ordered.length, first + Math.ceil(this.rows.clientHeight / HEIGHT) + 1)];
  }

  draw() {
    const [first, end] = this.visible();
    while (this.made.length < end - first) this.makeLine();
    this.made.forEach((line, number) => this.fill(line, this.ordered[first + number], first + number, first + number < end));
  }

  makeLine() {
    const line = element("div", "", { class: "row", role: "row" });
    line.append(...COLUMNS.map(() => element("span", "", { role: "gridcell" })));
    line.firstChild.className = "name";
    line.firstChild.append(element("i"), "");
    line.addEventListener("click", () => this.hooks.select(line.bo));
    this.rows.append(line);
    this.made.push(line);
  }

  fill(line, row, number, isShown) {
    line.hidden = !isShown;
    if (!isShown) return;
    line.bo = row.name;
    line.style.top = `${number * HEIGHT}px`;
    line.setAttribute("aria-rowindex", String(number + 1));
    line.setAttribute("aria-selected", String(row.name === this.selected));
    COLUMNS.forEach((column, at) => {
      const text = column.text(row);
      const cell = line.children[at];
      if (at === 0) cell.lastChild.data = text;
      else if (cell.textContent !== text) cell.textContent = text;
    });
    line.firstChild.firstChild.style.background = css(ofName(row.name));
    line.firstChild.title = shown(row.name);
  }

  select(name) {
    this.selected = name;
    const number = this.ordered.findIndex((row) => row.name === name);
    if (number >= 0) {
      const top = number * HEIGHT;
      const tall = this.rows.clientHeight;
      if (top < this.rows.scrollTop) this.rows.scrollTop = top;
      else if (top + HEIGHT > this.rows.scrollTop + tall) this.rows.scrollTop = top + HEIGHT - tall;
    }
    this.draw();
  }

  key(event) {
    const page = Math.max(1, Math.floor(this.rows.clientHeight / HEIGHT) - 1);
    const by = { ArrowUp: -1, ArrowDown: 1, PageUp: -page, PageDown: page, Home: -1e9, End: 1e9 }[event.key];
    if (by === undefined || this.ordered.length === 0) return;
    event.preventDefault();
    const now = this.ordered.findIndex((row) => row.name === this.selected);
    const next = now < 0 && by < 1e9 ? 0 : Math.min(this.ordered.length - 1, Math.max(0, now + by));
    this.hooks.select(this.ordered[next].name);
  }

  // Read the details of what is on the screen, and by and by of all when the order depends on them.
  async refresh(ask) {
    if (this.asking) return;
    this.asking = true;
    try {
      const now = performance.now();
      const [first, end] = this.visible();
      const old = (row) => now - row.at > FRESH;
      let wanted = this.ordered.slice(first, end).filter(old);
      const rest = this.needsAll ? [...this.byName.values()].filter((row) => now - row.at > STALE) : [];
      this.sweep.textContent = rest.length > BATCH ? `reading details, ${rest.length} to go` : "";
      wanted = [...wanted, ...rest.slice(0, BATCH)];
      if (wanted.length === 0) return;
      const found = await ask(wanted.map((row) => row.name));
      if (found === null) return;
      for (const row of wanted) {
        row.at = now;
        if (found[row.name]) row.status = found[row.name];
      }
      if (this.needsAll) this.arrange();
      else this.draw();
    } finally {
      this.asking = false;
    }
  }
}
