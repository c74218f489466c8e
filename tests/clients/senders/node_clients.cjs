// Node's own clients and the usual packages: CLIENT BASE VARIANT… sends the seed call once a variant, and prints each
// with the status that came back; further bases with variants may follow.
"use strict";
const http = require("node:http");
const { createGzip, gzipSync } = require("node:zlib");

const BODY = '{"attributes": {"supervisorNote": "テスト"}}';
const TYPES = {
  text: "text/plain",
  form: "application/x-www-form-urlencoded",
  charset: "application/json; charset=utf-8",
  json: "application/json",
};

function fields(variant) {
  const found = { Authorization: "Bearer one" };
  if (TYPES[variant]) found["Content-Type"] = TYPES[variant];
  if (variant === "gzip") found["Content-Encoding"] = "gzip";
  return found;
}
// A text, as most give it; bytes where the client would add a type to a text.
const content = (variant) =>
  variant === "gzip" ? gzipSync(BODY) : variant === "none" ? Buffer.from(BODY) : BODY;

const CLIENTS = {
  async fetch(url, variant) {
    const method = variant === "lower" ? "patch" : "PATCH";
    const options = { method, headers: fields(variant), body: content(variant) };
    if (variant === "chunked") Object.assign(options, { body: new Blob([BODY]).stream(), duplex: "half" });
    return (await fetch(url, options)).status;
  },
  http(url, variant) {
    return new Promise((resolve, reject) => {
      const headers = fields(variant);
      if (variant === "expect") headers.Expect = "100-continue";
      const request = http.request(url, { method: "PATCH", headers }, (reply) => {
        reply.resume();
        reply.on("end", () => resolve(reply.statusCode));
        reply.on("error", reject);
      });
      request.on("error", reject);
      if (variant === "chunked") request.write(BODY), request.end();
      else request.end(content(variant));
    });
  },
  async axios(url, variant) {
    const given = variant === "json" ? { attributes: { supervisorNote: "テスト" } } : content(variant);
    const options = { headers: fields(variant), validateStatus: () => true };
    return (await require("axios").patch(url, given, options)).status;
  },
  async got(url, variant) {
    const { default: got } = await import("got");
    return (await got.patch(url, { body: content(variant), headers: fields(variant), throwHttpErrors: false }))
      .statusCode;
  },
  async superagent(url, variant) {
    const given = variant === "json" ? { attributes: { supervisorNote: "テスト" } } : content(variant);
    return (await require("superagent").patch(url).set(fields(variant)).ok(() => true).send(given)).status;
  },
  async "node-fetch"(url, variant) {
    const body = variant === "chunked" ? require("node:stream").Readable.from([BODY]) : content(variant);
    return (await require("node-fetch")(url, { method: "PATCH", headers: fields(variant), body })).status;
  },
};

async function main([client, ...given]) {
  let base;
  for (const variant of given) {
    if (variant.includes("://")) {
      base = variant;
      continue;
    }
    const url = `${base}/api/v2/conversations/web/instances/${client}-${variant}/participants/p1`;
    let status;
    try {
      status = await CLIENTS[client](url, variant);
    } catch (error) {
      status = error.cause?.code || error.code || error.name;
    }
    console.log(variant, status);
  }
  process.exit(0);
}
main(process.argv.slice(2));
