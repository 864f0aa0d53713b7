"""One reader for all engines of a process that share its settings."""

import gc
import threading
import time
import weakref
from concurrent.futures import ThreadPoolExecutor

import pytest
import yaml

from ravqa.core.records import Hit, Passage, Question
from ravqa.core.settings import Strict
from ravqa.integrations.asking import Asker
from ravqa.integrations.shared import SharedReaders, shared_readers
from ravqa.pipeline import Pipeline
from ravqa.readers import READERS
from ravqa.readers.base import Generation, Reader

FOUND = [(Hit("p", 1.0, 1), Passage("p", "the koala eats leaves"))]


class CountingReader(Reader):
    """Counts how many are made, and notices two threads in it."""

    class Config(Strict):
        """Options that tell readers apart."""

        label: str = "a"
        workers: int = 1

    made = 0
    inside = 0
    most = 0

    def __init__(self, config):
        type(self).made += 1
        time.sleep(0.02)  # loading takes its time
        self.config = config
        self.workers = config.workers
        self.weights = "none"
        self.fingerprint = f"counting/{config.label}"

    def generate(self, prompts, on_batch=None):
        cls = type(self)
        cls.inside += 1
        cls.most = max(cls.most, cls.inside)
        time.sleep(0.02)
        cls.inside -= 1
        return [Generation(self.config.label) for _ in prompts]


@pytest.fixture
def pipeline(tmp_path, fresh_cache, monkeypatch):
    if "counting" not in READERS:
        READERS.add("counting", f"{__name__}:CountingReader", "tests only: counts itself")
    reader = READERS.get("counting")
    for name in ("made", "inside", "most"):
        monkeypatch.setattr(reader, name, 0)
    settings = {"retriever": {"name": "none"}, "reader": {"name": "counting"}}
    file = tmp_path / "counting.yaml"
    file.write_text(yaml.safe_dump(settings | {"answering": {"cache": False}}))
    gc.collect()
    return str(file)


def test_engines_with_the_same_reader_load_it_once(pipeline):
    langchain = pytest.importorskip("ravqa.integrations.langchain")
    haystack = pytest.importorskip("ravqa.integrations.haystack")
    llama_index = pytest.importorskip("ravqa.integrations.llama_index")
    from llama_index.core.retrievers import BaseRetriever

    class Nothing(BaseRetriever):
        def _retrieve(self, query_bundle):
            return []

    reader = READERS.get("counting")
    engines = [
        langchain.RAVQAAnswerer.load(pipeline),
        llama_index.RAVQAQueryEngine.from_args(Nothing(), pipeline),
        langchain.RAVQAAnswerer.load(pipeline, ["answering.prompt=chat", "top_k=3"]),
        haystack.RAVQAAnswerer(pipeline, ["reader={name: counting, label: a, workers: 1}"]),
    ]
    engines[-1].warm_up()
    assert reader.made == 1
    engines.append(langchain.RAVQAAnswerer.load(pipeline, ["reader.label=b"]))
    assert reader.made == 2


def test_other_settings_are_another_reader_and_the_memory_is_given_back(pipeline):
    reader = READERS.get("counting")
    one, two = Asker.load(pipeline), Asker.load(pipeline)
    assert one.answerer.reader is two.answerer.reader
    assert one.answerer is not two.answerer
    other = Asker.load(pipeline, ["reader.workers=2"])
    assert other.answerer.reader is not one.answerer.reader
    assert reader.made == 2
    kept = weakref.ref(one.answerer.reader)
    del one
    gc.collect()
    assert kept() is two.answerer.reader
    del two
    gc.collect()
    assert kept() is None
    assert Asker.load(pipeline).answerer.reader is not other.answerer.reader
    assert reader.made == 3


def test_threads_load_once_and_take_turns(pipeline):
    reader = READERS.get("counting")
    start = threading.Barrier(4)

    def ask(number):
        start.wait()
        asker = Asker.load(pipeline)
        start.wait()
        return asker.ask(Question(number, f"What {number}?"), FOUND).text

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(ask, range(4))) == ["a"] * 4
    assert (reader.made, reader.most) == (1, 1)


def test_a_server_is_asked_by_several_engines_at_once(pipeline):
    reader = READERS.get("counting")
    askers = [Asker.load(pipeline, ["reader.workers=2"]) for _ in range(2)]
    start = threading.Barrier(2)

    def ask(asker):
        start.wait()
        return asker.ask(Question(0, "What?"), FOUND).text

    for _ in range(20):
        with ThreadPoolExecutor(2) as pool:
            list(pool.map(ask, askers))
        if reader.most == 2:
            break
    assert (reader.made, reader.most) == (1, 2)


def test_a_pipeline_of_ones_own_keeps_its_reader(pipeline):
    own = Pipeline.load(pipeline)
    assert Asker(own).answerer is own.answerer
    assert Asker.load(pipeline).answerer.reader is not own.answerer.reader


def test_only_readers_are_shared():
    shared = SharedReaders()

    class Model:
        pass

    assert shared.get("describer", "x", Model) is not shared.get("describer", "x", Model)
    one = shared.get("reader", "x", Model)
    assert shared.get("reader", "x", Model) is one
    assert shared.get("reader", "y", Model) is not one
    assert shared.loads == {"reader": 2}
    assert shared_readers() is shared_readers()
