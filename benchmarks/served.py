"""Measure whether runs keep a server busy: requests, and the least time that they allow.

A server on this machine, in a process of its own, answers every request after a time:

    constant   the same for all, 1 s
    heavy      0.1 s, and 5 s for every twentieth
    failing    as constant with 0.3 s, but every tenth is an error, and repeated
    slow       four times as slow as heavy, for machines that have other work (study_pool.py)

`--slower 3` makes all of them three times as long: 256 workers of the kind heavy would ask 740
times a second, which the processor does not allow.

A run asks it one question per request. The server says when the first request came and the last
reply left. The least time is the larger one of: sum of all replies' times, errors included, by
workers; longest reply. The client's own waits before it repeats a request do not count. No order of
the requests may reach that, so a second figure has `workers` who take the questions in turn, repeat
what failed as soon as the error is there, and never wait. Beside the times is the processor time
per request: of the run, all of its own work included, and of the server.

The kind `sample` is the bundled sample in three conditions (found by BM25, none and random
passages) with the replies of `heavy` and 64 workers.

With `--client`, the client alone sends short requests, without a run. With `--memory N`, one run of
N questions with short replies says how much memory it has at several points.

    python benchmarks/served.py [--workers 8,64,256] [--kinds constant,heavy,failing] \\
        [--slower 1] [--seconds 20]
    python benchmarks/served.py --client [--workers 8,64,256]
    python benchmarks/served.py --memory 100000
"""

import argparse
import asyncio
import heapq
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
import urllib.request
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

REPLY = {"choices": [{"message": {"content": "an oak"}, "finish_reason": "stop"}]}
USAGE = {"prompt_tokens": 20, "completion_tokens": 3}
KINDS = {
    "constant": lambda number: (1.0, 200),
    "heavy": lambda number: (5.0 if number % 20 == 0 else 0.1, 200),
    "failing": lambda number: (0.3, 500 if number % 10 == 0 else 200),
    "short": lambda number: (0.01, 200),
    "slow": lambda number: (20.0 if number % 20 == 0 else 0.4, 200),
}
MEAN = {"constant": 1.0, "heavy": 0.345, "failing": 0.3}
MEMORY_AT = (1_000, 10_000, 20_000, 50_000, 100_000)  # answered questions
ASKED = 6000  # requests of the client alone


def packed(status, found):
    body = json.dumps(found).encode()
    head = b"HTTP/1.1 %d X\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
    return head % (status, len(body)) + body


REPLIES = {200: packed(200, REPLY | {"usage": USAGE}), 500: packed(500, {"error": "too busy"})}
MODELS = packed(200, {"data": [{"id": "m"}]})


class Server:
    """Answers after a time that depends on the number of the request."""

    def __init__(self, kind, slower):
        self.kind, self.slower = kind, slower
        self.first, self.last = 0.0, 0.0
        self.delays = []
        self.busy = self.busiest = self.answered = 0

    def stats(self):
        used = resource.getrusage(resource.RUSAGE_SELF)
        return {
            "seconds": self.last - self.first,
            "answered": self.answered,
            "busiest": self.busiest,
            "processor": used.ru_utime + used.ru_stime,
        }

    def ask(self, write):
        self.first = self.first or time.monotonic()
        delay, status = KINDS[self.kind](len(self.delays) + 1)
        self.delays.append(delay := delay * self.slower)
        self.busy += 1
        self.busiest = max(self.busiest, self.busy)
        asyncio.get_running_loop().call_later(delay, self.answer, write, REPLIES[status])

    def answer(self, write, reply):
        self.busy -= 1
        self.answered += 1
        write(reply)
        self.last = time.monotonic()

    async def run(self):
        make = asyncio.get_running_loop().create_server
        made = await make(lambda: Connection(self), "127.0.0.1", 0, backlog=4096)
        print(made.sockets[0].getsockname()[1], flush=True)
        await made.serve_forever()


