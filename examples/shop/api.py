"""The shop's server: visits in redis, orders in PostgreSQL, both spoken to with what Python and Debian bring."""

import json
import os
import signal
import socket
import subprocess
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

CACHE_PORT = int(os.environ["LARIAT_PORT_CACHE"])
DB_PORT = os.environ["LARIAT_PORT_DB"]


def redis(*words: str) -> str:
    """Sends one command to redis and returns the first line of its answer."""
    request = f"*{len(words)}\r\n" + "".join(f"${len(word)}\r\n{word}\r\n" for word in words)
    with socket.create_connection(("127.0.0.1", CACHE_PORT), timeout=2) as connection:
        connection.sendall(request.encode())
        return connection.makefile().readline().strip()


def sql(statement: str) -> str:
    """Runs one statement and returns its rows, a line each."""
    command = ["psql", "--no-psqlrc", "--quiet", "--tuples-only", "--no-align", "--host=127.0.0.1", f"--port={DB_PORT}"]
    command += ["--username=shop", "--dbname=postgres", f"--command={statement}"]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=5).stdout.strip()


class Shop(BaseHTTPRequestHandler):
    """`/healthz`, and `/order`, which places one."""

    def do_GET(self) -> None:
        if self.path == "/healthz":
            self.answer(200, {"cache": redis("PING"), "orders": sql("SELECT count(*) FROM orders")})
        elif self.path == "/order":
            visits = redis("INCR", "visits").lstrip(":")
            orders = sql("INSERT INTO orders DEFAULT VALUES; SELECT count(*) FROM orders")
            self.answer(200, {"visits": visits, "orders": orders})
        else:
            self.answer(404, {"error": "no such page"})

    def answer(self, status: int, body: dict[str, str]) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


def main() -> None:
    sql("CREATE TABLE IF NOT EXISTS orders (number serial PRIMARY KEY, placed timestamptz DEFAULT now())")
    server = ThreadingHTTPServer(("127.0.0.1", int(os.environ["PORT"])), Shop)
    # Requests in flight are finished: their threads are waited for.
    server.daemon_threads = False
    # `shutdown` waits for the loop, which this handler interrupts: it needs a thread of its own.
    signal.signal(signal.SIGTERM, lambda *_: threading.Thread(target=server.shutdown).start())
    print(f"open on port {server.server_port}")
    server.serve_forever()
    server.server_close()
    print("closed")


main()
