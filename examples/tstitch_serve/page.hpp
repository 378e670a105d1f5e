/// @file
/// The page for a browser. It fetches nothing from elsewhere.
#pragma once

#include <string>

inline const std::string page = R"html(<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>tstitch</title>
<style>
body { font: 16px/1.5 sans-serif; margin: 2em auto; max-width: 60em; padding: 0 1em; color: #222; background: #fff; }
form { display: grid; grid-template-columns: max-content 1fr; gap: .4em 1em; align-items: center; max-width: 34em; }
input, select, textarea, button { font: inherit; width: 100%; box-sizing: border-box; }
button { width: auto; justify-self: start; padding: .2em 1.2em; }
progress { width: 100%; }
#pictures { display: flex; flex-wrap: wrap; gap: .5em; margin: 1em 0; }
#pictures img { min-width: 8em; max-width: 100%; image-rendering: pixelated; }
pre { white-space: pre-wrap; overflow-wrap: anywhere; font-size: 13px; }
.error { color: #a00; }
</style>
</head>
<body>
<h1>tstitch</h1>
<p id="networks"></p>
<form id="form">
<label for="token">Token</label><input id="token" type="password" autocomplete="off">
<label for="class" class="classes">Class</label><input id="class" class="classes" list="names" value="0"><datalist id="names"></datalist>
<label for="prompt" class="prompts">Prompt</label><textarea id="prompt" class="prompts" rows="2">a fox in the snow</textarea>
<label for="negative" class="prompts">Negative</label><input id="negative" class="prompts">
<label for="seed">Seed</label><input id="seed" inputmode="numeric" placeholder="at random">
<label for="count">Count</label><input id="count" type="number" min="1" value="1">
<label for="steps">Steps</label><input id="steps" type="number" min="1">
<label for="ratio" class="pair">Ratio</label><input id="ratio" class="pair" type="number" min="0" max="1" step="any">
<label for="sampler">Sampler</label><select id="sampler"><option value="">as the service says</option></select>
<label for="guidance">Guidance</label><input id="guidance" type="number" step="any">
<span></span><span><button id="draw">Draw</button> <button id="stop" type="button" hidden>Stop</button></span>
</form>
<p><progress id="progress" value="0" max="1"></progress> <span id="status" role="status"></span></p>
<div id="pictures"></div>
<pre id="parameters"></pre>
<script>
"use strict";
const at = id => document.getElementById(id);
const show = (className, shown) => { for (const each of document.getElementsByClassName(className)) each.hidden = !shown; };
let running = null;

function headers() {
  const all = {"Content-Type": "application/json"};
  if (at("token").value) all.Authorization = "Bearer " + at("token").value;
  return all;
}

function say(text, error) {
  at("status").textContent = text;
  at("status").className = error ? "error" : "";
}

async function describe() {
  const response = await fetch("v1/networks", {headers: headers()});
  const known = await response.json();
  if (known.error) return say(known.error.message, true);
  say("");
  at("networks").textContent = known.networks.map(each => each.name).join(", then ");
  const last = known.networks[known.networks.length - 1];
  show("classes", last.classes > 0);
  show("prompts", known.prompts);
  show("pair", known.networks.length === 2);
  at("names").replaceChildren(...(last.class_names || []).map(name => new Option(name.split(",")[0])));
  at("count").max = known.limits.pictures;
  at("steps").max = known.limits.steps;
  at("steps").placeholder = known.defaults.steps;
  at("ratio").placeholder = known.defaults.ratio;
  at("guidance").placeholder = known.defaults.guidance;
  const samplers = known.samplers.map(name => new Option(name, name));
  at("sampler").replaceChildren(at("sampler").options[0], ...samplers);
}

// Digits as they are, for seeds of 64 bits are too large for the numbers of JavaScript.
function body() {
  const fields = [];
  const add = (name, text) => fields.push(JSON.stringify(name) + ":" + text);
  const shown = id => !at(id).hidden && at(id).value.trim() !== "";
  if (shown("class")) add("class", JSON.stringify(at("class").value.trim()));
  for (const name of ["prompt", "negative"]) if (shown(name)) add(name, JSON.stringify(at(name).value.trim()));
  for (const name of ["seed", "count", "steps", "ratio", "guidance"]) if (shown(name)) add(name, at(name).value.trim());
  if (shown("sampler")) add("sampler", JSON.stringify(at("sampler").value));
  add("stream", "true");
  add("preview_every", "2");
  return "{" + fields.join(",") + "}";
}

function draw(list) {
  at("pictures").replaceChildren(...list.map(png => {
    const image = new Image();
    image.alt = "drawn";
    image.src = "data:image/png;base64," + png;
    return image;
  }));
}

function take(event, data) {
  if (event === "step") {
    at("progress").max = data.steps;
    at("progress").value = data.done;
    say(data.done + " of " + data.steps + " steps");
  } else if (event === "preview") {
    draw(data.png);
  } else if (event === "pictures") {
    draw(data.pictures.map(each => each.png));
    say("seed " + data.pictures[0].seed + ", " + data.seconds.toFixed(2) + " s");
    at("parameters").textContent = [...data.notes, JSON.stringify(data.parameters, null, 1)].join("\n");
  } else if (event === "error") {
    say(data.error.message, true);
  }
}

async function ask() {
  const response = await fetch("v1/pictures", {method: "POST", headers: headers(), body: body(), signal: running.signal});
  if (!response.ok) return take("error", await response.json());
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  for (let part = await reader.read(); !part.done; part = await reader.read()) {
    text += part.value;
    for (let end = text.indexOf("\n\n"); end >= 0; end = text.indexOf("\n\n")) {
      const [event, data] = text.slice(0, end).split("\n");
      text = text.slice(end + 2);
      const exact = data.slice("data: ".length).replace(/"seed":(\d{16,})/g, '"seed":"$1"');
      take(event.slice("event: ".length), JSON.parse(exact));
    }
  }
}

at("form").addEventListener("submit", async event => {
  event.preventDefault();
  if (running) return;
  running = new AbortController();
  at("stop").hidden = false;
  at("parameters").textContent = "";
  say("waits");
  try {
    await ask();
  } catch (error) {
    say(error.name === "AbortError" ? "stopped" : String(error), error.name !== "AbortError");
  }
  at("stop").hidden = true;
  running = null;
});
at("stop").addEventListener("click", () => running && running.abort());
at("token").addEventListener("change", describe);
describe();
</script>
</body>
</html>
)html";
