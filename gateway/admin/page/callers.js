// Who calls: from the file that outlives a restart where there is one, with what the last days were like.
import { el, table } from "./elements.js";

const $ = (id) => document.getElementById(id);
const time = (seconds) => new Date(seconds * 1000).toLocaleTimeString("en-GB");
const day = (seconds) => new Date(seconds * 1000).toISOString().slice(0, 16).replace("T", " ");

let drawn = "";

export function callers(said) {
  const now = JSON.stringify(said);
  if (now === drawn) return;
  drawn = now;
  if (said.kept) kept(said);
  else latest(said);
}

function latest(said) {
  $("callers-of").textContent = said.problem ? `of the last 500 calls: ${said.problem}` : "of the last 500 calls";
  const rows = said.callers.map((one) => [one.user_agent ?? "no User-Agent", one.address, one.credential.slice(0, 12), one.calls, one.needed, one.refused, time(one.last)]);
  table($("callers"), ["caller", "address", "credential", "calls", "needed a repair", "refused", "last"], rows, "Nobody yet.");
}

function kept(said) {
  $("callers-of").textContent = said.stable ? "times in UTC; those who needed a repair last come first"
    : "times in UTC; credentials.key is not set, so after a restart a caller counts as another";
  const rows = said.callers.map((one) => [one.user_agent || "no User-Agent", one.credential.slice(0, 12), day(one.first), day(one.last), one.calls, needed(one), trend(one.days)]);
  table($("callers"), ["caller", "credential", "first seen", "last seen", "calls", "needed a repair", "14 days"], rows, "Nobody yet.");
}

function needed(one) {
  const repairs = Object.entries(one.repairs).map(([name, calls]) => `${name} ${calls}`).join(", ");
  return repairs ? `${one.needed} (${repairs})` : one.needed;
}

// A bar for each day; what needed a repair is its filled part.
function trend(days) {
  const most = Math.max(1, ...days.map((one) => one.calls));
  const words = days.filter((one) => one.calls).map((one) => `${one.day}: ${one.calls} calls, ${one.needed} needed a repair`);
  const bars = el("div", { class: "trend", role: "img", "aria-label": words.join("; ") || "no calls in these days" });
  for (const one of days) {
    const bar = el("i", { title: `${one.day}: ${one.calls} calls, ${one.needed} needed a repair` }, el("b"));
    bar.style.height = `${one.calls ? Math.max(8, (100 * one.calls) / most) : 0}%`;
    bar.firstChild.style.height = `${one.calls ? (100 * one.needed) / one.calls : 0}%`;
    bars.append(bar);
  }
  return bars;
}
