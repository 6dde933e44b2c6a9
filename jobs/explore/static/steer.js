// A prompt and its two continuations. Everything that came from a text or a store is set as text, never as HTML.
"use strict";
(function () {
  const { make, formatted, several, shade } = latentlake;
  const $ = function (id) { return document.getElementById(id); };
  const form = $("steering"), prompt = $("prompt"), list = $("changes"), site = form.dataset.site;
  const OPERATIONS = { set: "set to", add: "add", scale: "multiply by", ablate: "set to 0" };
  const NUMBERS = { tokens: "40", temperature: "0", seed: "0" };
  let running = null, texts = null, shadedBy = null, request = 0;

  function say(text, wrong) { $("status").textContent = text; $("status").className = wrong ? "error" : ""; }
  function lined(text) { return text.replace(/↩/g, "↩\n"); }
  function wait(milliseconds) { return new Promise(function (done) { setTimeout(done, milliseconds); }); }

  // Changes: a row each.
  function addChange(change) {
    const feature = make("input", { type: "number", min: 0, step: 1, required: true, "aria-label": "Feature" }), value = make("input", { type: "number", step: "any", required: true, "aria-label": "Value" });
    const operation = make("select", { "aria-label": "Operation" }, ...Object.keys(OPERATIONS).map(function (name) { return make("option", { value: name }, OPERATIONS[name]); }));
    const about = make("span", { class: "note" }), remove = make("button", { type: "button", class: "close", "aria-label": "Remove this change" }, "×");
    const item = make("li", {}, make("label", {}, "Feature ", feature), operation, value, about, remove);
    feature.value = change.feature; operation.value = change.operation; value.value = change.value;
    feature.addEventListener("change", function () { describe(item); });
    for (const input of [operation, value]) input.addEventListener("input", function () { tell(item); });
    remove.addEventListener("click", function () { item.remove(); if (!list.children.length) addChange({ feature: "", operation: "set", value: "" }); });
    list.append(item);
    describe(item);
    return feature;
  }
  function partsOf(item) { return { feature: item.querySelector("input"), operation: item.querySelector("select"), value: item.querySelectorAll("input")[1], about: item.querySelector(".note") }; }
  async function describe(item) { // its name, and its largest activation, by which values are measured
    const parts = partsOf(item), number = parts.feature.value;
    item.known = null;
    if (/^[0-9]{1,12}$/.test(number)) {
      try {
        const answer = await ask("/api/sites/" + site + "/steer/" + number);
        if (parts.feature.value !== number) return;
        item.known = answer;
        if (parts.value.value === "" && answer.maximum) parts.value.value = String(Number(answer.maximum.toPrecision(3)));
      } catch (error) { if (parts.feature.value === number) item.known = { error: error.message }; }
    }
    tell(item);
  }
  function tell(item) {
    const { feature, operation, value, about } = partsOf(item), known = item.known, named = [];
    value.hidden = value.disabled = operation.value === "ablate";
    about.className = known && known.error ? "note error" : "note";
    if (!known) about.replaceChildren();
    else if (known.error) about.textContent = known.error;
    else {
      if (known.name) named.push(make("a", { href: "/sites/" + site + "/feature#" + feature.value }, "“" + known.name + "”"), ", ");
      const times = operation.value === "set" || operation.value === "add" ? formatted(Number(value.value) / known.maximum) + " × " : "";
      named.push(known.maximum ? times + "its largest activation in the store" + (times ? ", " : ": ") + formatted(known.maximum) : "never active in the store");
      about.replaceChildren(...named);
    }
  }

  // The address holds the setting, so that it can be shared; nothing runs before it is wanted.
  function setting() {
    const changes = Array.from(list.children, function (item) {
      const { feature, operation, value } = partsOf(item);
      return { feature: Number(feature.value), operation: operation.value, value: operation.value === "ablate" ? 0 : Number(value.value) };
    });
    return { prompt: prompt.value, changes: changes, n_tokens: Number($("tokens").value), temperature: Number($("temperature").value), seed: Number($("seed").value) };
  }
  function address(wanted) {
    const query = new URLSearchParams({ prompt: wanted.prompt, tokens: wanted.n_tokens, temperature: wanted.temperature, seed: wanted.seed });
    for (const change of wanted.changes) query.append("change", change.feature + ":" + change.operation + ":" + change.value);
    return "?" + query;
  }
  function isNumber(text) { return /^[-+.0-9e]{1,24}$/.test(text) && isFinite(Number(text)); }
  function fill() {
    const query = new URLSearchParams(location.search);
    prompt.value = query.get("prompt") || "";
    for (const name of Object.keys(NUMBERS)) $(name).value = isNumber(query.get(name)) ? query.get(name) : NUMBERS[name];
    list.replaceChildren();
    for (const text of query.getAll("change").slice(0, 32)) {
      const parts = /^([0-9]{1,12}):(set|add|scale|ablate):(.+)$/.exec(text);
      if (parts && isNumber(parts[3])) addChange({ feature: parts[1], operation: parts[2], value: parts[3] });
    }
    const feature = query.get("feature") || ""; // ?feature=184: a change of this feature
    if (!list.children.length) addChange({ feature: /^[0-9]{1,12}$/.test(feature) ? feature : "", operation: "set", value: "" });
  }

  async function run() {
    if (running !== null) return;
    const wanted = setting(), began = Date.now(), query = address(wanted);
    if (query !== location.search) history.pushState(null, "", query);
    $("run").disabled = true;
    texts = null;
    try {
      let state = await post("/api/sites/" + site + "/steer", wanted);
      running = state.steering;
      $("cancel").hidden = $("result").hidden = false;
      $("shading").hidden = true;
      while (!state.done) {
        write(wanted.prompt, state);
        const seconds = Math.round((Date.now() - began) / 1000) + " s";
        say(state.cancelled ? "Stopping" : state.tokens ? state.tokens + " of at most " + several(state.n_tokens, "token") + ", " + seconds : "Waiting for the model, " + seconds);
        await wait(200);
        state = await ask("/api/steerings/" + running);
      }
      const seconds = (Date.now() - began) / 1000;
      if (state.texts) await show(state, wanted);
      else $("result").hidden = true;
      if (state.error) say(state.error, true);
      else say((state.cancelled ? "Cancelled after " : "") + several(state.tokens, "token") + " in " + seconds.toFixed(1) + " s");
    } catch (error) { say(error.message, true); }
    running = null;
    $("run").disabled = false;
    $("cancel").hidden = true;
  }
  function write(given, state) { // as it is being written
    for (const name of ["plain", "steered"]) $(name).replaceChildren(make("span", { class: "skipped" }, given), lined(state[name]));
  }
  async function show(state, wanted) { // when it is written: tokens, shaded
    texts = state.texts;
    ["plain", "steered"].forEach(function (name, which) {
      $(name).replaceChildren(...texts[which].pieces.map(function (piece, place) { return make("span", { class: classOf(texts[which], place) }, lined(piece.text)); }));
    });
    const features = Array.from(new Set(wanted.changes.map(function (change) { return change.feature; })));
    $("by").replaceChildren(...features.map(function (feature) { return make("button", { type: "button", class: "button", "data-feature": feature, "aria-pressed": "false" }, "Feature " + feature); }));
    $("shading").hidden = false;
    await shadeBy(features.includes(shadedBy) ? shadedBy : features[0]);
  }
  function classOf(text, place) { return place < text.prompt ? "skipped" : ""; }
  async function shadeBy(feature) {
    const mine = ++request, shown = texts;
    shadedBy = feature;
    const answers = await Promise.all(shown.map(function (text) { return ask("/api/texts/" + text.text + "/features/" + feature); }));
    if (mine !== request || shown !== texts) return;
    const here = Math.max(...answers.map(function (answer) { return Math.max(0, ...answer.values.map(Math.abs)); })), most = answers[0].maximum || here;
    ["plain", "steered"].forEach(function (name, which) {
      answers[which].values.forEach(function (value, place) {
        const token = $(name).children[place];
        token.className = (classOf(shown[which], place) + " " + shade(value, most)).trim();
        token.title = value ? formatted(value) : "";
      });
    });
    for (const button of $("by").children) button.setAttribute("aria-pressed", String(Number(button.dataset.feature) === feature));
    $("shaded").textContent = here ? "Shaded where it is active before it is changed; full shade at " + formatted(most) + ", " + (answers[0].maximum ? "its largest in the store." : "its largest here.") : "Not active in either text, before it is changed.";
  }

  $("more").addEventListener("click", function () { addChange({ feature: "", operation: "set", value: "" }).focus(); });
  form.addEventListener("submit", function (event) { event.preventDefault(); run(); });
  prompt.addEventListener("keydown", function (event) { if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) { event.preventDefault(); form.requestSubmit(); } });
  $("cancel").addEventListener("click", function () {
    if (running !== null) ask("/api/steerings/" + running, { method: "DELETE" }).catch(function (error) { say(error.message, true); });
  });
  $("by").addEventListener("click", function (event) {
    const button = event.target.closest("button");
    if (button) shadeBy(Number(button.dataset.feature)).catch(function (error) { say(error.message, true); });
  });
  addEventListener("popstate", fill);
  addEventListener("pagehide", function () { if (running !== null) fetch("/api/steerings/" + running, { method: "DELETE", keepalive: true }); });
  fill();
})();
