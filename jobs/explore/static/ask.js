// Questions to the server: JSON, or an error with the server's sentence.
"use strict";
async function ask(path, options) {
  const answer = await fetch(path, options), kind = answer.headers.get("content-type") || "";
  const content = kind.indexOf("json") >= 0 ? await answer.json() : { error: await answer.text() };
  if (!answer.ok) throw new Error(typeof content.error === "string" ? content.error : "the server answered " + answer.status);
  return content;
}
async function post(path, content) {
  return ask(path, { method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify(content) });
}
