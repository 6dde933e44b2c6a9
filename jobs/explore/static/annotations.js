// All stars, names and notes of a site. Everything that people wrote is set as text, never as HTML.
"use strict";
(function () {
  const { make } = latentlake;
  const $ = function (id) { return document.getElementById(id); };
  const site = $("tools").dataset.site, status = $("status"), file = document.querySelector("#import input"), DIGEST = 12;

  function say(text, wrong) { status.textContent = text; status.className = wrong ? "error" : ""; }
  function when(time) { // 20260131T120000.000000Z
    return time.replace(/^(\d{4})(\d\d)(\d\d)T(\d\d)(\d\d).*$/, "$1-$2-$3 $4:$5 UTC");
  }
  function table(rows, first) {
    const head = ["", "feature", "name", "note", "by", "when"].map(function (title) { return make("th", {}, title); });
    return make("div", { class: "scroll" }, make("table", { class: "list" }, make("tbody", {}, make("tr", {}, ...head), ...rows.map(function (row) {
      return make("tr", {}, make("td", { title: row.star ? "starred" : "" }, row.star ? "★" : ""), make("td", { class: "n" }, first(row)),
        make("td", {}, row.name === null ? make("bdi", { class: "soft" }, row.called || "") : make("b", {}, make("bdi", {}, row.name))),
        make("td", { class: "noted", dir: "auto" }, row.note || ""), make("td", {}, make("bdi", {}, row.author || "")), make("td", { class: "soft" }, when(row.time)));
    }))));
  }
  async function show() {
    const found = await ask("/api/sites/" + site + "/annotations");
    $("own").replaceChildren(found.features.length ? table(found.features, function (row) {
      return make("a", { href: "/sites/" + site + "/feature#" + row.feature }, String(row.feature));
    }) : make("p", { class: "absent" }, "No feature has a star, a name or a note yet."));
    $("others").replaceChildren(...(found.others.length ? [
      make("h2", {}, "Of other SAEs ", make("small", {}, "their features are others, so these are not shown elsewhere")),
      table(found.others, function (row) { return row.feature + " of " + row.sae_digest.slice(0, DIGEST); }),
    ] : []), ...found.problems.map(function (problem) { return make("p", { class: "warning" }, problem); }));
  }
  show().catch(function (error) { say(error.message, true); });
  if (file) file.addEventListener("change", async function () {
    if (!file.files.length) return;
    try {
      const sent = { method: "POST", headers: { "content-type": "application/jsonl" }, body: file.files[0] };
      const done = await ask("/api/sites/" + site + "/annotations", sent);
      await show();
      say(done.said);
    } catch (error) { say(error.message, true); }
    file.value = "";
  });
})();
