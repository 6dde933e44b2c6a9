// The search box of the feature table: its text becomes a tree of terms, and what cannot be read a sentence.
// The grammar is that of pipeline/store/reading/conditions.py (tests/data/conditions.json has the cases of
// both); besides a condition on a column, a term may be a word or a token in quotes, and terms that follow one
// another must all fit.
"use strict";
function readSearch(text, columns) {
  const names = Object.keys(columns).filter(function (name) { return name !== "tokens"; });
  const sentences = [], kinds = [], terms = [];
  const NAME = /([\p{L}_][\p{L}\p{N}_]*)\s*(<=|>=|=<|=>|==|!=|<|>|=|≤|≥)\s*("[^"]*"?|'[^']*'?|(?:[^\s()<>=!≤≥"']|!(?!=))(?:[^\s()<>=!≤≥]|!(?!=))*|)(?=[\s()]|$)/uy;
  const SIGNS = { "==": "=", "≤": "<=", "≥": ">=", "=<": "<=", "=>": ">=" }, MOST_NESTED = 100;
  let at = 0, depth = 0;

  function say(sentence, kind) { if (sentences.indexOf(sentence) < 0) { sentences.push(sentence); kinds.push(kind); } }
  function skip() { while (at < text.length && /\s/.test(text[at])) at++; }
  function keyword(word) { // whether it stands here, with something after it
    const next = text.slice(at + word.length);
    return text.slice(at, at + word.length).toLowerCase() === word && /^[\s(]/.test(next) && /^\s*[^\s)]/.test(next);
  }
  function leaf(term) { terms.push(term); return term; }
  function joined(kind, parts) { // null: nothing is left of it
    const kept = parts.filter(function (part) { return part !== null; });
    return kept.length > 1 ? { kind: kind, parts: kept } : kept.length ? kept[0] : null;
  }
  function either() {
    const parts = [all()];
    while (keyword("or")) { at += 2; parts.push(all()); }
    return joined("or", parts);
  }
  function all() {
    const parts = [];
    for (skip(); at < text.length; skip()) {
      if (text[at] === ")") {
        if (depth > 0) break;
        say("A parenthesis was not opened; in quotes it would be a token.", "syntax");
        at++;
      } else if (parts.length && keyword("or")) break;
      else if (parts.length && keyword("and")) at += 3;
      else parts.push(single());
    }
    return joined("and", parts);
  }
  function single() {
    const from = at;
    if (text[at] === "(" || keyword("not")) {
      const isGroup = text[at] === "(";
      if (depth === MOST_NESTED) {
        say("Parentheses and not are nested more than " + MOST_NESTED + " deep: the rest is left out.", "syntax");
        at = text.length;
        return null;
      }
      depth++;
      at += isGroup ? 1 : 3;
      const part = isGroup ? either() : (skip(), single());
      depth--;
      if (!isGroup) return part === null ? null : { kind: "not", part: part, written: shortened(text.slice(from, at).trim()) };
      if (text[at] === ")") at++;
      else say("A parenthesis is not closed; in quotes it would be a token.", "syntax");
      return part;
    }
    if (text[at] === '"') {
      const end = text.indexOf('"', at + 1), inside = text.slice(at + 1, end < 0 ? undefined : end);
      if (end < 0) say("A quote is not closed: “\"" + shortened(inside) + "” is read as \"" + shortened(inside) + "\".", "syntax");
      at = end < 0 ? text.length : end + 1;
      return inside ? leaf({ kind: "token", text: inside, written: '"' + shortened(inside) + '"' }) : null;
    }
    NAME.lastIndex = at;
    const match = NAME.exec(text), after = NAME.lastIndex, term = match ? condition(match) : undefined;
    if (term !== undefined) { at = after; return term; }
    const word = /^[^\s"()]+/.exec(text.slice(at))[0];
    at += word.length;
    return leaf({ kind: "word", text: word, written: shortened(word) });
  }
  function condition(match) { // the term; null where one is meant that can't be read; undefined where none is
    const typed = match[1].toLowerCase(), sign = SIGNS[match[2]] || match[2], value = match[3];
    const name = names.find(function (each) { return each.toLowerCase() === typed; });
    const written = shortened(match[0].trim());
    function refuse(why, kind) { say("“" + written + "” is left out: " + why, kind); return null; }
    if (name === undefined) {
      if (typed === "tokens") return refuse("tokens are words: type the word alone.", "column");
      if (readNumber(value) === null) return undefined; // such as the token x=y
      return refuse("no column is called " + shortened(match[1]) + "; " + nearest(typed, names) + " In quotes it would be a token.", "column");
    }
    if (value === "" || /^(and|or|not)$/i.test(value)) return refuse(name + " " + sign + " needs a " + (isText(columns[name]) ? "value." : "number."), "syntax");
    const quote = /^["']/.test(value) ? value[0] : "";
    if (quote && (value.length < 2 || !value.endsWith(quote))) return refuse("the quote is not closed.", "syntax");
    const read = readValue(columns[name], sign, quote ? value.slice(1, -1) : value, quote !== "");
    if (read === null) return refuse(columns[name].kind === "truth" ? name + " is true or false, by = or != alone." : name + " " + sign + " needs a number, which " + shortened(value) + " is not.", "value");
    return leaf({ kind: "condition", column: name, sign: sign, value: read, written: written });
  }

  const tree = either();
  return { tree: tree, terms: terms, sentences: sentences, kinds: kinds };
}

function isText(column) { return column.kind === "text"; }

// A number as it is written: its digits times a power of ten. `low` and `high` are the least and the largest
// number that is written so when it is rounded to these digits; of 0 it is 0 alone.
function readNumber(written) {
  const match = /^([-+]?)(\d{1,3}(?:,\d{3})+|\d*)(?:\.(\d*))?(?:e([-+]?\d+))?(%?)$/i.exec(written), MOST = 400;
  if (!match || !(match[2] || match[3]) || written.length > MOST || Math.abs(Number(match[4] || 0)) > MOST) return null;
  const fraction = match[3] || "", digits = BigInt(match[2].replace(/,/g, "") + fraction) * (match[1] === "-" ? -1n : 1n);
  const power = Number(match[4] || 0) - fraction.length - (match[5] ? 2 : 0);
  function moved(half) { return Number(String(digits * 10n + half) + "e" + (power - 1)); }
  return digits === 0n ? { exact: 0, low: 0, high: 0 } : { exact: moved(0n), low: moved(-5n), high: moved(5n) };
}

function readValue(column, sign, value, isQuoted) { // null: it is not of the column's type
  if (column.kind === "text") return { exact: value };
  if (column.kind === "truth") {
    const truth = { "true": 1, "1": 1, "false": 0, "0": 0 }[value.trim().toLowerCase()];
    return truth === undefined || (sign !== "=" && sign !== "!=") ? null : { exact: truth };
  }
  return isQuoted ? null : readNumber(value);
}

// Whether each row's value fits: true, false, or null where the value is missing. Of a column that is not
// `whole` = compares at the digits that are written, unless it is of another `kind`: exact, text, truth.
function comparison(column, sign, value) {
  const values = column.values, round = values instanceof Float32Array && !column.whole ? Math.fround : function (x) { return x; };
  const rounds = !column.whole && column.kind === undefined, limit = round(value.exact);
  const low = rounds ? round(value.low) : limit, high = rounds ? round(value.high) : limit;
  const fits = {
    "=": function (x) { return low <= x && x <= high; },
    "!=": function (x) { return !(low <= x && x <= high); },
    "<": function (x) { return x < limit; },
    ">": function (x) { return x > limit; },
    "<=": function (x) { return x <= limit; },
    ">=": function (x) { return x >= limit; },
  }[sign];
  return function (i) { const x = values[i]; return x !== x || x === null ? null : fits(x); };
}

// Whether a row fits the tree, in S. C. Kleene's three-valued logic: true, false, or null where it is unknown.
// `test` gives such a function of the row for a term.
function fitting(tree, test) {
  if (tree.kind === "not") {
    const part = fitting(tree.part, test);
    return function (i) { const fits = part(i); return fits === null ? null : !fits; };
  }
  if (tree.kind !== "and" && tree.kind !== "or") return test(tree);
  const parts = tree.parts.map(function (part) { return fitting(part, test); }), decides = tree.kind === "or";
  return function (i) {
    let unknown = false;
    for (const part of parts) {
      const fits = part(i);
      if (fits === decides) return decides;
      if (fits === null) unknown = true;
    }
    return unknown ? null : !decides;
  };
}

function shortened(text) { // as it stands in a sentence
  return text.length > 80 ? text.slice(0, 80) + "…" : text;
}

function nearest(name, names) { // the one column that it shortens, or those with a similar name, or all of them
  const shortens = names.filter(function (known) { return known.toLowerCase().startsWith(name) || known.toLowerCase().split("_").indexOf(name) >= 0; });
  if (shortens.length === 1) return "did you mean " + shortens[0] + "?";
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
