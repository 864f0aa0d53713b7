"""Measure whether runs keep a server busy: requests, and the least time that they allow.

A server on this machine, in a process of its own, answers every request after a time:

    constant   the same for all, 1 s
    heavy      0.1 s, and 5 s for every twentieth
    failing    as constant with 0.3 s, but every tenth is an error, and repeated
    slow       four times as slow as heavy, for machines that have other work (study_pool.py)

A run asks it one question per request. The server says when the first request came and the last
reply left. The least time is the larger one of: sum of all replies' times / workers; longest reply.
No order of the requests may reach that, so a second figure has `workers` who take the requests as
they come and never wait.

The last case is the bundled sample in three conditions: found by BM25, none and random passages.
With `--memory N`, one run of N questions with short replies says how much memory it has at several
points.

    python benchmarks/served.py [--workers 8,64,256] [--kinds constant,heavy,failing] [--seconds 20]
    python benchmarks/served.py --memory 100000
"""

import argparse
import asyncio
import heapq
import json
import os
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

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
PAGE = os.sysconf("SC_PAGE_SIZE")


class Server:
    """Answers after a time that depends on the number of the request."""

    def __init__(self, kind):
        self.kind = kind
        self.first, self.last = 0.0, 0.0
        self.delays = []
        self.busy = self.busiest = 0

    async def serve(self, reader, writer):
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).lower()
                _, _, length = head.partition(b"content-length:")
                await reader.readexactly(int(length.split(b"\r\n")[0]) if length else 0)
                status, found = 200, {"data": [{"id": "m"}]}
                if head.startswith(b"post"):
                    status, found = await self.answer()
                elif b"/stats" in head.split(b"\r\n")[0]:
                    found = {
                        "seconds": self.last - self.first,
                        "delays": self.delays,
                        "busiest": self.busiest,
                    }
                body = json.dumps(found).encode()
                writer.write(b"HTTP/1.1 %d X\r\ncontent-length: %d\r\n\r\n" % (status, len(body)))
                writer.write(body)
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    async def answer(self):
        self.first = self.first or time.monotonic()
        delay, status = KINDS[self.kind](len(self.delays) + 1)
        self.delays.append(delay)
        self.busy += 1
        self.busiest = max(self.busiest, self.busy)
        await asyncio.sleep(delay)
        self.busy -= 1
        self.last = time.monotonic()
        return status, REPLY | {"usage": USAGE} if status == 200 else {"error": "too busy"}

    async def run(self):
        made = await asyncio.start_server(self.serve, "127.0.0.1", 0, backlog=1024)
        print(made.sockets[0].getsockname()[1], flush=True)
        await made.serve_forever()


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


def asking(kind, workers, arguments, watch=lambda pid: None):
    """Run once against a fresh server with a fresh cache; return what the server says."""
    command = [sys.executable, __file__, "--serve", kind]
    with (
        tempfile.TemporaryDirectory() as folder,
        subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server,
    ):
        try:
            url = f"http://127.0.0.1:{server.stdout.readline().strip()}"
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
                    watch(running)
                if running.returncode:
                    log.seek(0)
                    sys.exit(log.read())
            with urllib.request.urlopen(f"{url}/stats") as found:
                return json.load(found)
        finally:
            server.kill()


def in_turn(delays, workers):
    """Return how long workers take that never wait, if they take requests as they came."""
    free = [0.0] * workers
    for delay in delays:
        heapq.heapreplace(free, free[0] + delay)
    return max(free)


def line(name, workers, found):
    delays = found["delays"]
    least = max(sum(delays) / workers, *delays)
    took, best = found["seconds"], in_turn(delays, workers)
    print(
        f"{name:>10} {workers:4} workers: {len(delays):6} requests, most at once "
        f"{found['busiest']:4}; {took:6.1f} s, least {least:5.1f} s ({least / took:4.0%}), "
        f"in turn {best:5.1f} s ({best / took:4.0%}); load {os.getloadavg()[0]:.1f}",
        flush=True,
    )


def memory(running):
    """Print the memory of a process, in MB, as its samples grow."""
    began = time.monotonic()
    while running.poll() is None:
        try:
            pages = int(Path(f"/proc/{running.pid}/statm").read_text(encoding="ascii").split()[1])
        except (OSError, IndexError):
            break
        seconds = time.monotonic() - began
        print(f"{seconds:6.0f} s: {pages * PAGE / 2**20:6.0f} MB", flush=True)
        time.sleep(15)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--workers", default="8,64,256")
    parser.add_argument("--kinds", default="constant,heavy,failing")
    parser.add_argument("--seconds", type=float, default=20, help="least time of a case")
    parser.add_argument("--memory", type=int, help="questions of the run whose memory is told")
    parser.add_argument("--serve", choices=KINDS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        asyncio.run(Server(options.serve).run())
        return
    plain = ["--retriever", "none", "--predict-only"]
    with tempfile.TemporaryDirectory() as name:
        data = Path(name)
        if options.memory:
            write_questions(data, options.memory)
            line("short", 64, asking("short", 64, ["--data", name, *plain], memory))
            return
        for kind in options.kinds.split(","):
            for workers in map(int, options.workers.split(",")):
                write_questions(data, int(options.seconds * workers / MEAN[kind]))
                line(kind, workers, asking(kind, workers, ["--data", name, *plain]))
    three = ["--retriever", "bm25", "--controls", "none,random"]
    line("sample", 64, asking("heavy", 64, three))


if __name__ == "__main__":
    main()
