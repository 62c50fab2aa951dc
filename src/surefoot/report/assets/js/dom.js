// Elements, numbers and texts. Nothing of the data is ever parsed as HTML: text goes in as text.

/** An element: el("p", {class: "note", onclick: f}, "text", child, ...). Absent children are left out. */
export function el(tag, props, ...children) {
  const node = document.createElement(tag);
  for (const [key, value] of Object.entries(props || {})) {
    if (value === undefined || value === null || value === false) continue;
    if (key.startsWith("on")) node.addEventListener(key.slice(2), value);
    else if (key === "value") node.value = value;
    else node.setAttribute(key, value === true ? "" : value);
  }
  append(node, children);
  return node;
}

function append(node, children) {
  for (const child of children.flat(9)) {
    if (child === null || child === undefined || child === false) continue;
    node.append(child instanceof Node ? child : document.createTextNode(String(child)));
  }
  return node;
}

/** A number of the data: those that are not finite are written as words, absent ones are null. */
export function num(value) {
  return value === null || value === undefined ? NaN : Number(value);
}

const SUPERSCRIPT = "⁰¹²³⁴⁵⁶⁷⁸⁹";

export function power(exponent) {
  const digits = String(Math.abs(exponent)).replace(/\d/g, (d) => SUPERSCRIPT[d]);
  return (exponent < 0 ? "⁻" : "") + digits;
}

/** Four significant digits; very small and very large numbers with a power of ten; whole numbers as 134,515,008. */
export function fmt(value, digits = 4) {
  const x = num(value);
  if (Number.isNaN(x)) return value === null || value === undefined ? "–" : "NaN";
  if (!Number.isFinite(x)) return x > 0 ? "∞" : "−∞";
  if (x === 0) return "0";
  const size = Math.abs(x);
  const sign = x < 0 ? "−" : "";
  if (size < 1e-3 || size >= 1e6) {
    if (size >= 1e6 && Number.isInteger(x) && size < 1e15) return sign + grouped(size);
    const [mantissa, exponent] = size.toExponential(digits > 4 ? digits - 1 : Math.min(digits - 1, 2)).split("e");
    return `${sign}${Number(mantissa) === 1 ? "" : `${Number(mantissa)}·`}10${power(Number(exponent))}`;
  }
  if (Number.isInteger(x)) return sign + grouped(size);
  return sign + String(Number(size.toPrecision(digits)));
}

function grouped(size) {
  return String(size).replace(/\B(?=(\d{3})+$)/g, ",");
}

/** A share in percent, always: tiny ones with a power of ten, those close to 1 are not rounded to it. */
export function pct(value) {
  const x = num(value);
  if (!Number.isFinite(x)) return fmt(value);
  if (x > 0.9999 && x < 1 - 1e-6) return "> 99.99 %";
  return `${fmt(x * 100, x > 0.995 ? 4 : Math.abs(x) >= 0.1 ? 3 : 2)} %`;
}

/** A difference of two shares, in percentage points. */
export function points(value) {
  const x = num(value);
  return `${x > 0 ? "+" : ""}${fmt(x * 100, Math.abs(x) >= 0.1 ? 3 : 2)}`;
}

/** Lines of text as sentences begin. Symbols (p, g, θ), names with signs in them and paths stay as they are. */
export function capital(text) {
  return String(text).replace(/^(?:a(?= )|[a-z](?=[a-z]+([\s,;-]|$)))/gm, (letter) => letter.toUpperCase());
}

export function signed(value) {
  return (num(value) > 0 ? "+" : "") + fmt(value);
}

/** A token as it can be read: white space and characters that have no picture are spelled out. */
export function shown(text) {
  if (text === "") return "∅";
  return text
    .replace(/\r?\n/g, "↵")
    .replace(/\t/g, "⇥")
    .replace(/^ +| +$/g, (spaces) => "␣".repeat(spaces.length))
    .replace(/[\u0000-\u001f\u007f-\u009f\u200b-\u200f\u202a-\u202e\u2060-\u206f\ufeff]/g,
      (c) => `⟨${c.charCodeAt(0).toString(16)}⟩`);
}

/** The numbers of a packed array. */
export function unpacked(packed) {
  if (!packed) return null;
  const bytes = Uint8Array.from(atob(packed.f4), (c) => c.charCodeAt(0));
  return { shape: packed.shape, values: new Float32Array(bytes.buffer) };
}

/** Round steps between low and high, about `count` of them. */
export function ticks(low, high, count) {
  if (!(high > low)) return [low];
  const rough = (high - low) / Math.max(1, count);
  const unit = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 2.5, 5, 10].map((m) => m * unit).find((s) => s >= rough * 0.999);
  const out = [];
  for (let k = Math.ceil(low / step - 1e-9); k * step <= high + step * 1e-9; k++) {
    out.push(Number((k * step).toPrecision(12)));
  }
  return out;
}

export function extent(values) {
  let low = Infinity;
  let high = -Infinity;
  for (const value of values) {
    if (!Number.isFinite(value)) continue;
    if (value < low) low = value;
    if (value > high) high = value;
  }
  return [low, high];
}
