// The live page: keeps the latest calls, shows those that the filters want, newest first.
import { follow, get, keep } from "./events.js";
import { callers } from "./callers.js";
import { detail, summary } from "./detail.js";
import { el } from "./elements.js";
import { changing, rules } from "./rules.js";

const KEPT = 500; // calls, and at most SHOWN of them as rows
const SHOWN = 150;
const WINDOW = 10; // seconds that the strip tells of
const RESULTS = ["rewritten", "failed", "refused", "ended", "conflict", "watched", "skipped"];
const $ = (id) => document.getElementById(id);
const filters = ["rule", "result", "caller", "path"].map($);

let calls = [];
let waiting = []; // calls that came while paused
let ticks = [];
let run = "";
let paused = false;
let connected = false;
let opened = null;
let dirty = false;

const id = (call) => `${call.run}:${call.number}`;

function wanted(call) {
  const [rule, result, caller, path] = filters.map((one) => one.value);
  const who = `${call.user_agent ?? ""} ${call.address} ${call.credential}`.toLowerCase();
  return (!rule || call.rule === rule) && (!result || call.result === result)
    && who.includes(caller.toLowerCase()) && call.path.includes(path);
}

function add(from, found) {
  const known = new Set([...calls, ...waiting].map(id));
  const fresh = found.map((call) => ({ ...call, run: from })).filter((call) => !known.has(id(call)));
  if (paused) waiting = [...fresh, ...waiting].slice(0, KEPT);
  else calls = [...fresh, ...calls].slice(0, KEPT);
  redraw();
}

function redraw() {
  if (dirty) return;
  dirty = true;
  requestAnimationFrame(() => { dirty = false; draw(); });
}

function row(call) {
  const button = el("button", { type: "button", "aria-expanded": String(opened === id(call)) },
    el("time", {}, new Date(call.ended * 1000).toLocaleTimeString("en-GB")),
    el("span", { class: call.result }, call.result),
    el("span", { class: "path" }, `${call.method} ${call.path}`),
    el("span", { class: "number" }, `${call.status ?? "-"}  ${call.total_ms.toFixed(1)} ms`),
    el("span", { class: "what" }, `${summary(call)}  ·  ${call.user_agent ?? call.address}  ·  ${call.rule}`));
  button.addEventListener("click", () => open(call));
  const made = el("li", { class: "fresh" }, button);
  made.dataset.id = id(call);
  return made;
}

function draw() {
  const list = $("calls");
  const matching = calls.filter(wanted);
  const shown = matching.slice(0, SHOWN);
  const rows = new Map([...list.children].map((one) => [one.dataset.id, one]));
  const keepRows = new Set(shown.map(id));
  for (const [name, one] of rows) if (!keepRows.has(name)) one.remove();
  let place = list.firstChild;
  for (const call of shown) {
    const there = rows.get(id(call));
    if (there && there === place) { place = place.nextSibling; continue; }
    list.insertBefore(there ?? row(call), place);
  }
  $("empty").hidden = calls.length > 0;
  if (calls.length && !matching.length) say("No call fits the filters. Clear one to see the others.", "filter");
  else say("", "filter");
}

const notices = {};
function say(words, about) {
  notices[about] = words;
  $("notice").textContent = Object.values(notices).filter(Boolean).join(" ");
}

function open(call) {
  opened = id(call);
  const place = $("detail");
  place.replaceChildren(...detail(call, close));
  place.hidden = false;
  mark();
}

function close() {
  const was = [...$("calls").children].find((one) => one.dataset.id === opened);
  opened = null;
  $("detail").hidden = true;
  mark();
  was?.firstChild.focus();
}

function mark() {
  for (const one of $("calls").children) one.firstChild.setAttribute("aria-expanded", String(one.dataset.id === opened));
}

function pause() {
  paused = !paused;
  $("pause").textContent = paused ? "Resume" : "Pause";
  $("pause").setAttribute("aria-pressed", String(paused));
  if (!paused) { calls = [...waiting, ...calls].slice(0, KEPT); waiting = []; redraw(); }
  state();
}

