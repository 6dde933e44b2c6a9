// Texts and their features. Everything that came from a text or a store is set as text, never as HTML.
"use strict";
(function () {
  const { make, formatted, several, shade } = latentlake;
  const $ = function (id) { return document.getElementById(id); };
  const form = $("typing"), typed = $("typed"), status = $("status"), list = $("texts"), side = $("side"), body = $("features").tBodies[0];
  const site = form.dataset.site, texts = new Map();
  let feature = null, chosen = null, by = "activation", largest = 0, request = 0;

  function say(text, wrong) { status.textContent = text; status.className = wrong ? "error" : ""; }
  async function openContext(context) { // a stored one, without the model
    try {
      const made = await post("/api/sites/" + site + "/contexts/" + context, {});
      add(made);
      say("Context " + context + " of the store, " + several(made.tokens, "token"));
      if (feature !== null) await shadeAll();
      await choose(made.text, null);
    } catch (error) { say(error.message, true); }
  }
  async function run() {
    const text = typed.value;
    if (!text || $("run").disabled) return;
    $("run").disabled = true;
    const began = Date.now(), clock = setInterval(function () {
      const seconds = Math.round((Date.now() - began) / 1000);
      if (seconds > 0) say((texts.size ? "Running" : "Loading the model and running") + ", " + seconds + " s");
    }, 250);
    try {
      const made = await post("/api/sites/" + site + "/texts", { text: text });
      add(made);
      clearInterval(clock);
      say(several(made.tokens, "token") + " in " + ((Date.now() - began) / 1000).toFixed(2) + " s");
      if (feature !== null) await shadeAll();
      await choose(made.text, null);
    } catch (error) { say(error.message, true); }
    clearInterval(clock);
    $("run").disabled = false;
  }

  function add(made) {
    const close = make("button", { type: "button", class: "close", "aria-label": "Remove this text" }, "×"), strip = make("p", { class: "strip" });
    made.pieces.forEach(function (piece, place) {
      strip.append(make("span", { class: "piece" + (piece.counted ? "" : " skipped"), tabindex: place ? -1 : 0, role: "button", "data-piece": place }, piece.text.replace(/↩/g, "↩\n")));
    });
    const item = make("li", { "data-text": made.text }, strip, close);
    close.addEventListener("click", function () {
      texts.delete(made.text);
      item.remove();
      if (chosen && chosen.text === made.text) { chosen = null; side.hidden = true; }
    });
    list.prepend(item);
    texts.set(made.text, { strip: strip, pieces: made.pieces });
  }

  async function choose(text, piece) { // a piece of a text, or all of it (null)
    chosen = { text: text, piece: piece };
    for (const token of list.querySelectorAll("[aria-current]")) token.removeAttribute("aria-current");
    const here = texts.get(text);
    if (piece !== null) here.strip.children[piece].setAttribute("aria-current", "true");
    const mine = ++request;
    try {
      const answer = await ask("/api/texts/" + text + "/features?by=" + by + (piece === null ? "" : "&piece=" + piece));
      if (mine !== request) return;
      $("what").textContent = piece === null ? "Active in the text" : "Active at “" + here.pieces[piece].text.replace(/ /g, "·") + "”";
      body.replaceChildren.apply(body, answer.features.map(row));
      $("more").textContent = answer.n ? answer.features.length.toLocaleString("en") + " of " + several(answer.n, "active feature") + (piece === null ? "; the activation is the mean over the tokens" : "") : "No feature is active here.";
      side.hidden = false;
    } catch (error) { say(error.message, true); }
  }
  function row(line) {
    const often = line.frequency === null ? "never" : formatted(100 * line.frequency) + " %";
    return make("tr", { "aria-selected": line.feature === feature },
      make("td", {}, make("button", { type: "button", "data-feature": line.feature }, String(line.feature))),
      make("td", {}, make("a", { href: "/sites/" + site + "/feature#" + line.feature }, make("bdi", {}, line.name || "page"))),
      ...[formatted(line.activation), formatted(line.surprise_bits), often].map(function (cell) { return make("td", { class: "n" }, cell); }));
  }

  async function shadeAll() { // all texts by the chosen feature
    const values = new Map();
    for (const text of texts.keys()) {
      const answer = await ask("/api/texts/" + text + "/features/" + feature);
      values.set(text, answer.values);
      largest = answer.maximum;
    }
    for (const [text, shown] of values) texts.get(text).values = shown;
    $("scale").hidden = false;
    if (!$("maximum").dataset.own) $("maximum").value = String(Number(largest.toPrecision(4)));
    paint();
  }
  function paint() {
    const asked = Number($("maximum").value);
    let full = asked > 0 ? asked : largest, strongest = 0;
    for (const text of texts.values()) for (const value of text.values || []) strongest = Math.max(strongest, Math.abs(value));
    if (!(full > 0)) full = strongest;
    for (const text of texts.values()) (text.values || []).forEach(function (value, place) {
      const token = text.strip.children[place];
      token.className = "piece" + (text.pieces[place].counted ? " " : " skipped ") + shade(value, full);
      token.title = value ? formatted(value) : "";
    });
    $("shaded").textContent = "Shaded by feature " + feature + ": blue is positive, red negative; " + (strongest ? "its strongest activation here is " + formatted(strongest) + "." : "it is not active here.");
    for (const tr of body.rows) tr.setAttribute("aria-selected", String(Number(tr.querySelector("button").dataset.feature) === feature));
  }

  const address = new URLSearchParams(location.search);
  function numberIn(name) { return /^[0-9]{1,12}$/.test(address.get(name)) ? Number(address.get(name)) : null; }
  feature = numberIn("feature"); // ?context=5&feature=12: a stored context, shaded by a feature
  if (numberIn("context") !== null) openContext(numberIn("context"));
  form.addEventListener("submit", function (event) { event.preventDefault(); run(); });
  typed.addEventListener("keydown", function (event) { if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) { event.preventDefault(); run(); } });
  list.addEventListener("click", function (event) {
    const token = event.target.closest(".piece");
    if (token) choose(Number(token.closest("li").dataset.text), Number(token.dataset.piece));
  });
  list.addEventListener("keydown", function (event) {
    const token = event.target.closest(".piece");
    if (!token) return;
    if (event.key === "Enter" || event.key === " ") { event.preventDefault(); token.click(); }
    const next = event.key === "ArrowRight" ? token.nextSibling : event.key === "ArrowLeft" ? token.previousSibling : null;
    if (next) { event.preventDefault(); token.tabIndex = -1; next.tabIndex = 0; next.focus(); }
  });
  body.addEventListener("click", function (event) {
    const button = event.target.closest("button");
    if (!button) return;
    feature = Number(button.dataset.feature);
    delete $("maximum").dataset.own;
    shadeAll().catch(function (error) { say(error.message, true); });
  });
  $("by").addEventListener("click", function (event) {
    const button = event.target.closest("button");
    if (!button) return;
    by = button.dataset.by;
    for (const each of $("by").children) each.setAttribute("aria-pressed", String(each === button));
    if (chosen) choose(chosen.text, chosen.piece);
  });
  $("maximum").addEventListener("input", function () { $("maximum").dataset.own = "1"; paint(); });
  $("reset").addEventListener("click", function () { delete $("maximum").dataset.own; $("maximum").value = String(Number(largest.toPrecision(4))); paint(); });
})();
