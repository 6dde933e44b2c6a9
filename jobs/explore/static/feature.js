// The page of a feature, from the server; its star, name and note; its examples under conditions on labels.
"use strict";
(function () {
  const { make, formatted, several } = latentlake;
  const $ = function (id) { return document.getElementById(id); };
  const go = $("go"), site = go.dataset.site, n = Number(go.dataset.features), api = "/api/sites/" + site;
  let blocks = null;

  async function read(address) {
    if (!address || address.number >= n) return null;
    const late = setTimeout(function () { $("status").textContent = "reading the tables of feature " + address.number + " …"; }, 300);
    try { return await ask(api + "/features/" + address.number); } finally {
      clearTimeout(late);
      $("status").textContent = "";
    }
  }
  function none(address) {
    if (address) return ["There is no feature " + address.number + ": they are 0 to " + (n - 1).toLocaleString("en") + "."];
    return ["Type the number of a feature, or choose one on the ", make("a", { href: "/sites/" + site + "/map" }, "map"), "."];
  }
  function link(feature) { return make("a", { href: "#" + feature }, String(feature)); }
  function cluster(kind, number) { return make("a", { href: "/sites/" + site + "/clusters#" + kind + "/" + number }, "cluster " + number); }
  function context(number, row, page) { return "/sites/" + site + "/text?context=" + number + "&row=" + row + "&feature=" + page.feature; }

  function annotation(page) {
    const part = $("annotation").content.cloneNode(true).firstElementChild, star = part.querySelector(".star");
    const kept = page.annotation, status = part.querySelector("output"), fields = part.elements;
    function shine(on) {
      star.textContent = on ? "★" : "☆";
      star.setAttribute("aria-pressed", String(on));
    }
    if (!fields) { // it is only read
      star.textContent = kept.star ? "★" : "";
      part.querySelector(".noted").textContent = kept.note || "";
      part.hidden = !kept.star && !kept.note;
      return part;
    }
    function say(text, wrong) { status.textContent = text; status.className = wrong ? "error" : ""; }
    function call(answer) { // the given name stands before the tokens
      const fires = document.querySelector("#page .fires"), old = fires.querySelector("b");
      if (old) old.remove();
      if (answer.called && answer.source !== "tokens") fires.prepend(make("b", {}, make("bdi", {}, answer.called), " "));
    }
    async function save(change, what) {
      try {
        const answer = await post(api + "/annotations/" + page.feature, change);
        Object.assign(kept, answer);
        shine(kept.star);
        if ("name" in change && part.isConnected) call(answer);
        say(what);
      } catch (error) { say("Not saved: " + error.message, true); }
    }
    function changed(name) {
      const value = fields[name].value;
      if (value.trim() === (kept[name] || "")) return;
      save({ [name]: value }, value.trim() ? name + " saved" : name + " removed");
    }
    shine(kept.star);
    fields.note.rows = Math.min(6, (kept.note || "").split("\n").length);
    for (const name of ["name", "note"]) {
      fields[name].value = kept[name] || "";
      fields[name].addEventListener("change", function () { changed(name); });
    }
    star.addEventListener("click", function () { save({ star: !kept.star }, kept.star ? "star removed" : "starred"); });
    part.addEventListener("submit", function (event) {
      event.preventDefault();
      changed("name");
      changed("note");
    });
    return part;
  }

  function elsewhere(page) { // what else there is to do with the feature; its number is in the address of each
    const pair = "kind=features&a=" + page.feature + (page.neighbour === null ? "" : "&b=" + page.neighbour), of = "/sites/" + site;
    const links = [[of + "/find?kind=similar&q=" + page.feature, "Similar features"], [of + "/compare?" + pair, "Compare"]];
    if ("steers" in go.dataset) links.push([of + "/steer?feature=" + page.feature, "Steer"]);
    return make("nav", { class: "toc elsewhere", "aria-label": "More about this feature" }, ...links.map(function (link) { return make("a", { href: link[0] }, link[1]); }));
  }

  async function side(page, condition) {
    const title = make("h3", {}, make("bdi", {}, condition));
    try {
      const answer = await ask(api + "/features/" + page.feature + "/examples?where=" + encodeURIComponent(condition));
      const mean = answer.mean === null ? "" : ", mean " + formatted(answer.mean);
      const counts = answer.matching.toLocaleString("en") + " of " + several(answer.active, "active row") + mean;
      return make("div", {}, title, make("p", { class: "note" }, counts), ...blocks.strips(Object.assign({ feature: page.feature }, answer), answer.strips));
    } catch (error) { return make("div", {}, title, make("p", { class: "error" }, error.message)); }
  }
  function byLabel(page) {
    const part = $("by_label").content.cloneNode(true).firstElementChild, form = part.querySelector("form"), given = new URLSearchParams(location.search);
    if (!form) return part;
    let turn = 0;
    async function show() {
      const mine = ++turn, conditions = ["where", "other"].map(function (name) { return form.elements[name].value.trim(); }).filter(Boolean);
      const sides = await Promise.all(conditions.map(function (condition) { return side(page, condition); }));
      if (mine === turn) part.querySelector(".sides").replaceChildren(...sides);
    }
    for (const name of ["where", "other"]) form.elements[name].value = given.get(name) || "";
    form.addEventListener("submit", function (event) {
      event.preventDefault();
      const query = new URLSearchParams(new FormData(form)).toString(); // kept for the next feature, and when the page is loaded again
      history.replaceState(null, "", location.pathname + (query === "where=&other=" ? "" : "?" + query) + location.hash);
      show();
    });
    show();
    return part;
  }
  function drawn(page) {
    const into = $("page"), stale = page.stale.map(function (table) { return table[0] + " (" + table[1] + ")"; }).join(", ");
    const title = into.querySelector(".title"), first = into.querySelector("section.examples") || into.querySelector("section:last-of-type");
    title.after(...(stale ? [make("p", { class: "warning", role: "note" }, "Stale, made before the newest shards were committed: " + stale + ".")] : []), elsewhere(page), annotation(page));
    first.after(byLabel(page));
    $("number").value = String(page.feature);
  }

  go.addEventListener("submit", function (event) {
    event.preventDefault();
    location.hash = "#" + Number($("number").value);
  });
  blocks = latentlake.pages({
    what: "Feature", ready: Promise.resolve(site), into: $("page"), read: read, none: none, link: link, cluster: cluster, context: context, drawn: drawn,
  });
})();
