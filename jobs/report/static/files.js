// Where the pages of a report lie: features/index.js has the texts of tokens, features/<k>.js and
// clusters/<kind>/<k>.js the pages. They call a function with zlib's bytes in base64, for a page on file:// may not fetch.
"use strict";
(function () {
  const KEPT = 8, { bytes, make } = latentlake;
  const OLD = "This page needs a newer browser, one with DecompressionStream: Chrome or Edge 93, Safari 16.4, Firefox 113, or later.";
  const ofClusters = /\/cluster\.html$/.test(location.pathname), what = ofClusters ? "Cluster" : "Feature";
  const files = new Map(), waiting = new Map(); // by path: promises of their pages, and who waits for them
  let index = null, unpackIndex = null;

  async function unpacked(text) {
    if (typeof DecompressionStream === "undefined") throw new Error(OLD);
    return JSON.parse(await new Response(new Blob([bytes(text)]).stream().pipeThrough(new DecompressionStream("deflate"))).text());
  }
  window.latentlakeIndex = function (key, text) {
    unpackIndex = unpacked(text).then(function (content) { index = content; index.key = key; return index.site; });
    unpackIndex.catch(function () {}); // the page says why
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
  function link(feature) {
    const href = (ofClusters ? "feature.html#" : "#") + feature;
    return placeOf(feature) < 0 ? make("s", { title: "no page in this report" }, String(feature)) : make("a", { href: href }, String(feature));
  }
  async function read(address) { // its page; null: it has none
    let place = -1;
    if (address && address.kind) place = Object.hasOwn(index.clusters, address.kind) && address.number < index.clusters[address.kind] ? address.number : -1;
    else if (address) place = placeOf(address.number);
    if (place < 0) return null;
    const folder = address.kind ? "clusters/" + address.kind : "features";
    const page = (await load(folder + "/" + Math.floor(place / index.chunk)))[address.number];
    return page && Object.assign(page, { tokens: index.tokens });
  }
  function none(address) { // why there is no page
    const table = ofClusters ? "clusters/index.html" : "features.html", choose = make("a", { href: table }, ofClusters ? "list of clusters" : "table of features");
    if (!address) return ["The address names no " + what.toLowerCase() + ": choose one in the ", choose, "."];
    if (ofClusters) return ["There is no cluster " + address.number + " of this kind: see the ", choose, "."];
    const n = index.features, has = index.chosen === null ? n : index.chosen.length;
    if (address.number >= n) return ["There is no feature " + address.number + ": they are 0 to " + (n - 1).toLocaleString("en") + "."];
    const row = make("a", { href: "features.html#q=feature%3D" + address.number + "&dead=1" }, "its row in the table");
    return ["Feature " + address.number + " has no page in this report, which has pages of " + has.toLocaleString("en") + " of " + n.toLocaleString("en") + " features: see ", row, "."];
  }
  function cluster(kind, number) { return make("a", { href: "cluster.html#" + kind + "/" + number }, "cluster " + number); }
  addEventListener("DOMContentLoaded", function () { // the deferred scripts have run
    const ready = unpackIndex || Promise.reject(new Error("features/index.js is missing or damaged: write the report again."));
    ready.catch(function () {}); // the page says why
    latentlake.pages({ what: what, ready: ready, read: read, none: none, link: link, cluster: cluster });
  });
})();
