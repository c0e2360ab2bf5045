// What the visitor sees: one page that places an order. Needs nothing but Node itself.
const http = require("node:http");

const api = `http://127.0.0.1:${process.env.LARIAT_PORT_API}`;

const server = http.createServer(async (request, response) => {
  if (request.url === "/healthz") {
    response.end("ok\n");
    return;
  }
  try {
    const answer = await (await fetch(`${api}/order`, { signal: AbortSignal.timeout(5000) })).json();
    response.setHeader("Content-Type", "text/html; charset=utf-8");
    response.end(`<h1>Shop</h1><p>Visit ${answer.visits}, order ${answer.orders}. Thank you.</p>\n`);
  } catch (error) {
    console.error(error.message);
    response.statusCode = 502;
    response.end("the shop is closed\n");
  }
});

server.listen(Number(process.env.PORT), "127.0.0.1", () => console.log(`open on port ${process.env.PORT}`));

// Requests in flight are finished; idle connections are not waited for. Then the process ends by itself.
process.on("SIGTERM", () => {
  console.log("closing");
  server.close();
  server.closeIdleConnections();
});