function state() {
  const place = $("state");
  place.className = connected ? (paused ? "held" : "") : "off";
  if (connected) place.textContent = paused ? "paused: new calls wait" : "live";
}

function strip() {
  const sum = (name) => ticks.reduce((all, one) => all + one.strip[name], 0);
  const seconds = ticks.reduce((all, one) => all + one.seconds, 0) || 1;
  const share = (part, all) => (all ? `${Math.round((100 * part) / all)} %` : "–");
  const came = ticks.reduce((all, one) => all + one.came, 0);
  const told = [
    ["matched calls", `${(came / seconds).toFixed(1)}/s`],
    ["rewritten", share(sum("rewritten"), sum("calls"))],
    ["cache hits", share(sum("cached"), sum("filled"))],
    ["refused", share(sum("refused"), sum("calls"))],
    ["added latency", sum("calls") ? `${(sum("added_ms") / sum("calls")).toFixed(1)} ms` : "–"],
  ];
  $("strip").replaceChildren(...told.map(([name, value]) => el("div", {}, el("dt", {}, name), el("dd", {}, value))));
}

function options(place, values) {
  if ([...place.options].slice(1).map((one) => one.value).join() === values.join() && values.length) return;
  const chosen = place.value;
  place.replaceChildren(el("option", { value: "" }, "all"), ...values.map((one) => el("option", { value: one }, one)));
  place.value = values.includes(chosen) ? chosen : "";
}

async function load(name) {
  const reply = await get(`/api/${name}`);
  return reply.ok ? reply.json() : null;
}

async function tables() {
  if (!connected || document.hidden) return;
  try {
    const [ruled, called] = await Promise.all([load("rules"), load("callers")]);
    if (ruled) {
      rules(ruled);
      options($("rule"), ruled.rules.map((one) => one.name));
    }
    if (called) callers(called);
  } catch { /* the stream says that nobody is there, and tries again */ }
}

const TELL = {
  hello(said) { run = said.run; },
  lost(said) { say(`This page is too slow: ${said.events} events were lost. The calls are on the audit log.`, "lost"); },
  calls(said) {
    ticks.push(said);
    while (ticks.length > WINDOW * 4) ticks.shift();
    strip();
    say(said.left_out ? `${said.left_out} more calls in this moment than are shown. They are on the audit log.` : "", "left out");
    if (said.calls.length) add(run, said.calls);
  },
};

let unlocked = () => {};
$("ask").addEventListener("submit", (submitted) => {
  submitted.preventDefault();
  keep($("token").value);
  $("token").value = "";
  unlocked();
});

async function changed(now, why) {
  connected = now === "on";
  $("ask").hidden = now !== "locked";
  if (connected) {
    ticks = [];
    const found = await load("rewrites");
    if (found) add(found.run, found.calls);
    tables();
  } else if (now === "locked") {
    $("state").textContent = "locked: give the token";
    state();
    $("token").focus();
    await new Promise((go) => { unlocked = go; });
  } else {
    $("state").textContent = why || "disconnected: is the gateway running? Trying again…";
  }
  state();
}

$("pause").addEventListener("click", pause);
for (const one of filters) one.addEventListener("input", redraw);
document.addEventListener("keydown", (pressed) => {
  if ($("mode-dialog").open) return;
  const typing = pressed.target.matches("input, select");
  if (pressed.key === "Escape") { if (opened) close(); else if (typing) pressed.target.blur(); return; }
  if (typing || pressed.ctrlKey || pressed.metaKey || pressed.altKey) return;
  const rows = [...$("calls").querySelectorAll("button")];
  const at = rows.indexOf(document.activeElement);
  if (pressed.key === "j" || pressed.key === "k") {
    const next = pressed.key === "j" ? at + 1 : Math.max(0, at - 1);
    rows[Math.min(next, rows.length - 1)]?.focus();
  } else if (pressed.key === "/") { $("path").focus(); pressed.preventDefault(); }
  else if (pressed.key === " " && !pressed.target.matches("button")) { pause(); pressed.preventDefault(); }
});

options($("result"), RESULTS);
strip();
changing(tables);
setInterval(tables, 2000);
follow((name, said) => TELL[name]?.(said), changed);
