// A question in the address, its answer as a table; a column's head sorts by it where the server can.
"use strict";
(function () {
  const { make, formatted, several } = latentlake;
  const $ = function (id) { return document.getElementById(id); };
  const form = $("asking"), kind = $("kind"), status = $("status"), head = $("found").tHead.rows[0], body = $("found").tBodies[0];
  const site = form.dataset.site;
  let request = 0;

  function offer() { // the orders of this kind of question, and what is typed for it
    const options = [...$("by").options].filter(function (option) {
      option.hidden = option.disabled = option.dataset.kind !== kind.value;
      return !option.hidden;
    });
    if ($("by").selectedOptions.length === 0 || $("by").selectedOptions[0].hidden) options[0].selected = true;
    $("order").hidden = options.length < 2;
    $("filter").hidden = kind.value === "where" || kind.value === "similar";
    $("q").placeholder = kind.selectedOptions[0].dataset.hint;
  }
  function choose(order) { // an option of the order, made where it is a column that the list has not
    const options = [...$("by").options].filter(function (option) { return option.dataset.kind === kind.value; });
    const known = options.find(function (option) { return option.value === order; });
    if (known) known.selected = true;
    else if (order) $("by").append(make("option", { "data-kind": kind.value, selected: "" }, order)), $("by").lastChild.selected = true;
  }
  function address() {
    const state = new URLSearchParams();
    state.set("kind", kind.value);
    state.set("q", $("q").value);
    if ($("by").value) state.set("by", $("by").value);
    if (!$("filter").hidden && $("where").value.trim()) state.set("where", $("where").value);
    return "?" + state;
  }
  function recall() {
    const state = new URLSearchParams(location.search);
    if (state.has("kind")) kind.value = state.get("kind");
    if (kind.selectedIndex < 0) kind.value = "token";
    $("q").value = state.get("q") || "";
    $("where").value = state.get("where") || "";
    choose(state.get("by"));
    offer();
    if (state.has("q")) find();
  }
  function go() {
    if (location.search !== address()) history.pushState(null, "", address());
    find();
  }

  function cell(value) {
    if (typeof value === "string") return make("td", {}, make("bdi", {}, value));
    return make("td", { class: "n" }, formatted(value, Number.isInteger(value)));
  }
  function row(line) {
    const cells = [make("th", { scope: "row", class: "n" }, make("a", { href: "/sites/" + site + "/feature#" + line.feature }, String(line.feature))),
      make("td", {}, make("bdi", {}, line.name))];
    if (line.token !== undefined) cells.push(make("td", {}, make("i", {}, line.token)));
    cells.push(...line.values.map(cell));
    if (line.example) {
      const text = make("a", { class: "example", href: "/sites/" + site + "/text?context=" + line.context + "&feature=" + line.feature },
        "…" + line.example[0], make("b", {}, line.example[1]), line.example[2] + "…");
      cells.push(make("td", { class: "strip", dir: "auto" }, text));
    }
    return make("tr", {}, ...cells);
  }
  function heads(answer) {
    const sorts = kind.value === "where" ? answer.columns : [...$("by").options].filter(function (option) { return option.dataset.kind === kind.value; }).map(function (option) { return option.value; });
    const first = answer.rows[0] || {}, numbers = answer.columns.map(function (name, c) {
      const isText = answer.rows.some(function (line) { return typeof line.values[c] === "string"; });
      const attributes = { scope: "col", class: isText ? "" : "n", "aria-sort": name === answer.by ? "descending" : "" };
      if (sorts.indexOf(name) < 0) return make("th", attributes, name);
      const button = make("button", { type: "button" }, name);
      button.addEventListener("click", function () { choose(name); go(); });
      return make("th", attributes, button);
    });
    head.replaceChildren(make("th", { scope: "col", class: "n" }, "feature"), make("th", { scope: "col" }, "name"),
      ...(first.token === undefined ? [] : [make("th", { scope: "col" }, "token")]), ...numbers,
      ...(first.example ? [make("th", { scope: "col" }, "strongest example with the text")] : []));
  }
  async function find() {
    const mine = ++request, began = performance.now();
    status.className = "note";
    status.textContent = "Searching …";
    try {
      const answer = await ask("/api/sites/" + site + "/find" + address());
      if (mine !== request) return;
      heads(answer);
      body.replaceChildren(...answer.rows.map(row));
      const some = answer.rows.length < answer.total ? ", the first " + answer.rows.length.toLocaleString("en") : "";
      status.textContent = several(answer.total, "feature") + some + ", in " + Math.round(performance.now() - began) + " ms";
    } catch (error) {
      if (mine !== request) return;
      head.replaceChildren();
      body.replaceChildren();
      status.className = "error";
      status.textContent = error.message;
    }
  }

  form.addEventListener("submit", function (event) { event.preventDefault(); go(); });
  kind.addEventListener("change", function () { offer(); $("q").focus(); });
  $("by").addEventListener("change", function () { if ($("q").value) go(); });
  addEventListener("popstate", recall);
  recall();
  $("q").focus();
})();
