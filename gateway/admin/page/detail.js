// One call, opened: before and after with the difference marked, where the value came from, its timings.

import { el } from "./elements.js";

const ms = (value) => `${value < 10 ? value.toFixed(1) : Math.round(value)} ms`;

const word = (change) => change.repair + (change.field ? ` ${change.field}` : "");

export function summary(call) {
  const made = call.changes.length ? call.changes : call.would_change;
  const said = made.map((one) => (one.field ? `${one.field}=${one.after} (${one.source || "?"})` : word(one)));
  if (!call.changes.length && made.length) said.unshift("would change:");
  if (!made.length && call.needs.length) said.push(`needs ${call.needs.join(", ")}`);
  if (call.error) said.push(`refused: ${call.error}`);
  else if (call.skipped && !call.changes.length) said.push(call.skipped);
  return said.join(" ");
}

function pair(change) {
  const rows = [];
  const has = (value) => value !== undefined && value !== null;
  if (change.repair === "content_type") {
    rows.push(["before", has(change.before) ? ["Content-Type: ", el("del", {}, change.before)] : [el("del", {}, "no Content-Type")]]);
    rows.push(["after", ["Content-Type: ", el("ins", {}, change.after)]]);
  } else if (change.field) {
    const before = has(change.before) ? ["{ ", el("del", {}, `"${change.field}": ${JSON.stringify(change.before)},`), " … }"] : ["{ … }"];
    rows.push(["before", before]);
    rows.push(["after", ["{ ", el("ins", {}, `"${change.field}": ${JSON.stringify(change.after)},`), " … }  (… as the client sent it)"]]);
  } else {
    rows.push(["before", [el("del", {}, has(change.before) ? JSON.stringify(change.before) : "as sent")]]);
    rows.push(["after", [el("ins", {}, has(change.after) ? JSON.stringify(change.after) : change.repair)]]);
  }
  return rows.map(([name, inner]) => el("pre", { class: name }, `${name.padEnd(7)} `, ...inner));
}

// Each line of an outline with the place that it has: the names that lead to it.
function placed(shape) {
  const way = [];
  return (shape.lines ?? []).map(([depth, name, type]) => {
    way.length = depth;
    way.push(name ?? "[]");
    return { depth, name, type, place: way.join("\u0000"), key: `${way.join("\u0000")}\u0000${type}` };
  });
}

function outline(title, mark, shape, other, filled) {
  const there = new Set(placed(other).map((line) => line.key));
  const lines = placed(shape).flatMap(({ depth, name, type, place, key }) => {
    const value = filled.has(place) ? ` = ${JSON.stringify(filled.get(place))}` : "";
    const said = `${name === null ? "[…]" : JSON.stringify(name)}: ${type}${value}`;
    return ["  ".repeat(depth + 1), there.has(key) && !value ? said : el(mark, {}, said), "\n"];
  });
  if (shape.more) lines.push(`  … and ${shape.more} more\n`);
  return el("pre", { class: title }, `${title}: ${shape.why ?? shape.type}\n`, ...lines);
}

// The filled values are known, of all else of a body only its shape.
function bodies({ shape }, made) {
  if (!shape) return [el("p", { class: "dim" }, "Its body's shape was not taken: that is done only while a page is open, of the latest calls.")];
  const { before, after } = shape;
  if (!after) return [outline("as sent", "span", before, before, new Map())];
  const values = (which) => new Map(made.filter((one) => one.field && one[which] !== undefined && one[which] !== null).map((one) => [one.field, one[which]]));
  return [outline("before", "del", before, after, values("before")), outline("after", "ins", after, before, values("after"))];
}

function timings(call) {
  const own = Math.max(0, call.total_ms - call.lookup_ms - call.upstream_ms);
  const parts = [["lookup", "look-up", call.lookup_ms], ["upstream", "upstream", call.upstream_ms], ["own", "gateway", own]];
  const bar = el("div", { class: "bar", role: "img", "aria-label": parts.map(([, name, took]) => `${name} ${ms(took)}`).join(", ") });
  const words = el("p");
  for (const [kind, name, took] of parts) {
    const part = el("i", { class: kind });
    part.style.width = `${(100 * took) / Math.max(call.total_ms, 0.01)}%`;
    bar.append(part);
    words.append(el("span", { class: `key ${kind}` }), `${name} ${ms(took)}   `);
  }
  words.append(`in all ${ms(call.total_ms)}`);
  return [bar, words];
}

export function detail(call, close) {
  const shut = el("button", { type: "button", title: "Esc" }, "Close");
  shut.addEventListener("click", close);
  const out = [el("header", {}, el("strong", { class: call.result }, call.result), shut)];
  out.push(el("p", {}, `${call.method} ${call.path}`));
  out.push(el("h3", {}, call.changes.length ? "What was changed" : call.would_change.length ? "What would have been changed" : "What was changed"));
  const made = call.changes.length ? call.changes : call.would_change;
  if (!made.length) out.push(el("p", {}, call.needs.length ? `Nothing: rule in ${call.mode}. It needs ${call.needs.join(", ")}.` : "Nothing: the call went on as it came."));
  for (const change of made) {
    // Where the outline below has the filled member, once is enough.
    out.push(el("p", {}, word(change)), ...(change.field && call.shape?.after?.lines ? [] : pair(change)));
    if (change.source) {
      const age = change.age_ms === undefined ? "" : `, ${(change.age_ms / 1000).toFixed(1)} s old`;
      out.push(el("p", { class: "dim" }, `The value came from: ${change.source}${age}`));
    }
  }
  if (call.body) {
    const { before, after } = call.body;
    out.push(el("p", { class: "dim" }, `Body: ${before.bytes} → ${after.bytes} bytes, sha256 ${before.sha256.slice(0, 12)}… → ${after.sha256.slice(0, 12)}…`));
  }
  out.push(el("h3", {}, "Body: its names and types"), ...bodies(call, made));
  if (call.skipped) out.push(el("p", {}, `Not ${made.length ? "all " : ""}repaired: ${call.skipped}`));
  out.push(el("h3", {}, "Timings"), ...timings(call));
  out.push(el("h3", {}, "Outcome"));
  const came = call.status === null ? "no reply" : `reply ${call.status}`;
  out.push(el("p", {}, call.error ? `${came}: ${call.error}` : came, call.conflict ? ": the reply names another value than the one filled" : "", call.attempts > 1 ? `, after ${call.attempts} attempts` : ""));
  out.push(el("h3", {}, "Call"));
  for (const [name, value] of [["rule", `${call.rule} (${call.mode})`], ["id", call.id], ["request id", call.request_id ?? "none sent"], ["caller", call.user_agent ?? "no User-Agent"], ["address", call.address], ["credential", call.credential], ["ended", new Date(call.ended * 1000).toISOString()]]) {
    out.push(el("p", {}, el("span", { class: "dim" }, `${name}: `), value));
  }
  return out;
}
