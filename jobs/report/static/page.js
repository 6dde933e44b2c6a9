// On the page of a feature: the left and right arrow keys turn to the one before and the one after.
"use strict";
addEventListener("keydown", function (event) {
  if (event.altKey || event.ctrlKey || event.metaKey || event.shiftKey || event.target.closest("input, textarea")) return;
  const rel = { ArrowLeft: "prev", ArrowRight: "next" }[event.key];
  const link = rel && document.querySelector('a[rel="' + rel + '"]');
  if (link) link.click();
});
