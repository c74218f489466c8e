// The peer in Node: http-proxy-middleware, with the state filled in as its users do it (the body is read,
// then written again in `proxyReq`, as its own fixRequestBody does), a Map with times, a line per rewrite.
"use strict";

const fs = require("node:fs");
const http = require("node:http");
const { createProxyMiddleware } = require("http-proxy-middleware");

const options = { port: "8080", upstream: "http://127.0.0.1:9000", audit: "run/rewrites.jsonl" };
for (let i = 2; i < process.argv.length; i += 2) options[process.argv[i].slice(2)] = process.argv[i + 1];

const PATH = /^(\/api\/v2\/conversations\/web\/instances\/[^/?]+)\/participants\/([^/?]+)(?:\?.*)?$/;
const ALLOW = new Set(["active", "connected"]);
const MAX_AGE = 2000;
const agent = new http.Agent({ keepAlive: true, maxSockets: 400, maxFreeSockets: 400 });
const states = new Map();
fs.mkdirSync(require("node:path").dirname(options.audit), { recursive: true });
const log = fs.createWriteStream(options.audit, { flags: "a" });

async function read(stream) {
  const pieces = [];
  for await (const piece of stream) pieces.push(piece);
  return Buffer.concat(pieces);
}

function get(path, authorization) {
  return new Promise((resolve, reject) => {
    const headers = authorization ? { authorization } : {};
    const request = http.get(options.upstream + path, { agent, headers }, (reply) => {
      read(reply).then((body) => {
        if (reply.statusCode === 200) resolve(JSON.parse(body));
        else reject(new Error(`the look-up was answered with ${reply.statusCode}`));
      }).catch(reject);
    });
    request.on("error", reject);
  });
}

async function lookUp(conversation, participant, authorization) {
  const key = `${authorization} ${conversation} ${participant}`;
  const kept = states.get(key);
  if (kept && Date.now() - kept.at < MAX_AGE) return kept.state;
  const found = (await get(conversation, authorization)).participants.find((one) => one.id === participant);
  if (!found || !ALLOW.has(found.state)) return undefined;
  states.set(key, { at: Date.now(), state: found.state });
  return found.state;
}

const proxy = createProxyMiddleware({
  target: options.upstream,
  agent,
  proxyTimeout: 15000,
  on: {
    proxyReq(upstream, request) {
      if (request.repaired === undefined) return;
      upstream.setHeader("content-type", "application/json");
      upstream.setHeader("content-length", request.repaired.length);
      upstream.write(request.repaired);
    },
    error(error, request, reply) {
      if (reply.writeHead && !reply.headersSent) reply.writeHead(502);
      reply.end();
    },
  },
});

async function repair(request) {
  const matched = request.method === "PATCH" && PATH.exec(request.url);
  if (!matched) return;
  let body = await read(request);
  const call = JSON.parse(body);
  if (!("state" in call)) {
    const state = await lookUp(matched[1], matched[2], request.headers.authorization);
    if (state !== undefined) {
      body = Buffer.from(JSON.stringify({ state, ...call }));
      log.write(JSON.stringify({ time: new Date().toISOString(), path: request.url, filled: state }) + "\n");
    }
  }
  request.repaired = body;
}

const server = http.createServer((request, reply) => {
  repair(request).then(() => proxy(request, reply), (error) => {
    reply.writeHead(502);
    reply.end(String(error));
  });
});
server.keepAliveTimeout = 60000;
server.listen(Number(options.port), "127.0.0.1", 4096);
process.on("SIGTERM", () => process.exit(0));
