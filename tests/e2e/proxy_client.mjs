// Node's own way through an HTTP proxy: the URL in place of the path. Run as `node proxy_client.mjs PROXY URL TOKEN`.

import { request } from "node:http";

const [proxy, url, token] = process.argv.slice(2);
const { hostname, port } = new URL(proxy);
const headers = {
  host: new URL(url).host,
  "proxy-authorization": `Basic ${Buffer.from(`${token}:x`).toString("base64")}`,
};
request({ hostname, port, path: url, headers }, async (answer) => {
  const chunks = await answer.toArray();
  process.stdout.write(JSON.stringify([answer.statusCode, Buffer.concat(chunks).toString()]));
}).end();
