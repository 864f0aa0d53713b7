"""Load `ravqa serve` over loopback: requests per second, times, processor time, a restart, memory.

The service runs in a process of its own, with the bundled sample's passages, BM25 and a reader that
is a rule: no model hides what the service itself costs. Each request asks one of 200 questions
about one of the sample's photos, sent in base64.

    bare       the same questions, asked of the same pipeline in this process, one after the other
    clients    so many ask at the same time, each one request after the other
    restart    1,000 requests of 8 clients; the service ends and starts again after 300 of them.
               Its socket is passed on (--fd), so that connections wait meanwhile
    memory     how far the peak of the service's memory grows over requests of 1 KB that are made
               to be large

Processor times are those of the process, threads included. Client and service share the machine's
cores: times and rates say what this machine does with both.

    python benchmarks/serve.py [--requests 400] [--clients 1,8,32]
"""

import argparse
import asyncio
import base64
import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import httpx
import numpy as np
import psutil
from PIL import Image

from ravqa.core.locations import SAMPLE
from ravqa.core.outcomes import succeeded
from ravqa.core.records import Question
from ravqa.doors.shelf import SAMPLE as PASSAGES
from ravqa.doors.shelf import Shelf

CHANGES = ["retriever=bm25", "reader=first-words", "describer=null", "answering.cache=false"]
PHOTOS = [path.read_bytes() for path in sorted((SAMPLE / "val2014").glob("*.jpg"))[:20]]
PICTURES = [base64.b64encode(data).decode() for data in PHOTOS]
KB = 1000


def question(number):
    return f"Where does animal {number % 200} of this picture live?"


@contextmanager
def service(at, *options):
    """Start the service, and yield it and its address; it must end by itself when it is told to."""
    command = [
        sys.executable,
        "-m",
        "ravqa",
        "serve",
        "--pipeline",
        "sample",
        "--fd",
        str(at.fileno()),
    ]
    command += [part for change in CHANGES for part in ("--set", change)]
    with subprocess.Popen(
        [*command, *options],
        pass_fds=[at.fileno()],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as process:
        try:
            found = next(filter(None, (re.search(r"http://\S+", s) for s in process.stdout)))
            yield psutil.Process(process.pid), found[0]
        finally:
            process.send_signal(signal.SIGTERM)
            assert process.wait(120) == 0


def processor(process):
    times = process.cpu_times()
    return times.user + times.system


def bare(asked):
    """Return the seconds of processor and wall clock per question, without the service."""
    shelf = Shelf(pipelines=["sample"], overrides=CHANGES)
    pipeline = shelf.pipeline(PASSAGES, "sample")
    questions = [Question(0, question(i), PHOTOS[i % len(PHOTOS)]) for i in range(asked)]
    for one in questions[:20]:
        pipeline.ask(one)
    me = psutil.Process()
    before, begun = processor(me), time.perf_counter()
    for one in questions:
        [response] = pipeline.ask_all([one])
        succeeded(response)
    return (processor(me) - before) / asked, (time.perf_counter() - begun) / asked


async def load(address, asked, clients, seen=None):
    """Return the seconds of each request, and what went wrong."""
    numbers, times, lost = iter(range(asked)), [], []

    async def client(http):
        for number in numbers:
            body = {"question": question(number), "image": PICTURES[number % len(PICTURES)]}
            begun = time.perf_counter()
            try:
                response = await http.post("/answer", json=body)
                if response.status_code != 200 or "answer" not in response.json():
                    lost.append(response.text[:200])
            except httpx.HTTPError as e:
                lost.append(repr(e))
            times.append(time.perf_counter() - begun)
            if seen is not None:
                seen.append(number)

    async with httpx.AsyncClient(base_url=address, timeout=120) as http:
        await asyncio.gather(*(client(http) for _ in range(clients)))
    return times, lost


def loaded(at, asked, counts, alone):
    with service(at) as (process, address):
        asyncio.run(load(address, 40, 4))  # everything is imported
        for clients in counts:
            before, begun = processor(process), time.perf_counter()
            times, lost = asyncio.run(load(address, asked, clients))
            wall, used = time.perf_counter() - begun, (processor(process) - before) / asked
            assert not lost, lost[:3]
            median, p95 = np.quantile(times, [0.5, 0.95]) * 1000
            print(
                f"{clients:3} clients: {asked / wall:6.1f} requests/s, median "
                f"{median:6.1f} ms, p95 {p95:6.1f} ms; "
                f"processor {used * 1000:5.2f} ms a request, {(used - alone) * 1000:+5.2f} ms "
                "against bare",
                flush=True,
            )


async def restarted(at):
    seen, first = [], service(at)
    _, address = await asyncio.to_thread(first.__enter__)
    under_way = asyncio.create_task(load(address, KB, 8, seen))
    while len(seen) < 300:
        await asyncio.sleep(0.01)
    await asyncio.to_thread(first.__exit__, None, None, None)
    ended = len(seen)
    second = service(at)
    await asyncio.to_thread(second.__enter__)
    _, lost = await under_way
    await asyncio.to_thread(second.__exit__, None, None, None)
    print(f"restart: {len(seen):,} requests, {ended} before it ended, {len(lost)} lost {lost[:3]}")


def peak(process):
    status = Path(f"/proc/{process.pid}/status").read_text(encoding="utf-8")
    return int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) * 1024


def small_bombs():
    """Yield names and bodies of 1 KB that ask for much."""
    for form, options in (("WEBP", {"lossless": True}), ("PNG", {}), ("GIF", {})):
        for side in range(5000, 100, -200):
            out = io.BytesIO()
            Image.new("L" if form != "PNG" else "1", (side, side)).save(out, form, **options)
            text = base64.b64encode(out.getvalue()).decode()
            if len(text) < KB - 50:
                yield f"{form} of {side}x{side}", json.dumps({"question": "x", "image": text})
                break
    yield from {
        "k of 900 digits": '{"question":"x","k":' + "9" * 900 + "}",
        "900 levels": '{"question":' + "[" * 900,
        "k of 100, concat": '{"question":"x","k":100,"rule":"concat"}',
    }.items()


def memory(at):
    with service(at) as (process, address), httpx.Client(base_url=address, timeout=120) as http:
        asyncio.run(load(address, 20, 4))
        for name, body in small_bombs():
            before = peak(process)
            head = {"content-type": "application/json"}
            status = http.post("/answer", content=body, headers=head).status_code
            grown = (peak(process) - before) / 1e6
            print(f"memory: {name} ({len(body)} bytes): status {status}, peak {grown:+.0f} MB")


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--requests", type=int, default=400)
    parser.add_argument("--clients", default="1,8,32")
    given = parser.parse_args()
    print(f"load {os.getloadavg()[0]:.1f}, {os.cpu_count()} cores")
    alone, wall = bare(given.requests)
    print(
        f"bare: processor {alone * 1000:.2f} ms, wall {wall * 1000:.2f} ms a question", flush=True
    )
    with socket.create_server(("127.0.0.1", 0), backlog=1024) as at:
        loaded(at, given.requests, map(int, given.clients.split(",")), alone)
        asyncio.run(restarted(at))
        memory(at)
    print(f"load {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
