// The page: takes what the server streams, keeps the last minutes, and draws one moment of them.

import { BoList } from "./bos.js";
import { drawLatency, Rates } from "./charts.js";
import { themed, usePalette } from "./colours.js";
import { History } from "./history.js";
import { decoded, legend, RegionView } from "./maps.js";
import { Detail, drawGroups, drawNext, drawPolicies, drawVms, Log } from "./panels.js";
import { element, sizeText } from "./words.js";

const $ = (id) => document.getElementById(id);
const token = new URLSearchParams(location.hash.slice(1)).get("token");
if (token) history.replaceState(null, "", location.pathname);

const past = new History();
const views = new Map();
const lrus = new Map();
const strings = new Map();
const timings = []; // ms of the last frames
const state = { hello: null, stats: null, latency: null, maps: new Map(), names: [], index: -1, paused: false, mode: "who", selected: null };
window.ttmWeb = { past, timings, state, take };

// One string for equal names of many moments.
function intern(name) {
  const found = strings.get(name);
  if (found !== undefined) return found;
  if (strings.size > 200000) strings.clear();
  strings.set(name, name);
  return name;
}

async function post(path, body, headers = {}) {
  try {
    const answer = await fetch(path, {
      method: "POST",
      headers: { "Content-Type": "application/json", ...headers },
      body: JSON.stringify(body),
    });
    return await answer.json();
  } catch {
    return null;
  }
}

async function command(file, words) {
  const answer = await post("/api/command", { file, words }, { "X-TTM-Token": token ?? "" });
  const done = answer ?? { ok: false, error: "ttm-web does not answer" };
  if (!done.ok) trouble(`${file} ${words}: ${done.errno ?? ""} ${done.error}`);
  return done;
}

const mayCommand = () => (state.hello?.commands && token ? command : null);

// -- parts ------------------------------------------------------------------------------------------------------------

const list = new BoList(
  { head: $("head"), rows: $("rows"), spacer: $("spacer"), filter: $("filter"), count: $("count"), sweep: $("sweep") },
  { select },
);
const detail = new Detail($("detail"), { ask: (name) => post("/api/bo", { name }), command, close: () => select(null) });
const rates = new Rates($("rates").querySelector(".cells"));
const log = new Log($("log"), $("recording"));
const legendLine = element("div", "", { class: "legend" });

function view(name) {
  let found = views.get(name);
  if (!found) {
    found = new RegionView(name, { tip, say, select, redraw: schedule });
    views.set(name, found);
    const order = ["system", "gtt", "vram"];
    const place = (one) => (order.includes(one) ? order.indexOf(one) : 3);
    const sorted = [...views.values()].sort((a, b) => place(a.name) - place(b.name));
    $("maps").replaceChildren(...sorted.map((one) => one.root), legendLine);
  }
  return found;
}

function select(name) {
  state.selected = name;
  list.select(name);
  detail.show(name);
  schedule();
}

function tip(text, x = 0, y = 0) {
  const box = $("tip");
  box.hidden = text === null;
  if (text === null) return;
  box.textContent = text;
  box.style.left = `${Math.max(0, Math.min(x + 14, innerWidth - box.offsetWidth - 4))}px`;
  box.style.top = `${y + 18 + box.offsetHeight > innerHeight ? y - box.offsetHeight - 8 : y + 18}px`;
}

function say(text) { $("said").textContent = text; }

function trouble(text) {
  $("trouble").hidden = text === "";
  $("trouble").textContent = text;
}

// -- what comes -------------------------------------------------------------------------------------------------------

function take(message) {
  const started = performance.now();
  let fresh = 0;
  let moved = false;
  for (const [key, part] of Object.entries(message)) {
    const [what, region] = key.split(" ");
    if (key === "now") state.stats = part;
    else if (key === "latency") state.latency = part;
    else if (key === "bos") { state.names = part.map(intern); moved = true; }
    else if (key === "trouble") trouble(part);
    else if (key === "events") log.take(part);
    else if (key === "recording") log.said(part);
    else if (what === "map" && part.runs === undefined) view(region).line.textContent = `${region}: no map: ${part.why}`;
    else if (what === "map") {
      const map = decoded(part, intern);
      state.maps.set(region, map);
      fresh += map.runs.byteLength + 8 * map.owners.length;
      moved = true;
    } else if (what === "lru") { lrus.set(region, part); drawNext($("next").querySelector(".cells"), lrus, select); }
    else if (key === "policies") setting("policies", part, drawPolicies);
    else if (key === "vms") setting("vms", part, drawVms);
  }
  if (state.stats === null) return;
  if (message.now) {
    past.push({ t: message.now.t, stats: message.now.stats, latency: state.latency, maps: new Map(state.maps), fresh });
    if (!state.paused) state.index = past.length - 1;
    else state.index = Math.min(state.index, past.length - 1);
  }
  if (moved && !state.paused) list.take(state.names, state.maps);
  schedule(started);
}

// Whether it was drawn: what somebody types into stays as it is.
function setting(id, part, draw) {
  $(id).hidden = part === null;
  const busy = $(id).contains(document.activeElement) && ["INPUT", "SELECT"].includes(document.activeElement.tagName);
  if (part !== null && !busy) draw($(id).querySelector(".cells"), part, mayCommand());
  return !busy;
}

// -- drawing ----------------------------------------------------------------------------------------------------------

let scheduled = false;
let began = null;

