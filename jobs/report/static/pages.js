// The pages of features and of clusters, made of data: features/index.js has the tokens, features/<k>.js and
// clusters/<kind>/<k>.js the pages. They call a function with zlib's bytes in base64, for a page on file:// may not fetch.
// What comes from the corpus becomes text nodes and titles; nothing is read as HTML.
"use strict";
(function () {
  const main = document.getElementById("main"), KEPT = 8, { bytes, make, drawn, shade } = latentlake;
  const OLD = "This page needs a newer browser, one with DecompressionStream: Chrome or Edge 93, Safari 16.4, Firefox 113, or later.";
  const ofClusters = /\/cluster\.html$/.test(location.pathname), what = ofClusters ? "Cluster" : "Feature";
  const files = new Map(), waiting = new Map(); // by path: promises of their pages, and who waits for them
  let index = null, unpackIndex = null, turn = 0, followed = false, current = "";

  async function unpacked(text) {
    if (typeof DecompressionStream === "undefined") throw new Error(OLD);
    return JSON.parse(await new Response(new Blob([bytes(text)]).stream().pipeThrough(new DecompressionStream("deflate"))).text());
  }
  window.latentlakeIndex = function (key, text) {
    unpackIndex = unpacked(text).then(function (content) { index = content; index.key = key; });
    unpackIndex.catch(function () {}); // show() says why
  };
  window.latentlakeChunk = function (file, key, text) {
    const take = waiting.get(file);
    if (take) take({ key: key, text: text });
  };
  function load(file) { // its pages by their numbers; of the files read, the last few are kept
    if (!files.has(file)) {
      const read = new Promise(function (resolve, reject) {
        const script = document.createElement("script");
        waiting.set(file, resolve);
        script.onerror = script.onload = function () { // too late to reject where the file has called
          script.remove();
          reject(new Error(file + ".js is missing or damaged: write the report again."));
        };
        script.src = file + ".js";
        document.head.append(script);
      }).then(function (chunk) {
        if (chunk.key === index.key) return unpacked(chunk.text);
        throw new Error(file + ".js is of another report than this page: load the page again; if that does not help, write the report again.");
      });
      files.set(file, read);
      read.catch(function () { files.delete(file); }).finally(function () { waiting.delete(file); });
      if (files.size > KEPT) files.delete(files.keys().next().value);
    }
    return files.get(file);
  }
  function placeOf(feature) { // among the features with a page; -1: it has none
    if (index.chosen === null) return feature < index.features ? feature : -1;
    let low = 0, high = index.chosen.length;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (index.chosen[middle] < feature) low = middle + 1; else high = middle;
    }
    return index.chosen[low] === feature ? low : -1;
  }

  function tokens(numbers) {
    return numbers.map(function (number) { // a string is the name that the feature was given
      if (typeof number === "string") return make("b", {}, make("bdi", {}, number), " ");
      return make("i", {}, index.tokens[number].replace(/ /g, "·") || "⟨empty⟩");
    });
  }
  function link(feature) {
    const href = (ofClusters ? "feature.html#" : "#") + feature;
    return placeOf(feature) < 0 ? make("s", { title: "no page in this report" }, String(feature)) : make("a", { href: href }, String(feature));
  }

  const CELLS = {
    t: function (cell) { return make("td", {}, ...tokens(cell)); },
    f: function (cell) { return make("td", {}, link(cell)); },
    r: function (cell) { return make("th", { scope: "row", class: "n" }, link(cell)); },
    n: function (cell) { return make("td", { class: "n" }, cell); },
    s: function (cell) { return make("td", { class: "n soft" }, cell); },
    b: function (cell) { return make("td", {}, make("bdi", {}, cell)); },
    p: function (cell) { return make("td", {}, cell); },
  };
  function table(content, from, to) {
    const rows = content.rows.slice(from, to).map(function (cells, at) {
      const isClear = content.clear && content.clear.indexOf(from + at) >= 0;
      return make("tr", { class: isClear ? "clear" : "" }, ...cells.map(function (cell, c) { return CELLS[content.columns[c]](cell); }));
    });
    if (content.head) rows.unshift(make("tr", {}, ...content.head.map(function (head) { return make("th", { class: head[1] ? "n" : "", title: head[2] }, head[0]); })));
    const caption = content.caption ? [make("caption", { title: content.caption[1] }, content.caption[0])] : [];
    const made = make("table", { class: content.class }, ...caption, make("tbody", {}, ...rows));
    return content.class === "list" ? make("div", { class: "scroll" }, made) : made;
  }
  function strip(row, most) {
    const [value, pieces, places, values, firing, ends, where] = row;
    const parts = pieces.map(function (piece) { return typeof piece === "string" ? piece : index.tokens[piece]; });
    function mark(at, activation) { // 0 is left to the firing token of a random row
      const title = { class: shade(activation, most) || "p0", title: String(activation) };
      parts[at] = make(at === firing ? "mark" : "b", title, parts[at]);
    }
    places.forEach(function (at, n) { mark(at, values[n]); });
    if (firing >= 0 && places.indexOf(firing) < 0) mark(firing, 0);
    return make("li", {}, make("span", { class: "value" }, value),
      make("p", { class: "strip", dir: "auto" }, ends & 1 ? "" : "…", ...parts, ends & 2 ? "" : "…"), make("span", { class: "where" }, where));
  }
  function folded(n, shown, part) { // what is shown at once, and the rest in a fold
    if (shown == null || n <= shown) return [part(0, n)];
    return [part(0, shown), make("details", {}, make("summary", {}, n - shown + " more"), part(shown, n))];
  }
  const BLOCKS = {
    absent: function (what, command) { return [make("p", { class: "absent" }, "No " + what + " yet: run ", make("code", {}, command + " STORE"), ".")]; },
    none: function (text) { return [make("p", { class: "absent" }, text)]; },
    text: function (text) { return [make("p", {}, text)]; },
    in_table: function (query, text) { return [make("p", { class: "note" }, make("a", { href: "features.html#q=" + encodeURIComponent(query) }, text))]; },
    note: function (text) { return [make("p", { class: "note" }, text)]; },
    heading: function (text, small) { return [heading("h3", "", text, small)]; },
    facts: function (facts) {
      return [make("dl", {}, ...facts.map(function (fact) {
        const range = fact[3] ? [make("small", {}, fact[3])] : [];
        return make("div", { title: fact[2] }, make("dt", {}, fact[0]), make("dd", {}, fact[1], ...range));
      }))];
    },
    histogram: function (content) {
      const [width, height, base] = content.size;
      return [drawn("svg", { class: "histogram", viewBox: "0 0 " + width + " " + height, role: "img", "aria-label": content.label },
        ...content.bars.map(function (bar) {
          const [x, y, wide, title, negative] = bar;
          return drawn("rect", { class: negative ? "n" : "", x: x, y: y, width: wide, height: Math.round(10 * (base - y)) / 10 }, drawn("title", {}, title));
        }),
        drawn("line", { x1: 0, x2: width, y1: base, y2: base }),
        ...content.ticks.map(function (tick) { return drawn("text", { x: tick[0], y: height - 6 }, tick[1]); }))];
    },
    strips: function (rows, shown, page) {
      return folded(rows.length, shown, function (from, to) {
        return make("ol", { class: "strips" }, ...rows.slice(from, to).map(function (row) { return strip(row, page.most); }));
      });
    },
    texts: function (texts) {
      return [make("ol", { class: "strips texts" }, ...texts.map(function (text) {
        return make("li", {}, make("p", { class: "strip", dir: "auto" }, text[0]), make("span", { class: "where" }, text[1]));
      }))];
    },
    table: function (content) { return folded(content.rows.length, content.fold, function (from, to) { return table(content, from, to); }); },
    tables: function (contents) { return [make("div", { class: "columns" }, ...contents.map(function (each) { return table(each, 0); }))]; },
    clusters: function (clusters) {
      return [make("ul", { class: "clusters" }, ...clusters.map(function (each) {
        const [title, kind, number, name] = each;
        return make("li", {}, title + ": ", make("a", { href: "cluster.html#" + kind + "/" + number }, "cluster " + number), " ", make("span", { class: "soft" }, name));
      }))];
    },
  };
  function heading(tag, id, text, small) { return make(tag, { id: id }, text, ...(small ? [" ", make("small", {}, small)] : [])); }
  function section(content, id, page) {
    const blocks = content.blocks.flatMap(function (block) { return BLOCKS[block[0]](...block.slice(1), page); });
    if (content.title) blocks.unshift(heading("h2", content.id ? id + "/" + content.id : "", content.title, content.small));
    return make("section", { class: content.class, "aria-label": content.aria }, ...blocks);
  }

  function draw(address, page) {
    const turns = [], folder = address.kind ? address.kind + "/" : "";
    if (page.before !== null) turns.push(make("a", { rel: "prev", href: "#" + folder + page.before }, "← " + page.before));
    if (page.after !== null) turns.push(make("a", { rel: "next", href: "#" + folder + page.after }, page.after + " →"));
    const toc = (page.toc || []).map(function (entry) { return make("a", { href: "#" + address.id + "/" + entry[0] }, entry[1]); });
    document.title = (page.title || what + " " + address.number) + " of " + index.site + " · latentlake";
    main.replaceChildren(
      make("div", { class: "title" }, make("h1", {}, make("small", {}, page.of || what), " " + address.number),
        make("p", { class: "fires" }, ...(page.fires ? tokens(page.fires) : [make("bdi", {}, page.name)])),
        make("nav", { class: "turn", "aria-label": "Other " + what.toLowerCase() + "s" }, ...turns)),
      ...(toc.length ? [make("nav", { class: "toc", "aria-label": "On this page" }, ...toc)] : []),
      ...page.sections.map(function (content) { return section(content, address.id, page); }));
  }
  function say(text, ...more) {
    document.title = what + (index ? " of " + index.site : "") + " · latentlake";
    main.replaceChildren(make("h1", {}, what), make("p", { class: "absent", role: "status" }, text, ...more));
  }
  function sayNone(address) { // why there is no page
    const table = ofClusters ? "clusters/index.html" : "features.html", choose = make("a", { href: table }, ofClusters ? "list of clusters" : "table of features");
    if (!address) return say("The address names no " + what.toLowerCase() + ": choose one in the ", choose, ".");
    if (ofClusters) return say("There is no cluster " + address.number + " of this kind: see the ", choose, ".");
    const n = index.features, has = index.chosen === null ? n : index.chosen.length;
    if (address.number >= n) return say("There is no feature " + address.number + ": they are 0 to " + (n - 1).toLocaleString("en") + ".");
    const row = make("a", { href: "features.html#q=feature%3D" + address.number + "&dead=1" }, "its row in the table");
    say("Feature " + address.number + " has no page in this report, which has pages of " + has.toLocaleString("en") + " of " + n.toLocaleString("en") + " features: see ", row, ".");
  }

  function named() { // what the address names: feature.html#12, #12/logits, cluster.html#context/3; null: nothing
    const match = (ofClusters ? /^#([a-z]+)\/(\d{1,15})$/ : /^#()(\d{1,15})(?:\/.*)?$/).exec(location.hash);
    return match && { kind: match[1], number: Number(match[2]), id: (match[1] ? match[1] + "/" : "") + Number(match[2]) };
  }
  async function read(address) { // its page; null: it has none
    let place = -1;
    if (address && address.kind) place = Object.hasOwn(index.clusters, address.kind) && address.number < index.clusters[address.kind] ? address.number : -1;
    else if (address) place = placeOf(address.number);
    if (place < 0) return null;
    const folder = address.kind ? "clusters/" + address.kind : "features";
    return (await load(folder + "/" + Math.floor(place / index.chunk)))[address.number];
  }
  async function show() {
    const mine = ++turn, address = named(), goesUp = followed;
    followed = false;
    // The browser itself goes to a section of this page, and to the content (#main).
    if (current && (address ? address.id === current : document.getElementById(location.hash.slice(1)))) return;
    try {
      await unpackIndex;
      const page = await read(address);
      if (mine !== turn) return; // the address has changed meanwhile
      current = page ? address.id : "";
      if (page) draw(address, page); else sayNone(address);
    } catch (error) {
      if (mine !== turn) return;
      current = "";
      say(error.message);
    }
    const target = document.getElementById(location.hash.slice(1));
    if (target) target.scrollIntoView(); else if (goesUp) scrollTo(0, 0);
  }
  main.addEventListener("click", function (event) { if (event.target.closest("a")) followed = true; });
  addEventListener("hashchange", show);
  addEventListener("DOMContentLoaded", function () { // the deferred scripts have run
    if (unpackIndex) show();
    else say("features/index.js is missing or damaged: write the report again.");
  });
})();
