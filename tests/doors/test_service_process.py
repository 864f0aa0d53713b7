"""The service as people start it: chat programs, agents, random requests, and its end."""

import asyncio
import base64
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
from importlib.util import find_spec
from pathlib import Path

import httpx
import pytest
from collection_files import pipeline

from ravqa.collections import Collection
from ravqa.core.records import Passage

PACKAGES = ("fastapi", "mcp", "prometheus_client", "python_multipart", "uvicorn")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not all(map(find_spec, PACKAGES)), reason="pip install 'ravqa[serve]'"),
]
ROOT = Path(__file__).parents[2]
ENV = {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests' / 'helpers'}", "RAVQA_PLUGINS": "service_plugin"}
COMMAND = [sys.executable, "-m", "ravqa", "serve"]
WHERE = {"question": "where is the home of the koala"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A collection, of which a passage has an address."""
    place = tmp_path_factory.mktemp("served")
    made = Collection.create(place / "animals", pipeline(place))
    koala = Passage("koala", "The home of the koala is Australia.", title="Koala", url="http://k.a")
    made.add([koala, Passage("jaguar", "Jaguars eat deer.")])
    return made.path


class Process:
    """A service in a process of its own."""

    def __init__(self, folder, *options, descriptors=(), **variables):
        self.process = subprocess.Popen(
            [*COMMAND, str(folder), *options],
            env=os.environ | ENV | variables,
            pass_fds=descriptors,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.said = []
        for line in self.process.stdout:
            self.said.append(line)
            if found := re.search(r"serving at (\S+)", line):
                self.address = found[1]
                break
        else:
            pytest.fail("".join(self.said))
        self.rest = threading.Thread(
            target=lambda: self.said.extend(self.process.stdout), daemon=True
        )
        self.rest.start()

    def end(self):
        self.process.send_signal(signal.SIGTERM)
        assert self.process.wait(60) == 0
        self.rest.join(60)
        self.process.stdout.close()
        assert "Traceback" not in "".join(self.said)


@pytest.fixture(scope="module")
def served(folder):
    process = Process(folder, "--port", "0", "--changes")
    yield process.address
    process.end()


def test_openais_client_lists_models_and_gets_answers_with_sources(served):
    openai = pytest.importorskip("openai")
    with openai.OpenAI(base_url=f"{served}/v1", api_key="any", max_retries=0) as client:
        assert [model.id for model in client.models.list()] == ["animals"]
        photo = base64.b64encode((ROOT / "docs" / "report.webp").read_bytes()).decode()
        parts = [
            {"type": "text", "text": WHERE["question"]},
            {"type": "image_url", "image_url": {"url": f"data:image/webp;base64,{photo}"}},
        ]
        messages = [{"role": "user", "content": parts}]
        found = client.chat.completions.create(model="animals", messages=messages)
        message = found.choices[0].message
        answer, sources = message.content.split("\n\nSources:\n")
        assert answer
        assert sources == "[1] Koala (koala)"
        [note] = message.annotations
        place = note.url_citation
        assert (place.url, message.content[place.start_index : place.end_index]) == (
            "http://k.a",
            sources,
        )
        pieces = client.chat.completions.create(model="animals", messages=messages, stream=True)
        deltas = [piece.choices[0].delta.content or "" for piece in pieces]
        assert "".join(deltas) == message.content
        with pytest.raises(openai.NotFoundError, match="no model 'gpt-4o'"):
            client.chat.completions.create(model="gpt-4o", messages=messages)
        remote = [{"type": "image_url", "image_url": {"url": "http://127.0.0.1:9/a.jpg"}}]
        messages = [{"role": "user", "content": remote}]
        with pytest.raises(openai.PermissionDeniedError, match="fetches no images"):
            client.chat.completions.create(model="animals", messages=messages)


async def _as_agents_do(client):
    """Use the tools and resources, and return what was found."""
    tools = await client.list_tools()
    found = await client.call_tool("search", WHERE | {"collection": "animals", "k": 1})
    asked = await client.call_tool("ask", WHERE)
    refused = await client.call_tool("search", {"question": "x", "collection": "no"})
    passage = await client.read_resource("passages://animals/koala")
    with pytest.raises(Exception, match="no passage"):
        await client.read_resource("passages://animals/none")
    return tools, found, asked, refused, passage


@pytest.mark.parametrize("way", ["stdio", "http"])
def test_agents_search_ask_and_read_passages(served, folder, way):
    mcp = pytest.importorskip("mcp")

    async def run():
        options = {"command": sys.executable, "args": [*COMMAND[1:], str(folder), "--mcp"]}
        stdio = mcp.StdioServerParameters(**options, env=dict(os.environ) | ENV)
        async with mcp.Client(stdio if way == "stdio" else f"{served}/mcp") as client:
            return await _as_agents_do(client)

    tools, found, asked, refused, passage = asyncio.run(run())
    assert [tool.name for tool in tools.tools] == ["search", "ask"]
    [best] = found.structured_content["passages"]
    assert best["passage_id"] == "koala"
    assert asked.structured_content["read"] == ["koala"]
    assert refused.is_error
    assert "no collection 'no'" in refused.content[0].text
    assert "The home of the koala" in passage.contents[0].text


def test_nothing_is_lost_over_a_restart(folder):
    with socket.create_server(("127.0.0.1", 0), backlog=1024) as at:
        at.set_inheritable(True)
        options = {"descriptors": [at.fileno()]}
        first = Process(folder, "--fd", str(at.fileno()), **options)

        async def ask(http, numbers, statuses):
            for number in numbers:
                response = await http.post("/search", json=WHERE | {"k": 1 + number % 2})
                statuses.append((response.status_code, len(response.json()["passages"])))

        async def run():
            statuses = []
            numbers = iter(range(300))
            async with httpx.AsyncClient(base_url=first.address, timeout=120) as http:
                workers = [asyncio.create_task(ask(http, numbers, statuses)) for _ in range(8)]
                while len(statuses) < 100:
                    await asyncio.sleep(0.01)
                await asyncio.to_thread(first.end)
                second = await asyncio.to_thread(
                    lambda: Process(folder, "--fd", str(at.fileno()), **options)
                )
                await asyncio.gather(*workers)
            return statuses, second

        statuses, second = asyncio.run(run())
        second.end()
    assert len(statuses) == 300
    assert {status for status, _ in statuses} == {200}


def test_random_requests_find_nothing(served, tmp_path):
    if find_spec("schemathesis") is None:
        pytest.skip("pip install schemathesis")
    program = shutil.which("schemathesis", path=str(Path(sys.executable).parent))
    options = ["--max-examples", "25", "--checks", "all"]
    # Names of collections are not in the description, so that right forms may be refused.
    options += ["--exclude-checks", "positive_data_acceptance", "--seed", "1"]
    options += ["--request-timeout", "60"]
    found = subprocess.run(
        [program, "run", f"{served}/openapi.json", *options],
        cwd=tmp_path,
        capture_output=True,
        check=False,
        text=True,
    )
    assert found.returncode == 0, found.stdout


@pytest.mark.parametrize(
    ("options", "variables", "said"),
    [
        (["--host", "203.0.113.7"], {}, "cannot listen at 203.0.113.7"),
        (["--fd", "77"], {}, "--fd 77: the program was started without"),
        ([], {"RAVQA_TOKEN": "short"}, "RAVQA_TOKEN: 16 letters"),
    ],
)
def test_mistakes_get_one_line(folder, options, variables, said):
    found = subprocess.run(
        [*COMMAND, str(folder), *options],
        env=os.environ | ENV | variables,
        capture_output=True,
        check=False,
        text=True,
    )
    assert found.returncode == 2
    assert said in found.stderr
    assert len(found.stderr.strip().split("\n")) == 1
