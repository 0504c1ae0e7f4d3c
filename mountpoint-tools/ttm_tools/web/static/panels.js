// Details of a BO, events, who goes next, policies, groups, VMs.

import { css, hex, letters, ofName } from "./colours.js";
import { element, shown, sizeText } from "./words.js";

const COMMANDS = [
  ["evict", "evict", ""], ["to vram", "validate", "vram"], ["to gtt", "validate", "gtt"], ["defrag", "defrag", ""],
  ["pin", "pin", ""], ["unpin", "unpin", ""], ["backup", "backup", ""], ["restore", "restore", ""], ["unmap", "unmap", ""],
];
const LOG = 400;

function table(header, rows) {
  const made = element("table");
  const line = (cells, tag) => {
    const row = element("tr");
    row.append(...cells.map((cell) => (cell instanceof Node ? cell : element(tag, String(cell)))));
    return row;
  };
  made.append(line(header, "th"), ...rows.map((cells) => line(cells, "td")));
  return made;
}

export class Detail {
  constructor(root, hooks) {
    this.root = root;
    this.hooks = hooks; // ask(name), command(file, words), close()
    this.name = null;
    this.title = element("h2");
    this.strip = element("canvas", "", { class: "strip", role: "img" });
    this.key = element("p", "", { class: "legend" });
    this.list = element("dl");
    this.why = element("ol", "", { class: "why", "aria-label": "why it is where it is, the latest first" });
    this.result = element("p", "", { class: "result", role: "status" });
    this.buttons = element("div", "", { class: "row2" });
    const close = element("button", "close", { type: "button", title: "Escape" });
    close.addEventListener("click", () => hooks.close());
    const bar = element("div", "", { class: "bar" });
    bar.append(this.title, close);
    root.append(bar, this.strip, this.key, this.buttons, this.result, this.why, this.list);
  }

  // The commands, for a page that may give them.
  allow() {
    this.buttons.replaceChildren(
      ...COMMANDS.map(([label, word, words]) => {
        const button = element("button", label, { type: "button" });
        button.addEventListener("click", () => this.command(label, word, words));
        return button;
      }),
    );
  }

  async command(label, word, words) {
    const name = this.name;
    this.result.className = "result";
    this.result.textContent = `${label} …`;
    const answer = await this.hooks.command(`objects/${name}/${word}`, words);
    const { ok, errno, error, ...facts } = answer;
    this.result.className = ok ? "result" : "result bad";
    const text = Object.entries(facts).map(([key, value]) => `${key} ${value}`).join("  ");
    this.result.textContent = ok ? `${label}: done  ${text}` : `${label}: ${errno ?? ""} ${error}`;
    this.refresh();
  }

  show(name) {
    if (name !== this.name) this.result.textContent = "";
    this.name = name;
    this.root.hidden = name === null;
    if (name !== null) {
      this.title.textContent = shown(name);
      this.refresh();
    }
  }

  async refresh() {
    const name = this.name;
    if (name === null || this.asking) return;
    this.asking = true;
    const found = await this.hooks.ask(name);
    this.asking = false;
    if (name !== this.name || found === null) return;
    if (found.error) {
      this.result.className = "result bad";
      this.result.textContent = found.error;
      return;
    }
    this.fill(found);
  }

  fill({ status, runs, why }) {
    this.why.replaceChildren(...why.map((sentence) => element("li", shown(sentence))));
    this.why.hidden = why.length === 0;
    const lines = Object.entries(status).filter(([, value]) => value !== "" && value !== null).map(([key, value]) => {
      const line = element("div");
      const text = typeof value === "object" ? JSON.stringify(value) : shown(String(value));
      line.append(element("dt", key), element("dd", text));
      return line;
    });
    this.list.replaceChildren(...lines);
    const pages = runs.reduce((sum, [, count]) => sum + count, 0);
    const named = letters();
    const other = ["#8a8678", "another region"];
    const context = this.strip.getContext("2d");
    this.strip.width = 1024;
    this.strip.height = 1;
    let at = 0;
    const sums = new Map();
    for (const [letter, count] of runs) {
      const from = Math.floor((1024 * at) / pages);
      at += count;
      context.fillStyle = css(hex((named[letter] ?? other)[0]));
      context.fillRect(from, 0, Math.max(1, Math.ceil((1024 * at) / pages) - from), 1);
      sums.set(letter, (sums.get(letter) ?? 0) + count);
    }
    const words = [...sums].map(([letter, count]) => [letter, `${(named[letter] ?? other)[1]}: ${count}`]);
    this.strip.setAttribute("aria-label", `its pages in order; ${words.map(([, text]) => text).join(", ")}`);
    this.key.replaceChildren(
      ...words.map(([letter, text]) => {
        const made = element("span");
        const square = element("i");
        square.style.background = (named[letter] ?? other)[0];
        made.append(square, text);
        return made;
      }),
    );
  }
}

export class Log {
  constructor(list, recording) {
    this.list = list;
    this.recording = recording;
    this.events = 0;
  }

  said(part) {
    this.recording.textContent = part.why || part.words;
  }

