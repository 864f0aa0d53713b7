"""A server on this machine that answers as a test says: with text, status and headers, or badly."""

import contextlib
import json
import socket
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class ScriptedServer:
    """Speaks HTTP on a free port of 127.0.0.1; keeps what it was asked.

    `reply(n, body)` is asked for the answer to the n-th request (from 1): status and text, with
    headers as a third if any; or a function that is given the request's handler.
    `models` are the names that /models lists; with a `key`, only to those who send it.
    """

    def __init__(self, reply, models=("m",), key=None):
        self.requests = []
        self.busy = self.busiest = 0  # requests at the same time
        self.listed = None  # another reply to /models, as `reply` gives it
        self.ending = threading.Event()
        self.open = set()
        lock = threading.Lock()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True  # else headers and body arrive 40 ms apart

            def setup(self):
                super().setup()
                outer.open.add(self.connection)

            def finish(self):
                outer.open.discard(self.connection)
                super().finish()

            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with lock:
                    headers = {name.title(): value for name, value in self.headers.items()}
                    outer.requests.append((self.path, headers, body))
                    number = len(outer.requests)
                    outer.busy += 1
                    outer.busiest = max(outer.busiest, outer.busy)
                try:
                    self.answer(reply(number, body))
                finally:
                    with lock:
                        outer.busy -= 1

            def do_GET(self):
                listed = {"object": "list", "data": [{"id": m, "object": "model"} for m in models]}
                if outer.listed is not None:
                    self.answer(outer.listed)
                elif key and self.headers.get("Authorization") != f"Bearer {key}":
                    self.answer((401, "who are you?"))
                else:
                    self.answer((200, json.dumps(listed)) if models else (404, "not found"))

            def answer(self, found):
                if callable(found):
                    self.close_connection = True
                    return found(self)
                status, text, headers = (*found, {})[:3]
                data = text if isinstance(text, bytes) else text.encode()
                self.send_response(status)
                for name, value in {"Content-Length": len(data), **headers}.items():
                    self.send_header(name, str(value))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_):
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, *_):
                pass  # clients that have hung up

        self.http = Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}/v1"
        self.thread = threading.Thread(target=self.http.serve_forever, args=[0.01])
        self.thread.start()

    @property
    def bodies(self):
        """What was asked, without paths and headers."""
        return [body for _, _, body in self.requests]

    def stop(self):
        """Nobody listens any more, and connections are closed."""
        self.ending.set()
        self.http.shutdown()
        self.http.server_close()
        self.thread.join()
        for connection in list(self.open):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    # Ways to misbehave, for `reply`.

    def hang(self, handler):
        """No answer until the test ends."""
        self.ending.wait(30)

    def cut(self, handler):
        """A reply that ends in its middle."""
        begin(handler, 1000)
        handler.wfile.write(b'{"choices": [')

    def drop(self, handler):
        """The connection is closed without a word."""


def begin(handler, length):
    """The headers of a reply of so many bytes, behind which the connection is closed."""
    handler.send_response(200)
    handler.send_header("Content-Length", str(length))
    handler.send_header("Connection", "close")  # else the client might use it once more
    handler.end_headers()


def chat(text, **choice):
    """A chat completion."""
    message = {"role": "assistant", "content": text}
    found = {"index": 0, "message": message, "finish_reason": "stop", **choice}
    return 200, json.dumps({"choices": [found]})


def completion(text, **choice):
    """A plain completion."""
    found = {"index": 0, "text": text, "finish_reason": "stop", **choice}
    return 200, json.dumps({"choices": [found]})


def streamed(*pieces, form="chat", end="data: [DONE]\n\n", **last):
    """A chat (or plain) completion in pieces, as server-sent events."""
    deltas = [{"delta": {"content": p}} if form == "chat" else {"text": p} for p in pieces]
    choices = [{"index": 0, "finish_reason": None, **delta} for delta in deltas]
    choices.append({"index": 0, "delta": {}, "finish_reason": "stop", **last})
    events = [{"choices": [choice]} for choice in choices]
    text = ": a comment\n\n" + "".join(f"data: {json.dumps(event)}\n\n" for event in events)
    return 200, text + end, {"Content-Type": "text/event-stream"}
