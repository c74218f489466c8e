// The rules, and a rule's mode: changed only after it was asked for twice, and told how that ended.
import { post } from "./events.js";
import { el, table } from "./elements.js";

const MODES = {
  observe: "Calls go on as they come; what they would need is recorded.",
  shadow: "Calls go on as they come; what would be filled is looked up, recorded and compared.",
  enforce: "Calls are repaired before they go on.",
  on_reject: "Calls go on as they come; one that the upstream refuses (400, 415, 422) is repaired and sent again.",
};
const $ = (id) => document.getElementById(id);
const at = (seconds) => new Date(seconds * 1000).toLocaleTimeString("en-GB");

let drawn = "";
let asked = null;
let then = () => {};

export function rules(said) {
  const now = JSON.stringify(said);
  if (now === drawn) return;
  drawn = now;
  const focused = document.activeElement?.dataset?.rule;
  table($("rules"), ["rule", "mode", "call", "repairs"], said.rules.map((one) => [one.name, mode(one), `${one.method} ${one.path}`, one.repairs.join(", ")]), "No rules: everything is passed through. Add one to config.yaml.");
  if (focused) [...$("rules").querySelectorAll("button")].find((one) => one.dataset.rule === focused)?.focus();
  $("mode-changes").replaceChildren(...said.changes.map((one) => el("li", {}, `${at(one.time)} ${one.rule}: ${one.before} → ${one.mode}, by ${one.by}`)));
  $("refused-reload").textContent = said.reload_problem ? `The last reload was refused, nothing is changed: ${said.reload_problem}` : "";
}

function mode(rule) {
  const button = el("button", { type: "button", "aria-label": `Change the mode of ${rule.name}` }, "Change…");
  button.dataset.rule = rule.name;
  button.addEventListener("click", () => ask(rule));
  return el("span", { class: "mode" }, rule.mode, " ", button);
}

function ask(rule) {
  asked = rule;
  $("mode-rule").textContent = rule.name;
  $("mode-now").textContent = rule.mode;
  $("mode-new").replaceChildren(...Object.keys(MODES).filter((one) => one !== rule.mode).map((one) => el("option", { value: one }, one)));
  means();
  $("mode-dialog").showModal();
}

function means() { $("mode-means").textContent = MODES[$("mode-new").value]; }

async function change() {
  const rule = asked.name;
  const wanted = $("mode-new").value;
  $("mode-dialog").close();
  const say = (words, kind) => { $("mode-said").textContent = words; $("mode-said").className = kind; };
  say(`Asking for ${rule} in mode ${wanted}…`, "watched");
  try {
    const reply = await post("/api/mode", { rule, mode: wanted });
    const text = await reply.text();
    let said = [text.trim() || `HTTP ${reply.status}`];
    try { said = JSON.parse(text).said; } catch { /* a refusal is plain text */ }
    if (reply.ok) say(`${at(Date.now() / 1000)} ${said.join(" ")}, until the next reload or restart.`, "rewritten");
    else say(`Not changed (${reply.status}): ${said.join(" ")}`, "failed");
  } catch {
    say("No answer came: whether the mode changed, the table below tells once the gateway is there again.", "failed");
  }
  then();
}

export function changing(after) {
  then = after;
  $("mode-new").addEventListener("input", means);
  $("mode-yes").addEventListener("click", change);
  $("mode-no").addEventListener("click", () => $("mode-dialog").close());
}