  take({ missed, list }) {
    this.events += missed + list.length;
    const lines = list.map((event) => {
      const line = element("li", `${event.when.toFixed(3)} `);
      line.append(element("b", event.name), ` ${shown(event.bo)} ${event.facts}`);
      return line;
    });
    if (missed) lines.push(element("li", `… and ${missed} more`));
    this.list.prepend(...lines.reverse());
    while (this.list.children.length > LOG) this.list.lastChild.remove();
  }
}

export function drawNext(root, lrus, select) {
  const lines = [...lrus].map(([region, first]) => {
    const line = element("p", `${region}: `);
    if (first === null) line.append("too many BOs to ask which is next");
    else if (first.length === 0) line.append("nobody");
    (first ?? []).slice(0, 6).forEach(([name, , size], number) => {
      const button = element("button", `${number + 1} ${shown(name)} ${sizeText(size)}`, { type: "button", class: "name" });
      button.style.borderLeft = `.6em solid ${css(ofName(name))}`;
      button.addEventListener("click", () => select(name));
      line.append(button, " ");
    });
    return line;
  });
  root.replaceChildren(...lines);
}

function policyCell(kind, region, now, available, command) {
  if (!command) return element("td", now);
  const names = available.filter(([of]) => of === kind).map(([, name]) => name);
  const set = element("select", "", { "aria-label": `${kind} ${region}`.trim() });
  const current = now.split(/\s/)[0];
  for (const name of new Set([current, ...names])) set.append(element("option", name));
  set.value = current;
  set.addEventListener("change", () => command(`policies/${kind}`, `${region} ${set.value}`.trim()));
  const cell = element("td");
  cell.append(set, ` ${now.slice(current.length)}`);
  return cell;
}

export function drawPolicies(root, part, command) {
  const stats = (kind, region) => {
    const found = part.stats?.[kind]?.[region] ?? part.stats?.[region]?.[kind] ?? part.stats?.[kind] ?? {};
    return ["asked", "taken", "rejected", "us_mean", "last_error"].map((key) => found[key] ?? "");
  };
  const rows = part.evict.map(([region, now]) => [
    `evict ${region}`, policyCell("evict", region, now, part.available, command), ...stats("evict", region),
  ]);
  for (const kind of ["prefetch", "promote"]) {
    if (part[kind]) rows.push([kind, policyCell(kind, "", part[kind], part.available, command), ...stats(kind, "")]);
  }
  root.replaceChildren(table(["", "policy", "asked", "taken", "refused", "µs", "error"], rows));
}

// What a group has of what it may have at most, and the part that is protected, as a bar.
function bar({ current, max, effective_min: least, effective_low: low }) {
  const part = (bytes) => `${Math.min(100, max ? (100 * bytes) / max : 0).toFixed(1)}%`;
  const made = element("td", "", { class: "share" });
  const box = element("div", "", { role: "img", "aria-label": `${part(current)} of the most it may have` });
  const taken = element("i");
  taken.style.width = part(current);
  const kept = element("b");
  kept.style.width = part(Math.max(least, low));
  kept.hidden = Math.max(least, low) === 0;
  box.append(taken, kept);
  made.append(box);
  return made;
}

function limitCell(group, region, file, bytes, none, command) {
  const text = bytes === none ? (none === 0 ? "" : "max") : sizeText(bytes);
  if (!command || group === "/") return element("td", text);
  const box = element("input", "", { type: "text", value: text, "aria-label": `${file} of ${region} for ${group}` });
  box.addEventListener("change", () => command(`groups${group}/dmem.${file}`, `${region} ${typed(box.value) || none}`));
  const cell = element("td");
  cell.append(box);
  return cell;
}

// Groups take bytes, or max: what a person types has units.
function typed(text) {
  const found = /^([\d.]+)\s*([KMGT]?)B?$/i.exec(text.trim());
  if (!found) return text.trim();
  return String(Math.round(Number(found[1]) * 1024 ** ("KMGT".indexOf(found[2].toUpperCase()) + 1)));
}

// The groups of one moment, from its stats; the root group says what there is of a region.
export function drawGroups(root, groups, command) {
  const rows = [];
  for (const [group, regions] of Object.entries(groups)) {
    for (const [region, has] of Object.entries(regions)) {
      const all = groups["/"]?.[region]?.max ?? has.max;
      if (!all) continue;
      rows.push([
        shown(group), region, sizeText(has.current), bar(has), limitCell(group, region, "max", has.max, all, command),
        limitCell(group, region, "low", has.low, 0, command), limitCell(group, region, "min", has.min, 0, command),
        sizeText(has.peak), has.evictions,
      ]);
    }
  }
  root.replaceChildren(
    table(["group", "region", "has", "", "max", "low", "min", "peak", "evicted"], rows),
  );
}

// The VMs as they are now; what was evicted comes back at the next exec.
export function drawVms(root, vms) {
  const rows = vms.map(([name, has]) => [
    shown(name), sizeText(has.bound_bytes), has.mappings, has.bos, has.local_bos, has.userptrs ?? 0, has.evicted_bos,
    has.execs, has.rebound,
  ]);
  root.replaceChildren(table(["VM", "bound", "mappings", "BOs", "local", "files", "evicted", "jobs", "came back"], rows));
}
