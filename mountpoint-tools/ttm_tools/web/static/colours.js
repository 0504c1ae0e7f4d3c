// Colours as [red, green, blue]: of BOs by name, of orders, of what is free.

let palette = null;
let bos = [];
let scale = [];
const known = new Map();
const named = {};

export function hex(text) {
  const value = parseInt(text.trim().slice(1), 16);
  return [value >> 16, (value >> 8) & 255, value & 255];
}

export function css(colour) {
  return `rgb(${colour.map(Math.round).join(" ")})`;
}

export function mix(one, other, part) {
  return one.map((value, index) => value + (other[index] - value) * part);
}

export function usePalette(given) {
  palette = given;
  const pure = palette.bos.map(hex);
  bos = [...pure, ...pure.map((c) => mix(c, [255, 255, 255], 0.45)), ...pure.map((c) => mix(c, [0, 0, 0], 0.4))];
  scale = palette.scale.map(hex);
  known.clear();
  themed();
}

// What depends on a light or a dark page.
export function themed() {
  const style = getComputedStyle(document.documentElement);
  for (const name of ["free", "pool", "ghost", "edge", "mark", "accent", "dim"]) {
    named[name] = hex(style.getPropertyValue(`--${name}`));
  }
}

export const plain = (name) => named[name];
export const addresses = () => hex(palette.addresses);
export const letters = () => palette.letters;

export function ofName(name) {
  if (name === "(ghost)") return named.ghost;
  if (name === "(pool)") return named.pool;
  let colour = known.get(name);
  if (colour === undefined) {
    let hash = 2166136261;
    for (let at = 0; at < name.length; at += 1) hash = Math.imul(hash ^ name.charCodeAt(at), 16777619) >>> 0;
    hash = (hash ^ (hash >>> 15)) >>> 0;
    colour = bos[hash % bos.length];
    if (known.size > 100000) known.clear();
    known.set(name, colour);
  }
  return colour;
}

// A part 0..1 of the scale; of orders, 0 is the darkest and 10 the lightest.
export function ofPart(part) {
  const at = Math.min(1, Math.max(0, part)) * (scale.length - 1);
  const below = Math.floor(at);
  return mix(scale[below], scale[Math.min(scale.length - 1, below + 1)], at - below);
}

export const ofOrder = (order) => ofPart(order / 10);
