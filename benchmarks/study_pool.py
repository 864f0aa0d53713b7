"""Measure how much sooner a study is done whose variants ask a server side by side.

Four variants of a study ask a server on this machine, in a process of its own (`served.py`), one
question per request with 32 workers. Replies take 0.1 s, and 5 s for every twentieth; with
`--kind slow` four times as long, so that a processor that is shared counts less. Each variant has a
model name of its own, so that nothing is shared. The study runs twice, each time with an empty
cache: with one variant at a time, and as `ravqa study` does. The ideal is the sum of all replies'
times / workers; a second figure has workers that take the requests as they came and never wait. The
seconds of the server run from the first request to the last reply, those of the study include
loading, scores and reports.

    python benchmarks/study_pool.py [--questions 300] [--variants 4] [--workers 32] [--kind heavy]
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

import yaml
from served import in_turn, write_questions

SERVED = Path(__file__).with_name("served.py")
RUN = (
    "import sys\n"
    "from ravqa.cli import main\n"
    "from ravqa.studies import pool\n"
    "pool.OPEN = int(sys.argv.pop(1))\n"
    "main(sys.argv[1:])\n"
)


def write_study(path, data, url, options):
    reader = {"name": "openai", "url": f"{url}/v1", "model": "m", "images": False}
    reader["workers"] = options.workers
    study = {
        "set": {
            "describer": None,
            "retriever": {"name": "none"},
            "reader": {**reader, "model": ""},
        },
        "axes": {"reader.model": [f"m{number}" for number in range(options.variants)]},
        "datasets": [{"name": "okvqa", "data": str(data)}],
        "metrics": ["score"],
    }
    path.write_text(yaml.safe_dump(study), encoding="utf-8")


def measure(data, options, most):
    """Run the study against a fresh server; return what that says, and the seconds of the study."""
    command = [sys.executable, str(SERVED), "--serve", options.kind]
    with (
        tempfile.TemporaryDirectory() as name,
        subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server,
    ):
        try:
            url = f"http://127.0.0.1:{server.stdout.readline().strip()}"
            folder = Path(name)
            write_study(folder / "study.yaml", data, url, options)
            run = [sys.executable, "-c", RUN, str(most), "study", str(folder / "study.yaml")]
            environment = {**os.environ, "RAVQA_CACHE": f"{name}/cache", "HF_HUB_OFFLINE": "1"}
            began = time.monotonic()
            done = subprocess.run(
                [*run, "--output", f"{name}/out"],
                env=environment,
                capture_output=True,
                text=True,
                check=False,
            )
            seconds = time.monotonic() - began
            if done.returncode:
                sys.exit(done.stderr)
            with urllib.request.urlopen(f"{url}/stats") as found:
                return json.load(found), seconds
        finally:
            server.kill()


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--questions", type=int, default=300)
    parser.add_argument("--variants", type=int, default=4)
    parser.add_argument("--workers", type=int, default=32)
    parser.add_argument("--kind", choices=["heavy", "slow"], default="heavy")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        write_questions(Path(name), options.questions)
        took = {}
        for what, most in (("one at a time", 1), ("side by side", 3)):
            found, seconds = measure(Path(name), options, most)
            delays = found["delays"]
            ideal, best = sum(delays) / options.workers, in_turn(delays, options.workers)
            took[what] = found["seconds"]
            print(
                f"{what:>14}: {len(delays)} requests, most at once {found['busiest']}; "
                f"{found['seconds']:5.1f} s, ideal {ideal:.1f} s ({ideal / found['seconds']:.0%}), "
                f"as they came {best:.1f} s ({best / found['seconds']:.0%}); "
                f"study {seconds:.1f} s; load {os.getloadavg()[0]:.1f}",
                flush=True,
            )
    ratio = took["one at a time"] / took["side by side"]
    print(f"side by side is {ratio:.2f} times as fast")


if __name__ == "__main__":
    main()
