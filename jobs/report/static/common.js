// What the scripts of several pages share: elements, numbers, columns of numbers, shades.
"use strict";
const latentlake = (function () {
  const LEVELS = 9;

  function bytes(text) { // of base64
    const raw = atob(text), out = new Uint8Array(raw.length);
    for (let i = 0; i < raw.length; i++) out[i] = raw.charCodeAt(i);
    return out;
  }

  // Elements. Names of tags and attributes are written in scripts alone; strings among the children become text.
  function make(tag, attributes, ...children) { return filled(document.createElement(tag), attributes, children); }
  function drawn(tag, attributes, ...children) { return filled(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, children); }
  function filled(element, attributes, children) {
    for (const name of Object.keys(attributes)) if (attributes[name] !== "" && attributes[name] != null) element.setAttribute(name, attributes[name]);
    element.append(...children);
    return element;
  }

  function formatted(value, whole) { // three digits or more; a dash where there is no number
    if (value === null || value === undefined || value !== value) return "–";
    if (whole) return value.toLocaleString("en");
    if (value === 0) return "0";
    const size = Math.abs(value);
    if (size >= 999.5) return Math.round(value).toLocaleString("en");
    return size < 1e-4 ? value.toExponential(1) : value.toPrecision(3);
  }
  function several(n, what) { return n.toLocaleString("en") + " " + what + (n === 1 ? "" : "s"); } // 1 row, 2 rows
  function shade(value, most) { // the class of a token: its sign and level; even the weakest activation has a shade
    if (!value || !most) return "";
    return (value < 0 ? "n" : "p") + Math.min(LEVELS, Math.max(1, Math.round(LEVELS * Math.abs(value) / most)));
  }
  return { bytes: bytes, make: make, drawn: drawn, formatted: formatted, several: several, shade: shade };
})();
