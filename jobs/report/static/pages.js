// The pages of features and of clusters, made of data by `latentlake.pages`, and which of them the address names.
// What comes from the corpus becomes text nodes and titles; nothing is read as HTML.
"use strict";
latentlake.pages = function (source) {
  // source: `what` the pages are of, `ready` (a promise of the site), `read` (of the page of an address, or null),
  // `none` (why there is none), `link` (of a feature) and `cluster` (of a cluster's kind and number), as elements.
  // Where there are: `context` (the address of a context), `into` (where the page goes), `drawn` (what is done then).
  const main = source.into || document.getElementById("main"), { make, drawn, shade } = latentlake, what = source.what, ofClusters = what === "Cluster";
  let site = "", turn = 0, followed = false, current = "";

  function tokens(numbers, page) {
    return numbers.map(function (number) { // a string is the name that the feature was given
      if (typeof number === "string") return make("b", {}, make("bdi", {}, number), " ");
      return make("i", {}, page.tokens[number].replace(/ /g, "·") || "⟨empty⟩");
    });
  }
  const CELLS = {
    t: function (cell, page) { return make("td", {}, ...tokens(cell, page)); },
    f: function (cell) { return make("td", {}, source.link(cell)); },
    r: function (cell) { return make("th", { scope: "row", class: "n" }, source.link(cell)); },
    n: function (cell) { return make("td", { class: "n" }, cell); },
    s: function (cell) { return make("td", { class: "n soft" }, cell); },
    b: function (cell) { return make("td", {}, make("bdi", {}, cell)); },
    p: function (cell) { return make("td", {}, cell); },
    m: function (cell) { // a number, or the site, number and name of a feature with a page
      if (typeof cell === "string") return make("td", {}, cell);
      return make("td", {}, make("a", { href: "/sites/" + cell[0] + "/feature#" + cell[1] }, String(cell[1])), " ", make("bdi", {}, cell[2]));
    },
  };
  function table(content, from, to, page) {
    const rows = content.rows.slice(from, to).map(function (cells, at) {
      const isClear = content.clear && content.clear.indexOf(from + at) >= 0;
      return make("tr", { class: isClear ? "clear" : "" }, ...cells.map(function (cell, c) { return CELLS[content.columns[c]](cell, page); }));
    });
    if (content.head) rows.unshift(make("tr", {}, ...content.head.map(function (head) { return make("th", { class: head[1] ? "n" : "", title: head[2] }, head[0]); })));
    const caption = content.caption ? [make("caption", { title: content.caption[1] }, content.caption[0])] : [];
    const made = make("table", { class: content.class }, ...caption, make("tbody", {}, ...rows));
    return content.class === "list" ? make("div", { class: "scroll" }, made) : made;
  }
  function strip(row, page) {
    const [value, pieces, places, values, firing, ends, where, context, at] = row;
    const parts = pieces.map(function (piece) { return typeof piece === "string" ? piece : page.tokens[piece]; });
    function mark(at, activation) { // 0 is left to the firing token of a random row
      const title = { class: shade(activation, page.most) || "p0", title: String(activation) };
      parts[at] = make(at === firing ? "mark" : "b", title, parts[at]);
    }
    places.forEach(function (at, n) { mark(at, values[n]); });
    if (firing >= 0 && places.indexOf(firing) < 0) mark(firing, 0);
    return make("li", {}, make("span", { class: "value" }, value),
      make("p", { class: "strip", dir: "auto" }, ends & 1 ? "" : "…", ...parts, ends & 2 ? "" : "…"),
      make("span", { class: "where" }, context === undefined ? where : make("a", { href: source.context(context, at, page) }, where)));
  }
  function folded(n, shown, part) { // what is shown at once, and the rest in a fold
    if (shown == null || n <= shown) return [part(0, n)];
    return [part(0, shown), make("details", {}, make("summary", {}, n - shown + " more"), part(shown, n))];
  }
  const BLOCKS = {
    absent: function (_, what, command) { return [make("p", { class: "absent" }, "No " + what + " yet: run ", make("code", {}, command + " STORE"), ".")]; },
    none: function (_, text) { return [make("p", { class: "absent" }, text)]; },
    text: function (_, text) { return [make("p", {}, text)]; },
    in_table: function (_, query, text) { return [make("p", { class: "note" }, make("a", { href: "features.html#q=" + encodeURIComponent(query) }, text))]; },
    note: function (_, text) { return [make("p", { class: "note" }, text)]; },
    heading: function (_, text, small) { return [heading("h3", "", text, small)]; },
    facts: function (_, facts, shown) {
      return folded(facts.length, shown, function (from, to) {
        return make("dl", {}, ...facts.slice(from, to).map(function (fact) {
          const range = fact[3] ? [make("small", {}, fact[3])] : [];
          return make("div", { title: fact[2] }, make("dt", {}, fact[0]), make("dd", {}, fact[1], ...range));
        }));
      });
    },
    histogram: function (_, content) { // what the pointer is on is written below the axis
      const [width, height, base, left] = content.size, said = make("p", { class: "note" }, content.axes);
      const bars = content.bars.map(function (bar) {
        const [x, y, wide, title, negative] = bar;
        return drawn("rect", { class: negative ? "n" : "", x: x, y: y, width: wide, height: Math.round(10 * (base - y)) / 10 }, drawn("title", {}, title));
      });
      const made = drawn("svg", { class: "histogram", viewBox: [-left, 0, width + left, height].join(" "), role: "img", "aria-label": content.label },
        ...content.heights.flatMap(function (tick) {
          return [drawn("line", { class: "grid", x1: 0, x2: width, y1: tick[0], y2: tick[0] }), drawn("text", { class: "y", x: -6, y: tick[0] + 4 }, tick[1])];
        }),
        ...bars,
        drawn("line", { x1: 0, x2: width, y1: base, y2: base }),
        ...content.ticks.map(function (tick) { return drawn("text", { x: tick[0], y: height - 6 }, tick[1]); }));
      let on = -1;
      function choose(n) {
        if (on >= 0) bars[on].classList.remove("on");
        if (n >= 0) bars[n].classList.add("on");
        said.textContent = n >= 0 ? content.bars[n][3] : content.axes;
        on = n;
      }
      made.addEventListener("pointermove", function (event) {
        const box = made.getBoundingClientRect(), x = (event.clientX - box.left) / box.width * (width + left) - left;
        choose(content.bars.findIndex(function (bar) { return x >= bar[0] - 0.5 && x <= bar[0] + bar[2] + 0.5; }));
      });
      made.addEventListener("pointerleave", function () { choose(-1); });
      return [made, said];
    },
    strips: function (page, rows, shown) {
      return folded(rows.length, shown, function (from, to) {
        return make("ol", { class: "strips" }, ...rows.slice(from, to).map(function (row) { return strip(row, page); }));
      });
    },
    texts: function (_, texts) {
      return [make("ol", { class: "strips texts" }, ...texts.map(function (text) {
        return make("li", {}, make("p", { class: "strip", dir: "auto" }, text[0]), make("span", { class: "where" }, text[1]));
      }))];
    },
    table: function (page, content) { return folded(content.rows.length, content.fold, function (from, to) { return table(content, from, to, page); }); },
    tables: function (page, contents) {
      return [make("div", { class: "columns" }, ...contents.map(function (each) { return table(each, 0, each.rows.length, page); }))];
    },
    clusters: function (_, clusters) {
      return [make("ul", { class: "clusters" }, ...clusters.map(function (each) {
        const [title, kind, number, name] = each;
        return make("li", {}, title + ": ", source.cluster(kind, number), " ", make("span", { class: "soft" }, name));
      }))];
    },
  };
  function heading(tag, id, text, small) { return make(tag, { id: id }, text, ...(small ? [" ", make("small", {}, small)] : [])); }
  function section(content, id, page) {
    const blocks = content.blocks.flatMap(function (block) { return BLOCKS[block[0]](page, ...block.slice(1)); });
    if (content.title) blocks.unshift(heading("h2", content.id ? id + "/" + content.id : "", content.title, content.small));
    return make("section", { class: content.class, "aria-label": content.aria }, ...blocks);
  }

  function draw(address, page) {
    const turns = [], folder = address.kind ? address.kind + "/" : "";
    if (page.before !== null) turns.push(make("a", { rel: "prev", href: "#" + folder + page.before }, "← " + page.before));
    if (page.after !== null) turns.push(make("a", { rel: "next", href: "#" + folder + page.after }, page.after + " →"));
    const toc = (page.toc || []).map(function (entry) { return make("a", { href: "#" + address.id + "/" + entry[0] }, entry[1]); });
    document.title = (page.title || what + " " + address.number) + " of " + site + " · latentlake";
    main.replaceChildren(
      make("div", { class: "title" }, make("h1", {}, make("small", {}, page.of || what), " " + address.number),
        make("p", { class: "fires" }, ...(page.fires ? tokens(page.fires, page) : [make("bdi", {}, page.name)])),
        make("nav", { class: "turn", "aria-label": "Other " + what.toLowerCase() + "s" }, ...turns)),
      ...(toc.length ? [make("nav", { class: "toc", "aria-label": "On this page" }, ...toc)] : []),
      ...page.sections.map(function (content) { return section(content, address.id, page); }));
  }
  function say(text, ...more) {
    document.title = what + (site ? " of " + site : "") + " · latentlake";
    main.replaceChildren(make("h1", {}, what), make("p", { class: "absent", role: "status" }, text, ...more));
  }

  function named() { // what the address names: feature.html#12, #12/logits, cluster.html#context/3; null: nothing
    const match = (ofClusters ? /^#([a-z]+)\/(\d{1,15})$/ : /^#()(\d{1,15})(?:\/.*)?$/).exec(location.hash);
    return match && { kind: match[1], number: Number(match[2]), id: (match[1] ? match[1] + "/" : "") + Number(match[2]) };
  }
  async function show() {
    const mine = ++turn, address = named(), goesUp = followed;
    followed = false;
    // The browser itself goes to a section of this page, and to the content (#main).
    if (current && (address ? address.id === current : document.getElementById(location.hash.slice(1)))) return;
    try {
      site = await source.ready;
      const page = await source.read(address);
      if (mine !== turn) return; // the address has changed meanwhile
      current = page ? address.id : "";
      if (page) draw(address, page); else say(...source.none(address));
      if (page && source.drawn) source.drawn(page);
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
  show();
  return BLOCKS;
};
