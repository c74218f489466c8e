// The stream of events, opened again whenever it ends. By fetch, as EventSource can send no token.

export function secret() { return sessionStorage.getItem("token") || ""; }

export function keep(token) { sessionStorage.setItem("token", token); }

export async function get(path, signal) {
  const token = secret();
  const headers = token ? { Authorization: `Bearer ${token}` } : {};
  return fetch(path, { headers, signal, cache: "no-store" });
}

export async function post(path, body) {
  const token = secret();
  const headers = { "Content-Type": "application/json", ...(token ? { Authorization: `Bearer ${token}` } : {}) };
  return fetch(path, { method: "POST", headers, body: JSON.stringify(body), cache: "no-store" });
}

// Text in pieces into events, each {name, said}.
export function parser(tell) {
  let rest = "";
  return (piece) => {
    const parts = (rest + piece).split("\n\n");
    rest = parts.pop();
    for (const part of parts) {
      const lines = part.split("\n");
      const name = lines[0].replace(/^event: /, "");
      tell(name, JSON.parse(lines[1].replace(/^data: /, "")));
    }
  };
}

const SILENT = 5000; // an event comes four times a second: past this nobody is there

export async function follow(tell, state) {
  for (let wait = 250; ; wait = Math.min(wait * 2, 4000)) {
    const ended = new AbortController();
    let alarm = setTimeout(() => ended.abort(), SILENT);
    try {
      const reply = await get("/api/events", ended.signal);
      if (!reply.ok) {
        const why = (await reply.text()).trim();
        if (reply.status === 401) { clearTimeout(alarm); await state("locked", why); wait = 125; continue; }
        state("off", `${reply.status}: ${why}`);
      } else {
        wait = 125;
        await state("on", "");
        const feed = parser(tell);
        const reader = reply.body.pipeThrough(new TextDecoderStream()).getReader();
        for (let got = await reader.read(); !got.done; got = await reader.read()) {
          clearTimeout(alarm);
          alarm = setTimeout(() => ended.abort(), SILENT);
          feed(got.value);
        }
        state("off", "");
      }
    } catch {
      state("off", "");
    }
    clearTimeout(alarm);
    await new Promise((go) => setTimeout(go, wait));
  }
}
