// The stored map of a site's features: points on a canvas, a grid to find the near ones, a table of the selected.
"use strict";
(async function () {
  const { bytes, make, several } = latentlake;
  const $ = function (id) { return document.getElementById(id); };
  const canvas = $("map"), context = canvas.getContext("2d"), site = canvas.dataset.site, body = $("chosen").tBodies[0];
  const COLOURS = ["#4e79a7", "#f28e2b", "#59a14f", "#e15759", "#b07aa1", "#9c755f", "#edc948", "#76b7b2", "#ff9da7", "#8cd17d"];
  const MOST_ROWS = 200, CELLS = 256;

  let data;
  try { data = await ask("/api/sites/" + site + "/map"); } catch (error) { $("status").textContent = error.message; $("status").className = "error"; return; }
  function numbers(text, Kind) { return new Kind(bytes(text).buffer); }
  const feature = numbers(data.feature, Uint32Array), xs = numbers(data.x, Float32Array), ys = numbers(data.y, Float32Array);
  const active = numbers(data.n_active, Float64Array), cluster = numbers(data.cluster, Int32Array), n = feature.length;
  const place = new Map();
  for (let i = 0; i < n; i++) place.set(feature[i], i);

  // Points sorted into a grid of cells: what lies near a place is in a few of them.
  let left = Infinity, right = -Infinity, low = Infinity, high = -Infinity;
  for (let i = 0; i < n; i++) { left = Math.min(left, xs[i]); right = Math.max(right, xs[i]); low = Math.min(low, ys[i]); high = Math.max(high, ys[i]); }
  const width = right - left || 1, height = high - low || 1, starts = new Uint32Array(CELLS * CELLS + 1), order = new Uint32Array(n);
  function column(x) { return Math.max(0, Math.min(CELLS - 1, Math.floor((x - left) / width * CELLS))); }
  function line(y) { return Math.max(0, Math.min(CELLS - 1, Math.floor((y - low) / height * CELLS))); }
  function cell(i) { return line(ys[i]) * CELLS + column(xs[i]); }
  for (let i = 0; i < n; i++) starts[cell(i) + 1]++;
  for (let c = 0; c < CELLS * CELLS; c++) starts[c + 1] += starts[c];
  const filled = starts.slice(0, -1);
  for (let i = 0; i < n; i++) order[filled[cell(i)]++] = i;
  function within(x0, x1, y0, y1, visit) {
    for (let row = line(y0); row <= line(y1); row++) for (let at = starts[row * CELLS + column(x0)]; at < starts[row * CELLS + column(x1) + 1]; at++) {
      const i = order[at];
      if (xs[i] >= x0 && xs[i] <= x1 && ys[i] >= y0 && ys[i] <= y1) visit(i);
    }
  }

  const byColour = COLOURS.map(function () { return []; }), loose = [];
  for (let i = 0; i < n; i++) (cluster[i] < 0 ? loose : byColour[cluster[i] % COLOURS.length]).push(i);
  let view = { x: 0, y: 0, scale: 1 }, selected = new Uint8Array(n), drag = null, near = -1, wanted = 0;
  function toX(x) { return (x - view.x) * view.scale + canvas.clientWidth / 2; }
  function toY(y) { return (view.y - y) * view.scale + canvas.clientHeight / 2; }
  function fromX(px) { return (px - canvas.clientWidth / 2) / view.scale + view.x; }
  function fromY(py) { return view.y - (py - canvas.clientHeight / 2) / view.scale; }
  function showAll() {
    view = { x: (left + right) / 2, y: (low + high) / 2, scale: 0.94 * Math.min(canvas.clientWidth / width, canvas.clientHeight / height) };
    draw();
  }
  function draw() { if (!wanted) wanted = requestAnimationFrame(function () { wanted = 0; paint(); }); }
  function paint() {
    const ratio = devicePixelRatio || 1, wide = canvas.clientWidth, tall = canvas.clientHeight;
    if (canvas.width !== Math.round(wide * ratio) || canvas.height !== Math.round(tall * ratio)) { canvas.width = Math.round(wide * ratio); canvas.height = Math.round(tall * ratio); }
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
    context.clearRect(0, 0, wide, tall);
    const style = getComputedStyle(document.documentElement), size = Math.max(1.5, Math.min(8, Math.min(4, 180 / Math.sqrt(n)) * Math.sqrt(view.scale * width / wide)));
    const some = picked.length > 0;
    function points(which, colour) {
      context.fillStyle = colour;
      for (const i of which) {
        const x = toX(xs[i]), y = toY(ys[i]);
        if (x < -9 || y < -9 || x > wide + 9 || y > tall + 9) continue;
        context.globalAlpha = !some || selected[i] ? 0.85 : 0.15;
        context.fillRect(x - size / 2, y - size / 2, size, size);
      }
    }
    points(loose, style.getPropertyValue("--soft"));
    byColour.forEach(function (which, c) { points(which, COLOURS[c]); });
    context.globalAlpha = 1;
    context.strokeStyle = style.getPropertyValue("--ink");
    if (near >= 0) { context.beginPath(); context.arc(toX(xs[near]), toY(ys[near]), size + 3, 0, 7); context.stroke(); }
    if (drag && drag.brush) context.strokeRect(drag.x, drag.y, drag.toX - drag.x, drag.toY - drag.y);
  }

  const names = new Map(); // of features, as far as they were wanted
  async function named(places) { // reads the names of some features
    const numbers = places.map(function (i) { return feature[i]; }).filter(function (number) { return !names.has(number); });
    if (!numbers.length) return;
    const found = await ask("/api/sites/" + site + "/names?feature=" + numbers.join("&feature="));
    for (const number of numbers) names.set(number, found[number].name);
  }
  let picked = [];
  function clusterName(i) { return cluster[i] + (data.names[cluster[i]] ? " " + data.names[cluster[i]] : ""); }
  function select(places) {
    selected = new Uint8Array(n);
    for (const i of places) selected[i] = 1;
    picked = places.sort(function (a, b) { return active[b] - active[a] || feature[a] - feature[b]; });
    body.replaceChildren.apply(body, picked.slice(0, MOST_ROWS).map(function (i) {
      return make("tr", {}, make("td", {}, make("button", { type: "button", "data-place": i }, String(feature[i]))),
        make("td", {}, make("a", { href: "/sites/" + site + "/feature#" + feature[i] }, "page")), make("td", { class: "n" }, active[i].toLocaleString("en")), make("td", {}, cluster[i] < 0 ? "–" : clusterName(i)));
    }));
    $("status").textContent = picked.length ? picked.length.toLocaleString("en") + " of " + several(n, "feature") + " selected" : several(n, "feature") + (data.by ? ", by " + data.by.toLowerCase() : "");
    $("more").textContent = picked.length > MOST_ROWS ? "The " + MOST_ROWS + " most active are listed." : "";
    draw();
    const listed = picked.slice(0, MOST_ROWS), mine = picked;
    named(listed).then(function () {
      if (mine === picked) listed.forEach(function (i, row) { body.rows[row].querySelector("a").replaceChildren(make("bdi", {}, names.get(feature[i]) || "page")); });
    }, function (error) { $("status").textContent = error.message; });
  }
  let soon = 0;
  function point(i) { // what is said of one feature; its name is read when the pointer rests on it
    if (i === near) return;
    near = i;
    describe(i);
    draw();
    clearTimeout(soon);
    if (i >= 0) soon = setTimeout(function () { named([i]).then(function () { if (i === near) describe(i); }, function () {}); }, 80);
  }
  function describe(i) {
    const name = i < 0 ? "" : names.get(feature[i]);
    $("hover").textContent = i < 0 ? "" : "Feature " + feature[i] + (name ? " " + name : "") + ", " + several(active[i], "active row") + (cluster[i] < 0 ? "" : ", cluster " + clusterName(i));
  }
  function nearest(px, py) {
    const reach = 12 / view.scale, x = fromX(px), y = fromY(py);
    let best = -1, least = reach * reach;
    within(x - reach, x + reach, y - reach, y + reach, function (i) {
      const far = (xs[i] - x) * (xs[i] - x) + (ys[i] - y) * (ys[i] - y);
      if (far < least) { least = far; best = i; }
    });
    return best;
  }
  function go(number) {
    const i = place.get(number);
    if (i === undefined) { $("status").textContent = "Feature " + number + " is not on the map: it never fired, or was left out."; return; }
    view = { x: xs[i], y: ys[i], scale: Math.max(view.scale, 12 * canvas.clientWidth / width / 4) };
    point(i);
    draw();
  }

  canvas.addEventListener("pointerdown", function (event) {
    canvas.setPointerCapture(event.pointerId);
    const brush = $("brush").getAttribute("aria-pressed") === "true" || event.shiftKey;
    drag = { brush: brush, x: event.offsetX, y: event.offsetY, toX: event.offsetX, toY: event.offsetY, view: Object.assign({}, view) };
  });
  canvas.addEventListener("pointermove", function (event) {
    if (!drag) { point(nearest(event.offsetX, event.offsetY)); return; }
    drag.toX = event.offsetX;
    drag.toY = event.offsetY;
    if (!drag.brush) view = { x: drag.view.x - (drag.toX - drag.x) / view.scale, y: drag.view.y + (drag.toY - drag.y) / view.scale, scale: view.scale };
    draw();
  });
  canvas.addEventListener("pointerup", function () {
    const done = drag;
    drag = null;
    if (!done) return;
    const moved = Math.abs(done.toX - done.x) + Math.abs(done.toY - done.y) > 4, inside = [];
    if (moved && !done.brush) return;
    if (moved) within(fromX(Math.min(done.x, done.toX)), fromX(Math.max(done.x, done.toX)), fromY(Math.max(done.y, done.toY)), fromY(Math.min(done.y, done.toY)), function (i) { inside.push(i); });
    else { const i = nearest(done.x, done.y); if (i >= 0) inside.push(i); }
    select(inside);
  });
  canvas.addEventListener("wheel", function (event) {
    event.preventDefault();
    const x = fromX(event.offsetX), y = fromY(event.offsetY), factor = Math.exp(-event.deltaY / 400);
    view.scale *= factor;
    view.x = x - (x - view.x) / factor;
    view.y = y - (y - view.y) / factor;
    draw();
  }, { passive: false });
  canvas.addEventListener("keydown", function (event) {
    const step = 40 / view.scale, moves = { ArrowLeft: [-step, 0], ArrowRight: [step, 0], ArrowUp: [0, step], ArrowDown: [0, -step] }[event.key];
    if (moves) { view.x += moves[0]; view.y += moves[1]; } else if (event.key === "+") view.scale *= 1.25; else if (event.key === "-") view.scale /= 1.25; else return;
    event.preventDefault();
    draw();
  });
  body.addEventListener("click", function (event) {
    const button = event.target.closest("button");
    if (button) go(feature[Number(button.dataset.place)]);
  });
  for (const [mine, other] of [["move", "brush"], ["brush", "move"]]) $(mine).addEventListener("click", function () {
    $(mine).setAttribute("aria-pressed", "true");
    $(other).setAttribute("aria-pressed", "false");
  });
  $("all").addEventListener("click", function () { select([]); showAll(); });
  $("go").addEventListener("change", function () { if ($("go").value !== "") go(Number($("go").value)); });
  addEventListener("resize", draw);
  select([]);
  showAll();
})();