class Connection(asyncio.Protocol):
    def __init__(self, server):
        self.server = server
        self.data = b""

    def connection_made(self, transport):
        self.write = transport.write

    def data_received(self, data):
        self.data += data
        head, end, rest = self.data.partition(b"\r\n\r\n")
        _, _, length = head.lower().partition(b"content-length:")
        length = int(length.split(b"\r\n", 1)[0] or 0)
        if not end or len(rest) < length:
            return
        self.data = rest[length:]
        if head.startswith(b"POST"):
            self.server.ask(self.write)
        elif head.startswith(b"GET /stats"):
            self.write(packed(200, self.server.stats()))
        elif head.startswith(b"GET /delays"):
            self.write(packed(200, self.server.delays))
        else:
            self.write(MODELS)


@contextmanager
def serving(kind, slower=1.0):
    """Start a server; yield its address."""
    command = [sys.executable, __file__, "--serve", kind, "--slower", str(slower)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            yield f"http://127.0.0.1:{server.stdout.readline().strip()}"
        finally:
            server.kill()


def told(url, what="stats"):
    with urllib.request.urlopen(f"{url}/{what}") as found:
        return json.load(found)


def write_questions(folder, count):
    """Write as many questions in the form of OK-VQA's official files."""
    questions = [
        {"question_id": i, "image_id": i, "question": f"what is number {i}?"} for i in range(count)
    ]
    answers = [{"answer_id": n, "answer": "oak"} for n in range(10)]
    annotations = [
        {"question_id": i, "image_id": i, "question_type": "one", "answers": answers}
        for i in range(count)
    ]
    (folder / "OpenEnded_mscoco_val2014_questions.json").write_text(
        json.dumps({"questions": questions}), encoding="utf-8"
    )
    (folder / "mscoco_val2014_annotations.json").write_text(
        json.dumps({"annotations": annotations}), encoding="utf-8"
    )


def watched(process, url, each):
    """Call `each` with the memory in MB, and return processor time per request, until it ends."""
    points = []
    while process.poll() is None:
        found = told(url)
        with suppress(psutil.Error):
            with (own := psutil.Process(process.pid)).oneshot():
                times, memory = own.cpu_times(), own.memory_info().rss / 2**20
            # After the last answer come the results, which are another matter.
            if found["answered"] > (points[-1][0] if points else 0):
                points.append((found["answered"], times.user + times.system, found["processor"]))
                each(found["answered"], memory)
        time.sleep(0.5)
    if not points:  # it has failed
        return 0.0, 0.0
    (first, run, server), (last, run_end, server_end) = points[0], points[-1]
    count = max(1, last - first)
    return 1e3 * (run_end - run) / count, 1e3 * (server_end - server) / count


def asking(kind, workers, arguments, slower=1.0, each=lambda answered, memory: None):
    """Run once against a fresh server with a fresh cache; return what it and the server took."""
    with tempfile.TemporaryDirectory() as folder, serving(kind, slower) as url:
        settings = {
            "describer": "null",
            "reader.url": f"{url}/v1",
            "reader.model": "m",
            "reader.images": "false",
            "reader.workers": workers,
        }
        run = [sys.executable, "-m", "ravqa", "run", "--dataset", "okvqa", "--reader", "openai"]
        run += ["--no-report", "--output", f"{folder}/run", *arguments]
        for key, value in settings.items():
            run += ["--set", f"{key}={value}"]
        environment = {**os.environ, "RAVQA_CACHE": f"{folder}/cache", "HF_HUB_OFFLINE": "1"}
        with open(f"{folder}/log", "w+", encoding="utf-8") as log:
            with subprocess.Popen(run, stdout=log, stderr=log, env=environment) as running:
                taken = watched(running, url, each)
            if running.returncode:
                log.seek(0)
                sys.exit(log.read())
        return told(url) | {"delays": told(url, "delays"), "taken": taken}


def in_turn(kind, slower, questions, workers):
    """Return how long workers take that never wait, if they ask the questions in turn."""
    now, number, busy = 0.0, 0, []
    while questions or busy:
        while questions and len(busy) < workers:
            number += 1
            delay, status = KINDS[kind](number)
            heapq.heappush(busy, (now + delay * slower, status != 200))
            questions -= 1
        now, failed = heapq.heappop(busy)
        questions += failed
    return now


def line(name, kind, slower, workers, found):
    delays = found["delays"]
    least = max(sum(delays) / workers, *delays)
    failed = sum(KINDS[kind](number + 1)[1] != 200 for number in range(len(delays)))
    took, best = found["seconds"], in_turn(kind, slower, len(delays) - failed, workers)
    run, server = found["taken"]
    print(
        f"{name:>10} {workers:4} workers: {len(delays):6} requests, most at once "
        f"{found['busiest']:4}; {took:6.1f} s, least {least:5.1f} s ({least / took:4.0%}), "
        f"in turn {best:5.1f} s ({best / took:4.0%}); processor {run:.2f} ms a request, server "
        f"{server:.2f}; load {os.getloadavg()[0]:.1f}",
        flush=True,
    )


def alone(workers):
    """Send requests without a run; print what the client takes for each."""
    from ravqa.clients.openai import Client, ServerConfig

    text = "Passage: " + "words of a passage that is read " * 40 + "\nQuestion: what is it?"
    body = {"model": "m", "max_tokens": 32, "messages": [{"role": "user", "content": text}]}
    with serving("short") as url:
        client = Client(ServerConfig(url=f"{url}/v1", model="m", workers=workers), why="this")

        def ask(number, stop):
            return client.ask(
                "chat", body, lambda reply: reply["choices"][0]["message"]["content"], stop
            )

        def spent():
            used = resource.getrusage(resource.RUSAGE_SELF)
            return time.monotonic(), used.ru_utime + used.ru_stime, told(url)["processor"]

        list(client.each(ask, range(2 * workers)))  # connections are made
        before = spent()
        list(client.each(ask, range(ASKED)))
        seconds, own, server = (b - a for a, b in zip(before, spent(), strict=True))
    print(
        f"    client {workers:4} workers: {ASKED:6} requests, {ASKED / seconds:5.0f} a second; "
        f"processor {1e3 * own / ASKED:.2f} ms a request, server {1e3 * server / ASKED:.2f}; load "
        f"{os.getloadavg()[0]:.1f}",
        flush=True,
    )


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--workers", default="8,64,256")
    parser.add_argument("--kinds", default="constant,heavy,failing,sample")
    parser.add_argument("--slower", type=float, default=1, help="all replies take so much longer")
    parser.add_argument("--seconds", type=float, default=20, help="least time of a case")
    parser.add_argument("--client", action="store_true", help="the client alone, without a run")
    parser.add_argument("--memory", type=int, help="questions of the run whose memory is told")
    parser.add_argument("--serve", choices=KINDS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    workers = list(map(int, options.workers.split(",")))
    if options.serve:
        asyncio.run(Server(options.serve, options.slower).run())
        return
    if options.client:
        for number in workers:
            alone(number)
        return
    plain = ["--retriever", "none", "--predict-only"]
    with tempfile.TemporaryDirectory() as name:
        data = Path(name)
        if options.memory:
            left = [at for at in MEMORY_AT if at < options.memory] + [options.memory]

            def each(answered, memory):
                if left and answered >= left[0]:
                    left.pop(0)
                    print(f"{answered:7} answered: {memory:6.0f} MB", flush=True)

            write_questions(data, options.memory)
            line("short", "short", 1, 64, asking("short", 64, ["--data", name, *plain], each=each))
            return
        for kind in options.kinds.split(","):
            if kind == "sample":
                three = ["--retriever", "bm25", "--controls", "none,random"]
                found = asking("heavy", 64, three, options.slower)
                line(kind, "heavy", options.slower, 64, found)
                continue
            for number in workers:
                mean = MEAN[kind] * options.slower
                write_questions(data, int(options.seconds * number / mean))
                found = asking(kind, number, ["--data", name, *plain], options.slower)
                line(kind, kind, options.slower, number, found)


if __name__ == "__main__":
    main()
