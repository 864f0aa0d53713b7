"""Qdrant's REST interface on loopback, answered by qdrant-client's own local mode."""

import json
import re
import threading
from contextlib import closing, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from pydantic import TypeAdapter

client = pytest.importorskip("qdrant_client", reason="pip install 'ravqa[qdrant]'")


class Server:
    """Qdrant's REST interface in front of its local mode."""

    def __init__(self):
        self.engine = client.QdrantClient(":memory:")
        self.requests = []
        self.key = None
        self.broken = None  # (method, path pattern): answered with status 500
        self.failures = []  # statuses of the next answers
        self.version = "1.20.1"
        lock = threading.Lock()
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def answer(self):
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                path = self.path.partition("?")[0]
                server.requests.append((self.command, path, len(body)))
                status, result = 200, None
                if server.key is not None and self.headers.get("api-key") != server.key:
                    status = 401
                elif server.failures:
                    status = server.failures.pop(0)
                elif server.broken and server.broken[0] == self.command:
                    status = 500 if re.search(server.broken[1], path) else 200
                if status == 200:
                    with lock:
                        status, result = server.do(self.command, path, json.loads(body or "{}"))
                answer = {"result": result, "status": "ok", "time": 0.0}
                if path == "/" and status == 200:  # Qdrant's answer without an envelope
                    answer = {"title": "qdrant", "version": server.version, "commit": "0"}
                data = json.dumps(answer).encode()
                self.send_response(status)
                if status == 429:
                    self.send_header("Retry-After", "0")
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            do_GET = do_PUT = do_POST = do_DELETE = answer  # noqa: N815

            def log_message(self, *_):
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.http.server_port}"
        self.thread = threading.Thread(target=self.http.serve_forever, args=(0.01,))
        self.thread.start()

    def close(self):
        self.http.shutdown()
        self.thread.join()
        self.http.server_close()
        self.engine.close()

    def do(self, command, path, body):
        """Status and result of a request."""
        m, e = client.models, self.engine
        dump = TypeAdapter(Any).dump_python
        if (command, path) == ("GET", "/"):
            return 200, None
        if (command, path) == ("GET", "/collections"):
            return 200, dump(e.get_collections(), mode="json")
        if (command, path) == ("GET", "/aliases"):
            return 200, dump(e.get_aliases(), mode="json")
        if (command, path) == ("POST", "/collections/aliases"):
            return 200, e.update_collection_aliases(m.ChangeAliasesOperation(**body).actions)
        name, _, rest = path.removeprefix("/collections/").partition("/")

        def scroll():
            points, offset = e.scroll(name, limit=body["limit"], offset=body.get("offset"))
            return m.ScrollResult(points=points, next_page_offset=offset)

        done = {"operation_id": 0, "status": "completed"}
        found = {
            "GET exists": lambda: {"exists": e.collection_exists(name)},
            "PUT ": lambda: e.create_collection(name, m.CreateCollection(**body).vectors),
            "DELETE ": lambda: e.delete_collection(name),
            "GET ": lambda: e.get_collection(name),
            "PUT points": lambda: e.upsert(name, m.PointsList(**body).points) and done,
            "POST points/delete": lambda: e.delete(name, m.PointIdsList(**body)) and done,
            "POST points": lambda: e.retrieve(name, body["ids"]),
            "POST points/count": lambda: e.count(name, exact=True),
            "POST points/scroll": scroll,
            "POST points/query": lambda: e.query_batch_points(name, [m.QueryRequest(**body)])[0],
        }[f"{command} {rest}"]
        if rest != "exists" and command != "PUT" and not e.collection_exists(name):
            return 404, None
        return 200, dump(found(), mode="json")


@contextmanager
def serving():
    with closing(Server()) as server:
        yield server
