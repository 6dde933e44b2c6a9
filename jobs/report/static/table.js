// The feature table: sorted and searched in typed arrays, and only the rows in sight are in the page.
"use strict";
(function () {
  const data = LATENTLAKE, n = data.n, ROW = 34, MORE = 8, TALLEST = 8e6, { bytes, formatted } = latentlake;
  const view = document.getElementById("view"), body = document.getElementById("rows"), head = document.getElementById("head");
  const above = document.getElementById("above"), below = document.getElementById("below");
  const search = document.getElementById("search"), dead = document.getElementById("dead"), status = document.getElementById("status");
  const said = document.getElementById("said");

  const number = new Float64Array(n);
  for (let i = 0; i < n; i++) number[i] = i;
  const columns = [{ name: "feature", title: "feature", help: "number of the feature", whole: true, values: number },
    { name: "tokens", title: "fires on", help: "tokens on which its strongest rows fire most often" }]
    .concat(data.columns.map(function (column) {
      const buffer = bytes(column.data).buffer;
      return { name: column.name, title: column.title, help: column.help, whole: column.whole,
        values: column.wide ? new Float64Array(buffer) : new Float32Array(buffer) };
    }));
  const byName = Object.create(null); // a column may have any name
  for (const column of columns) byName[column.name] = column;
  const names = new Uint32Array(bytes(data.names).buffer), width = data.width;
  const pages = data.pages === null ? null : new Uint8Array(n);
  if (pages) for (const feature of new Uint32Array(bytes(data.pages).buffer)) pages[feature] = 1;
  const plain = data.tokens.map(plainly);
  byName.tokens.values = ranks();
  view.querySelector("table").style.setProperty("--numbers", String(columns.length - 2));

  function plainly(text) { return text.normalize("NFC").toLowerCase(); } // ü typed as u and two dots is ü
  function ranks() { // each feature's place in the order of its first token
    const order = data.tokens.map(function (_, i) { return i; });
    const key = plain.map(function (text) { return text.replace(/^·+/, ""); });
    order.sort(function (a, b) { return key[a] < key[b] ? -1 : key[a] > key[b] ? 1 : a - b; });
    const rank = new Float32Array(order.length), values = new Float32Array(n);
    order.forEach(function (token, place) { rank[token] = data.tokens[token] === "" ? NaN : place; });
    for (let i = 0; i < n; i++) values[i] = rank[names[i * width]];
    return values;
  }

  // Whether a feature fits a term of the search (search.js).
  function test(term) {
    if (term.kind === "condition") return comparison(byName[term.column], term.sign, term.value);
    const word = plainly(term.text), token = word.replace(/ /g, "·"), hit = new Uint8Array(plain.length);
    const spaces = /^·|·$/.test(token); // then they are part of what is looked for
    plain.forEach(function (text, i) {
      const fits = term.kind === "word" ? text.indexOf(word) >= 0 : (spaces ? text : text.replace(/^·+|·+$/g, "")) === token;
      if (text !== "" && fits) hit[i] = 1;
    });
    const asNumber = term.kind === "word" && /^\d+$/.test(word) ? Number(word) : -1;
    return function (i) {
      if (i === asNumber) return true;
      for (let k = i * width, end = k + width; k < end; k++) if (hit[names[k]]) return true;
      return false;
    };
  }
  function number_of(fits) { // features that fit, of those that are shown
    let count = 0;
    for (let i = 0; i < n; i++) if ((dead.checked || byName.n_active.values[i] > 0) && fits(i) === true) count++;
    return count;
  }
  function whyNone(query, tests, fits) { // what there is instead, where no feature fits
    const sentences = [], terms = query.terms;
    if (terms.length > 1) {
      const each = terms.slice(0, 5).map(function (term) { return "“" + term.written + "” fits " + number_of(tests.get(term)).toLocaleString("en"); });
      const all = "all of this (a feature has " + width + " tokens at most; put or between choices)";
      sentences.push("No feature fits " + ({ or: "any of the choices", and: all }[query.tree.kind] || "this") + ": " + each.join(", ") + (terms.length > 5 ? ", and " + (terms.length - 5).toLocaleString("en") + " more." : "."));
    } else sentences.push("No feature fits “" + query.tree.written + "”.");
    let silent = 0;
    if (!dead.checked) for (let i = 0; i < n; i++) if (!(byName.n_active.values[i] > 0) && fits(i) === true) silent++;
    if (silent) sentences.push(silent.toLocaleString("en") + " that never fired would fit: tick the box.");
    return sentences;
  }

  let sort = { name: "frequency", down: true }, shown = new Uint32Array(0);
  function choose() {
    const query = readSearch(search.value, byName), tests = new Map();
    for (const term of query.terms) tests.set(term, test(term));
    const fits = query.tree === null ? function () { return true; } : fitting(query.tree, function (term) { return tests.get(term); });
    const fired = byName.n_active.values, all = dead.checked, kept = new Uint32Array(n);
    let count = 0;
    for (let i = 0; i < n; i++) if ((all || fired[i] > 0) && fits(i) === true) kept[count++] = i;
    shown = order(kept.subarray(0, count));
    status.textContent = count.toLocaleString("en") + " of " + n.toLocaleString("en") + " features";
    const none = count || query.tree === null ? [] : whyNone(query, tests, fits);
    said.textContent = query.sentences.concat(none).join(" ");
    view.querySelector("table").setAttribute("aria-rowcount", String(count + 1));
    view.scrollTop = 0;
    remember();
    draw(true);
  }
  function order(kept) { // those without a value come last, equal ones by number
    const values = byName[sort.name].values, has = [], rest = [];
    for (const i of kept) (values[i] === values[i] ? has : rest).push(i);
    const sign = sort.down ? -1 : 1;
    const sorted = Uint32Array.from(has).sort(function (a, b) { return sign * (values[a] - values[b]) || a - b; });
    const out = new Uint32Array(kept.length);
    out.set(sorted);
    out.set(rest, sorted.length);
    return out;
  }

  function path(feature) { return "feature.html#" + feature; }

  // Rows are made once, and filled anew; a table too tall for a browser is scrolled in proportion.
  const pool = [];
  function row(place) {
    if (!pool[place]) {
      const tr = document.createElement("tr");
      columns.forEach(function (column, c) {
        const cell = document.createElement(c ? "td" : "th");
        if (!c) { cell.scope = "row"; cell.appendChild(document.createElement("a")); }
        cell.className = c === 1 ? "tokens" : "n";
        tr.appendChild(cell);
      });
      pool[place] = tr;
    }
    return pool[place];
  }
  function fill(tr, at) {
    const feature = shown[at], link = tr.firstChild.firstChild;
    tr.setAttribute("aria-rowindex", String(at + 2));
    tr.dataset.at = String(at);
    link.textContent = String(feature);
    const hasPage = !pages || pages[feature]; // the others lead to their row alone
    link.href = hasPage ? path(feature) : "#q=feature%3D" + feature + "&dead=1";
    link.title = hasPage ? "" : "no page in this report";
    link.className = hasPage ? "" : "none";
    const tokens = tr.children[1];
    tokens.textContent = "";
    for (let k = 0; k < width; k++) {
      const text = data.tokens[names[feature * width + k]];
      if (text === "") continue;
      const token = document.createElement("i");
      token.textContent = text;
      tokens.appendChild(token);
    }
    for (let c = 2; c < columns.length; c++) tr.children[c].textContent = formatted(columns[c].values[feature], columns[c].whole);
  }
  let first = -1;
  function inSight() { return Math.ceil(view.clientHeight / ROW); }
  function draw(anew) {
    const tall = Math.min(shown.length * ROW, TALLEST), rows = inSight() + 2 * MORE;
    const high = head.offsetHeight, most = Math.max(0, shown.length - Math.floor((view.clientHeight - high) / ROW));
    const share = Math.min(1, view.scrollTop / Math.max(1, tall + high - view.clientHeight));
    const top = shown.length * ROW > TALLEST ? Math.round(share * most) : Math.floor(view.scrollTop / ROW);
    const from = Math.max(0, Math.min(top - MORE, shown.length - rows)), to = Math.min(shown.length, from + rows);
    if (!anew && from === first && body.childElementCount === to - from) return;
    first = from;
    const offset = shown.length * ROW > TALLEST ? Math.max(0, view.scrollTop - (top - from) * ROW) : from * ROW;
    above.style.height = Math.min(offset, tall) + "px";
    below.style.height = Math.max(0, tall - offset - (to - from) * ROW) + "px";
    while (body.childElementCount > to - from) body.removeChild(body.lastChild);
    for (let at = from; at < to; at++) {
      const tr = row(at - from);
      if (tr.parentNode !== body) body.appendChild(tr);
      fill(tr, at);
    }
  }
  function show(at) { // bring a row into sight and put the focus on it
    if (at < 0) { search.focus(); return; }
    if (at >= shown.length) return;
    const now = at - first, y = at * ROW;
    if (shown.length * ROW <= TALLEST) {
      if (y < view.scrollTop) view.scrollTop = y;
      if (y + 2 * ROW > view.scrollTop + view.clientHeight - head.offsetHeight) view.scrollTop = y + 2 * ROW - view.clientHeight + head.offsetHeight;
    } else if (now < 1 || now >= body.childElementCount - 1) view.scrollTop += ROW;
    draw(false);
    const tr = body.querySelector('[data-at="' + at + '"]');
    if (tr) tr.querySelector("a").focus({ preventScroll: true });
  }

  for (const column of columns) {
    const th = document.createElement("th"), button = document.createElement("button");
    th.scope = "col";
    th.className = column.name === "tokens" ? "tokens" : "n";
    button.type = "button";
    button.textContent = column.title;
    button.title = column.help + " (" + column.name + ")";
    button.addEventListener("click", function () {
      sort = { name: column.name, down: sort.name === column.name ? !sort.down : column.name !== "feature" && column.name !== "tokens" };
      heads();
      choose();
    });
    th.appendChild(button);
    head.appendChild(th);
    column.th = th;
  }
  function heads() {
    for (const column of columns) {
      if (column.name === sort.name) column.th.setAttribute("aria-sort", sort.down ? "descending" : "ascending");
      else column.th.removeAttribute("aria-sort");
    }
  }

  function remember() { // so that a link, and the way back from a feature, finds the same table
    const state = new URLSearchParams();
    if (search.value) state.set("q", search.value);
    state.set("sort", (sort.down ? "-" : "") + sort.name);
    if (dead.checked) state.set("dead", "1");
    const text = "#" + state.toString();
    if (location.hash !== text) history.replaceState(null, "", text);
  }
  function recall() {
    const state = new URLSearchParams(location.hash.slice(1)), by = state.get("sort") || "-frequency";
    search.value = state.get("q") || "";
    dead.checked = state.get("dead") === "1";
    const name = by.replace(/^-/, "");
    if (byName[name]) sort = { name: name, down: by[0] === "-" };
    heads();
    choose();
  }

  let wanted = 0;
  view.addEventListener("scroll", function () {
    if (!wanted) wanted = requestAnimationFrame(function () { wanted = 0; draw(false); });
  }, { passive: true });
  addEventListener("resize", function () { draw(true); });
  addEventListener("hashchange", recall);
  search.addEventListener("input", choose);
  dead.addEventListener("change", choose);
  addEventListener("keydown", function (event) {
    const tr = event.target.closest ? event.target.closest("#rows tr") : null;
    if (event.key === "/" && event.target !== search) { event.preventDefault(); search.focus(); search.select(); }
    else if (event.key === "ArrowDown" && event.target === search) { event.preventDefault(); show(first < 0 ? 0 : Math.round(view.scrollTop / ROW)); }
    else if (tr && (event.key === "ArrowDown" || event.key === "ArrowUp")) {
      event.preventDefault();
      show(Number(tr.dataset.at) + (event.key === "ArrowDown" ? 1 : -1));
    }
  });
  recall();
})();