function schedule(started = performance.now()) {
  began = began === null ? started : began;
  if (scheduled) return;
  scheduled = true;
  requestAnimationFrame(() => {
    scheduled = false;
    const start = performance.now();
    draw();
    timings.push(performance.now() - start);
    if (timings.length > 200) timings.shift();
    began = null;
  });
}

function draw() {
  const moment = past.at(state.index);
  if (!moment) return;
  const { stats } = moment;
  for (const [region, facts] of Object.entries(stats.regions ?? {})) {
    const map = moment.maps.get(region);
    if (!facts.size) continue;
    const one = view(region);
    if (map) one.draw(map, state.mode, state.selected);
    if (map) one.title(facts);
  }
  const drawn = `${state.mode} ${[...moment.maps.values()].map((map) => map.runs.length)}`;
  if (draw.legend !== moment.maps || draw.mode !== state.mode) {
    legendLine.replaceChildren(...legend([...views.values()], state.mode));
    [draw.legend, draw.mode, draw.what] = [moment.maps, state.mode, drawn];
  }
  // The root group alone says nothing that the regions do not say.
  const { groups = {} } = stats;
  const told = JSON.stringify(groups);
  if (draw.groups !== told && setting("groups", Object.keys(groups).length > 1 ? groups : null, drawGroups)) draw.groups = told;
  rates.draw(past, state.index);
  drawLatency($("heat"), $("heatfacts"), past, state.index);
  const { bos = {}, fences = {}, requests = {}, swap = {} } = stats;
  $("facts").textContent = [
    `${bos.count ?? 0} BOs`, `${bos.ghosts ?? 0} ghosts`, `${fences.pending ?? 0} fences pending`,
    `${requests.waiting ?? 0} requests waiting`, `store ${sizeText(swap.used ?? 0)} of ${sizeText(swap.size ?? 0)}`,
  ].join(" · ");
  const slider = $("time");
  slider.max = String(past.length - 1);
  slider.value = String(state.index);
  const ago = past.last.t - moment.t;
  $("ago").textContent = state.paused ? (ago < 0.05 ? "paused" : `−${ago.toFixed(1)} s`) : "live";
}

// -- controls ---------------------------------------------------------------------------------------------------------

function pause(on) {
  state.paused = on;
  $("pause").textContent = on ? "go on" : "pause";
  $("pause").setAttribute("aria-pressed", String(on));
  if (!on) {
    state.index = past.length - 1;
    list.take(state.names, state.maps);
  }
  schedule();
}

function goTo(index) {
  const last = past.length - 1;
  if (index >= last) { pause(false); return; }
  state.paused = true;
  state.index = Math.max(0, index);
  $("pause").textContent = "go on";
  const moment = past.at(state.index);
  if (moment) list.take(state.names, moment.maps);
  schedule();
}

function mode(name) {
  state.mode = name;
  document.querySelector(`input[name="mode"][value="${name}"]`).checked = true;
  schedule();
}

function keys(on = $("keys").hidden) {
  $("keys").hidden = !on;
  $("help").setAttribute("aria-expanded", String(on));
}

$("time").addEventListener("input", () => goTo(Number($("time").value)));
$("pause").addEventListener("click", () => pause(!state.paused));
$("help").addEventListener("click", () => keys());
$("modes").addEventListener("change", (event) => mode(event.target.value));
matchMedia("(prefers-color-scheme: light)").addEventListener("change", () => { themed(); schedule(); });
addEventListener("resize", () => { list.draw(); schedule(); });

addEventListener("keydown", (event) => {
  const typing = event.target.matches("input[type=text], input[type=search], select");
  if (event.key === "Escape") {
    if (event.target === $("filter") && $("filter").value) { $("filter").value = ""; list.arrange(); }
    else select(null);
    return;
  }
  if (typing || event.ctrlKey || event.metaKey || event.altKey) return;
  const simple = {
    1: () => mode("who"), 2: () => mode("order"), 3: () => mode("state"), "?": () => keys(), "/": () => $("filter").focus(),
    ",": () => goTo(state.index - 1), ".": () => goTo(state.index + 1),
  };
  if (simple[event.key]) { event.preventDefault(); simple[event.key](); }
  else if (event.key === " " && !event.target.matches("button")) { event.preventDefault(); pause(!state.paused); }
  else if (event.key === "Enter" && event.target === $("rows")) $("detail").querySelector("button")?.focus();
});

// -- the stream -------------------------------------------------------------------------------------------------------

let source = null;

function link(kind, text) {
  $("link").dataset.state = kind;
  $("link").textContent = text;
}

function connect() {
  source = new EventSource("/events");
  source.addEventListener("hello", (event) => {
    state.hello = JSON.parse(event.data);
    $("mount").textContent = state.hello.mount;
    document.title = `ttm-web ${state.hello.mount}`;
    usePalette(state.hello.palette);
    if (mayCommand()) detail.allow();
    link("live", "live");
  });
  source.addEventListener("message", (event) => take(JSON.parse(event.data)));
  source.addEventListener("ended", (event) => {
    source.close();
    source = null;
    link("ended", "ended");
    trouble(JSON.parse(event.data));
  });
  source.addEventListener("error", () => link("wait", "ttm-web does not answer; trying again"));
}

// A page that nobody sees asks for nothing.
document.addEventListener("visibilitychange", () => {
  if (document.hidden && source) { source.close(); source = null; link("wait", "not looked at"); }
  else if (!document.hidden && !source && $("link").dataset.state !== "ended") connect();
});

setInterval(() => {
  if (source?.readyState !== EventSource.OPEN || document.hidden) return;
  list.refresh((names) => post("/api/status", { names }));
  detail.refresh();
}, 1000);

connect();
