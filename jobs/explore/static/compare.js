// Two groups of documents, two features or two sites, by the address; what is compared is listed as tables.
"use strict";
(function () {
  const { make, formatted, several } = latentlake;
  const $ = function (id) { return document.getElementById(id); };
  const form = $("asking"), kind = $("kind"), status = $("status"), shown = $("compared"), site = form.dataset.site;
  const HINTS = {
    groups: "Two conditions on labels that no document fits together, such as year < 1900 and year >= 1900. Labels: " + $("hint").dataset.labels + ".",
    features: "The numbers of two features.",
    sites: "The name of the other site, with which this one was matched by latentlake match.",
  };
  let request = 0;

  function offer() {
    $("hint").textContent = HINTS[kind.value];
    $("first").hidden = kind.value === "sites";
    if (kind.value === "sites") $("b").setAttribute("list", "others"); else $("b").removeAttribute("list");
  }
  function address() {
    const state = new URLSearchParams({ kind: kind.value, b: $("b").value });
    if (kind.value !== "sites") state.set("a", $("a").value);
    return "?" + state;
  }
  function question() {
    const state = new URLSearchParams(kind.value === "sites" ? { other: $("b").value } : { a: $("a").value, b: $("b").value });
    return "/api/sites/" + site + "/compare/" + kind.value + "?" + state;
  }
  function recall() {
    const state = new URLSearchParams(location.search);
    if (state.has("kind")) kind.value = state.get("kind");
    if (kind.selectedIndex < 0) kind.value = "groups";
    $("a").value = state.get("a") || "";
    $("b").value = state.get("b") || "";
    offer();
    if (state.has("b")) compare();
  }

  function numbers(values) {
    return values.map(function (value) { return make("td", { class: "n" }, formatted(value, Number.isInteger(value))); });
  }
  function feature(number, of) { return make("th", { scope: "row", class: "n" }, make("a", { href: "/sites/" + of + "/feature#" + number }, String(number))); }
  function name(text) { return make("td", {}, make("bdi", {}, text)); }
  function table(heads, rows) {
    const head = heads.map(function (text) { return make("th", { scope: "col", class: text === "name" ? "" : "n" }, text); });
    return make("div", { class: "scroll" }, make("table", { class: "list" }, make("thead", {}, make("tr", {}, ...head)), make("tbody", {}, ...rows)));
  }
  function untested(answer) { // why no feature has a test
    const smaller = answer.a.documents <= answer.b.documents ? "a" : "b";
    return "No feature can be tested: a test takes a feature that chance alone would bring to at least " + several(answer.support, "document") + " of the smaller group, and " + smaller.toUpperCase() + " has " + several(answer[smaller].documents, "document") + ". Choose conditions that more documents fit.";
  }
  const DRAW = {
    groups: function (answer) {
      const sides = ["a", "b"].map(function (side) { return side.toUpperCase() + ": " + several(answer[side].documents, "document") + ", " + several(answer[side].rows, "counted row"); });
      if (!answer.tested) return [make("p", {}, sides.join("; ")), make("p", { class: "absent" }, untested(answer))];
      const tested = answer.clear.toLocaleString("en") + " of " + several(answer.tested, "feature") + " that could be tested " + (answer.clear === 1 ? "differs" : "differ") + " at 5 % (q, Benjamini and Hochberg); the clearest first. z is the difference B − A in units of its standard error, clustered by document.";
      return [make("p", {}, sides.join("; ")), make("p", { class: "note" }, tested),
        table(["feature", "name", ...answer.columns], answer.rows.map(function (row) { return make("tr", {}, feature(row.feature, site), name(row.name), ...numbers(row.values)); }))];
    },
    features: function (answer) {
      const rows = answer.features.map(function (row) { return make("tr", {}, feature(row.feature, site), name(row.name), ...numbers(row.values)); });
      const measures = Object.keys(answer.measures), [a, b] = answer.features.map(function (row) { return row.feature; });
      const titles = { both: "Both fire", only_a: "Only " + a + " fires", only_b: "Only " + b + " fires" };
      const examples = Object.keys(titles).map(function (key) {
        const lines = answer.examples[key].map(function (row) {
          const href = "/sites/" + site + "/text?context=" + row.context + "&feature=" + (key === "only_b" ? b : a);
          return make("li", {}, make("a", { class: "example", href: href }, "…" + row.example[0], make("b", {}, row.example[1]), row.example[2] + "…"));
        });
        const count = several(answer.counts[key], "row");
        return make("section", {}, make("h2", {}, titles[key], " ", make("small", {}, count)), make("ol", { class: "strips texts" }, ...lines));
      });
      return [table(["feature", "name", ...answer.columns], rows),
        table(measures, [make("tr", {}, ...numbers(measures.map(function (key) { return answer.measures[key]; })))]), ...examples];
    },
    sites: function (answer) {
      const other = $("b").value, note = several(answer.pairs, "pair") + " of the one-to-one assignment, the best first by " + answer.by + ": median " + formatted(answer.median) + ", " + answer.same.toLocaleString("en") + " of at least " + answer.level + ".";
      return [make("p", { class: "note" }, note), table(["feature", "name", "in " + other, "name", ...answer.columns], answer.rows.map(function (row) {
        return make("tr", {}, feature(row.feature, site), name(row.name), feature(row.match, other), name(row.match_name), ...numbers(row.values));
      }))];
    },
  };
  async function compare() {
    const mine = ++request, began = Date.now();
    function say(text, wrong) { status.className = wrong ? "error" : "note"; status.textContent = text; }
    let done = false;
    async function watch(progress) { // how far the server is, until it answers
      while (!done && mine === request) {
        const state = await ask(progress).catch(function () { return { shards: null }; });
        if (done || mine !== request) return;
        say("Comparing, " + (state.shards === null ? "" : state.shards.toLocaleString("en") + " of " + several(state.of, "shard") + ", ") + Math.round((Date.now() - began) / 1000) + " s");
        await new Promise(function (next) { setTimeout(next, 300); });
      }
    }
    say("Comparing …");
    try {
      const drawing = DRAW[kind.value], requested = ask(question());
      if (kind.value === "groups") watch(question().replace("/groups?", "/progress?"));
      const answer = await requested;
      if (mine !== request) return;
      shown.replaceChildren(...drawing(answer));
      say("");
    } catch (error) {
      if (mine !== request) return;
      shown.replaceChildren();
      say(error.message, true);
    } finally { done = true; }
  }

  form.addEventListener("submit", function (event) {
    event.preventDefault();
    if (location.search !== address()) history.pushState(null, "", address());
    compare();
  });
  kind.addEventListener("change", function () { request++; offer(); shown.replaceChildren(); status.textContent = ""; });
  addEventListener("popstate", recall);
  recall();
})();
