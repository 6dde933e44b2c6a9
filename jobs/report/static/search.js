// The search box of the feature table: its text becomes terms, and what cannot be read a sentence.
// A term is a word, a token in quotes, or a condition on a column; all must fit, `or` stands between choices.
"use strict";
function readSearch(text, columns) {
  const names = Object.keys(columns).filter(function (name) { return name !== "tokens"; });
  const sentences = [], choices = [[]];
  const NAME = /([\p{L}_][\p{L}\p{N}_]*)\s*(<=|>=|=<|=>|==|!=|<|>|=|≤|≥)\s*("[^"]*"?|[^\s"<>=]*)(?=\s|$)/uy;
  const SIGNS = { "==": "=", "≤": "<=", "≥": ">=", "=<": "<=", "=>": ">=" };
  let at = 0;

  function say(sentence) { if (sentences.indexOf(sentence) < 0) sentences.push(sentence); }
  function asNumber(written) {
    const plain = /^-?\d{1,3}(,\d{3})+(\.\d*)?%?$/.test(written) ? written.replace(/,/g, "") : written;
    if (!/^[-+]?(\d+\.?\d*|\.\d+)(e[-+]?\d+)?%?$/i.test(plain)) return NaN;
    return plain.endsWith("%") ? Number(plain.slice(0, -1)) / 100 : Number(plain);
  }
  function condition(match) { // whether these letters are a condition; a sentence where one is meant that can't be read
    const name = match[1].toLowerCase(), sign = SIGNS[match[2]] || match[2], limit = asNumber(match[3]);
    const written = shortened(match[0].trim());
    if (names.indexOf(name) >= 0) {
      if (limit === limit) choices[choices.length - 1].push({ kind: "condition", column: name, sign: sign, limit: limit, written: written });
      else say("“" + written + "” is left out: " + name + " " + sign + " needs a number" + (match[3] ? ", which " + shortened(match[3]) + " is not" : "") + ".");
      return true;
    }
    if (limit !== limit && name !== "tokens") return false; // such as the token x=y
    const why = name === "tokens" ? "tokens are words: type the word alone." : "no column is called " + shortened(match[1]) + "; " + nearest(name, names) + " In quotes it would be a token.";
    say("“" + written + "” is left out: " + why);
    return true;
  }

  while (at < text.length) {
    if (/\s/.test(text[at])) { at++; continue; }
    if (text[at] === '"') {
      const end = text.indexOf('"', at + 1), inside = text.slice(at + 1, end < 0 ? undefined : end);
      if (end < 0) say("A quote is not closed: “\"" + shortened(inside) + "” is read as \"" + shortened(inside) + "\".");
      if (inside) choices[choices.length - 1].push({ kind: "token", text: inside, written: '"' + shortened(inside) + '"' });
      at = end < 0 ? text.length : end + 1;
      continue;
    }
    NAME.lastIndex = at;
    const match = NAME.exec(text);
    if (match && condition(match)) { at = NAME.lastIndex; continue; }
    const word = /^[^\s"]+/.exec(text.slice(at))[0], rest = text.slice(at + word.length);
    at += word.length;
    const isBetween = choices[choices.length - 1].length > 0 && /\S/.test(rest);
    if (isBetween && /^or$/i.test(word)) choices.push([]);
    else if (!(isBetween && /^and$/i.test(word))) choices[choices.length - 1].push({ kind: "word", text: word, written: shortened(word) });
  }
  return { choices: choices.filter(function (terms) { return terms.length > 0; }), sentences: sentences };
}

function shortened(text) { // as it stands in a sentence
  return text.length > 80 ? text.slice(0, 80) + "…" : text;
}

function nearest(name, names) { // the columns with a similar name, or all of them
  const ranked = names.map(function (known) { return [distance(name.slice(0, 80), known), known]; });
  ranked.sort(function (a, b) { return a[0] - b[0] || (a[1] < b[1] ? -1 : 1); });
  const near = ranked.filter(function (pair) {
    return pair[0] <= Math.max(2, pair[1].length / 3) || pair[1].split("_").indexOf(name) >= 0;
  });
  if (!near.length) return "there are " + names.join(", ") + ".";
  return "did you mean " + near.slice(0, 3).map(function (pair) { return pair[1]; }).join(" or ") + "?";
}

function distance(a, b) { // letters to insert, remove or replace
  let row = Array.from({ length: b.length + 1 }, function (_, i) { return i; });
  for (let i = 1; i <= a.length; i++) {
    const next = [i];
    for (let j = 1; j <= b.length; j++) next[j] = Math.min(row[j] + 1, next[j - 1] + 1, row[j - 1] + (a[i - 1] !== b[j - 1] ? 1 : 0));
    row = next;
  }
  return row[b.length];
}
