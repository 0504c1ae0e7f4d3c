// Sizes, counts and names as text; the same as the other programs show them.

const UNITS = ["B", "K", "M", "G", "T"];

export function sizeText(size) {
  let unit = 0;
  while (Math.abs(size) >= 1024 && unit < 4) { size /= 1024; unit += 1; }
  if (unit === 0) return size.toFixed(0);
  return (size >= 100 ? size.toFixed(0) : size.toFixed(1).replace(/\.0$/, "")) + UNITS[unit];
}

export function countText(count) {
  if (Math.abs(count) < 10000) return count.toFixed(0);
  return count < 1e6 ? `${(count / 1000).toFixed(1)}k` : `${(count / 1e6).toFixed(1)}m`;
}

export function timeText(seconds) {
  if (seconds >= 1) return `${seconds} s`;
  return seconds >= 1e-3 ? `${+(seconds * 1e3).toPrecision(3)} ms` : `${+(seconds * 1e6).toPrecision(3)} µs`;
}

const UTF8 = new TextEncoder();
const octal = (byte) => "\\" + byte.toString(8).padStart(3, "0");

// Control characters, backslashes and bytes that are no UTF-8 (they come as lone surrogates) as \ooo.
export function shown(name) {
  return name.replace(/[\p{Cc}\\]|\p{Cs}/gu, (char) => {
    const code = char.codePointAt(0);
    return code >= 0xdc80 && code <= 0xdcff ? octal(code & 0xff) : Array.from(UTF8.encode(char), octal).join("");
  });
}

// An element with text, never with markup: names of BOs are anybody's.
export function element(tag, text = "", attributes = {}) {
  const made = document.createElement(tag);
  if (text !== "") made.textContent = text;
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  return made;
}
