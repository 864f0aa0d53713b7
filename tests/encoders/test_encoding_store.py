"""Vectors of a corpus on disk: resumed after a kill, shared by processes, used by the retriever."""

import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
from functools import cache
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest

from ravqa.cli import main
from ravqa.core.errors import ContractError, DamagedError, UserError
from ravqa.core.records import Passage, Question
from ravqa.core.registry import Entry
from ravqa.core.settings import Strict, validate
from ravqa.corpora.corpus import Corpus
from ravqa.encoders import ENCODERS
from ravqa.encoders.base import Encoded, Encoder, EncodingStats
from ravqa.encoders.store import EmbeddingStore, corpus_embeddings, one_at_a_time
from ravqa.indexes.exact import ExactIndex
from ravqa.retrievers.late_interaction import LateInteractionRetriever

TESTS = Path(__file__).parents[1]
CHECKPOINT = TESTS / "data" / "flmr-parity" / "preflmr" / "checkpoint_context_names"
LIMIT = 8
WORDS = "koala tower river iron leaf night old house where bamboo".split()


@cache
def vector(word, dim):
    seed = hashlib.sha256(word.encode()).digest()
    return np.random.default_rng(list(seed)).normal(size=dim)


class Words(Encoder):
    """A vector a word, made from the word's hash; the first 8 words of a text."""

    class Config(Strict):
        pass

    dim = 6
    weights = "hashed words"
    fingerprint = "words"
    encoded: ClassVar = []  # every text, in the order of encoding

    def __init__(self, config=None, output="float32", batch=50, after=None):
        self.output, self.batch, self.after = output, batch, after

    def rows(self, text):
        array = np.array([vector(word, self.dim) for word in text.split()]).reshape(-1, self.dim)
        return (array / np.linalg.norm(array, axis=1, keepdims=True)).astype(self.output)

    def encode_document(self, texts, progress=None):
        arrays = []
        for start in range(0, len(texts), self.batch):
            batch = texts[start : start + self.batch]
            arrays += [self.rows(text)[:LIMIT] for text in batch]
            Words.encoded += batch
            if self.after:
                self.after(len(Words.encoded))
            if progress:
                progress(len(batch))
        lengths = [len(text.split()) for text in texts]
        return Encoded(arrays, truncated=sum(n > LIMIT for n in lengths), tokens=sum(lengths))

    def encode_query(self, queries):
        return [self.rows(" ".join(span.text for span in spans)) for spans in queries]


@pytest.fixture(autouse=True)
def own_encoder(monkeypatch, fresh_cache):
    monkeypatch.setattr(Words, "encoded", [])
    monkeypatch.setitem(ENCODERS._entries, "words", Entry(f"{__name__}:Words", "for tests"))


def corpus(size=1000, seed=0):
    rng = np.random.default_rng(seed)
    passages = [
        Passage(f"d{i}", " ".join(rng.choice(WORDS, size=rng.integers(1, 12)))) for i in range(size)
    ]
    return Corpus(passages)


def texts_of(passages):
    return [passage.content for passage in passages.values()]


def assert_same(arrays, expected):
    for a, b in zip(arrays, expected, strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)


def files_of(folder):
    return {p.name: p.read_bytes() for p in folder.iterdir() if not p.name.startswith(".")}


@pytest.mark.parametrize("output", ["float32", "float16"])
def test_a_store_gives_every_passage_in_order(tmp_path, output):
    passages = corpus()
    path = tmp_path / "not there yet" / "store"
    store = corpus_embeddings(Words(output=output), passages, path)
    assert len(store) == 1000
    assert len(list(path.glob("*.safetensors"))) == 4
    expected = Words(output=output).encode_document(texts_of(passages))
    assert expected[0].dtype == np.dtype(output)
    for _ in range(2):
        assert_same(store, expected)
    assert store.stats == expected.stats
    assert 0 < store.stats.truncated < 1000
    assert store.missing() == []


@pytest.mark.slow
def test_chunks_of_a_large_corpus_hold_more_passages(tmp_path):
    class Constant(Words):
        def rows(self, text):
            return np.ones((1, self.dim), np.float32)

    store = corpus_embeddings(Constant(), corpus(30_000), tmp_path / "store")
    assert store.chunk == 30_000 // 64
    assert sum(len(array) for array in store) == 30_000


@pytest.mark.parametrize(
    ("passages", "chunk", "rows"),
    [(1, 2, [(0, 1)]), (6, 2, [(0, 2), (2, 4), (4, 6)]), (10, 3, None), (90, 5, None)],
)
def test_chunks_hold_a_share_of_the_corpus_within_bounds(
    tmp_path, monkeypatch, passages, chunk, rows
):
    for name, value in {"_CHUNK": 5, "_MIN_CHUNK": 2, "_CHUNKS": 3}.items():
        monkeypatch.setattr(f"ravqa.encoders.store.{name}", value)
    seen = []
    store = corpus_embeddings(
        Words(batch=1), corpus(passages), tmp_path / "s", lambda *step: seen.append(step)
    )
    assert (store.chunk, len(store)) == (chunk, passages)
    assert seen == [*((i, passages) for i in range(passages + 1)), (passages, passages)]
    files = sorted(file.name for file in store.path.glob("*.safetensors"))
    assert files == [f"{i:06}.safetensors" for i in range(-(-passages // chunk))]
    if rows is not None:
        assert [(r.start, r.stop) for r in map(store.rows, range(len(files)))] == rows


class Process:
    """The second of three processes, as accelerate describes it."""

    process_index, num_processes, is_main_process = 1, 3, False

    def __init__(self):
        self.waits = []

    def wait_for_everyone(self):
        self.waits.append(len(Words.encoded))


def test_each_process_encodes_its_share_of_the_missing_chunks(tmp_path, monkeypatch):
    for name, value in {"_CHUNK": 2, "_MIN_CHUNK": 2}.items():
        monkeypatch.setattr(f"ravqa.encoders.store.{name}", value)
    state = Process()
    monkeypatch.setattr("ravqa.encoders.store.processes", lambda: state)
    passages, seen = corpus(15), []
    store = EmbeddingStore(
        tmp_path, encoder="words", corpus=passages.fingerprint, passages=15, dim=6, chunk=2
    )
    store.write(0, Words().encode_document(texts_of(passages)[:2]))
    Words.encoded.clear()
    corpus_embeddings(Words(), passages, tmp_path, lambda *step: seen.append(step))
    # Chunks 1 to 7 are missing: the second process has 2 and 5, and waits before and after.
    assert Words.encoded == texts_of(passages)[4:6] + texts_of(passages)[10:12]
    assert store.missing() == [1, 3, 4, 6, 7]
    assert state.waits == [0, 4]
    # The others are assumed to have done as much.
    assert seen == [(2, 15), (8, 15), (14, 15), (15, 15)]
    assert store.stats.items == 6


def test_only_the_main_process_holds_the_lock(tmp_path, monkeypatch):
    state = Process()
    monkeypatch.setattr("ravqa.encoders.store.processes", lambda: state)
    with one_at_a_time(tmp_path / "key") as found:
        assert found is state
        assert len(state.waits) == 1
        assert not (tmp_path / "key.lock").exists()
    assert len(state.waits) == 2
    state.is_main_process = True
    with one_at_a_time(tmp_path / "key"):
        assert (tmp_path / "key.lock").exists()


def test_a_chunk_has_its_arrays_and_their_checksum_or_none_by_an_older_version(tmp_path, caplog):
    from safetensors.numpy import load_file, save_file

    options = {"encoder": "e", "corpus": "c", "passages": 3, "dim": 3, "chunk": 2}
    store = EmbeddingStore(tmp_path, **options)
    first = [np.arange(6, dtype=np.float32).reshape(2, 3), np.ones((1, 3), np.float32)]
    store.write(0, Encoded(first, truncated=1, tokens=7, neutralised=4))
    store.write(1, Encoded(first[:1], tokens=5))
    arrays = load_file(tmp_path / "000000.safetensors")
    assert arrays["vectors"].tolist() == [[0, 1, 2], [3, 4, 5], [1, 1, 1]]
    assert arrays["lengths"].tolist() == [2, 1]
    assert arrays["stats"].tolist() == [2, 1, 7, 3, 4]
    content = b"".join(arrays[name].tobytes() for name in ("vectors", "lengths", "stats"))
    digest = hashlib.blake2b(content, digest_size=16).digest()
    assert arrays["checksum"].tobytes() == digest
    assert store.stats == EncodingStats(3, 1, 12, 5, 4)
    older = {name: array for name, array in arrays.items() if name != "checksum"}
    older["stats"] = older["stats"][:4]
    save_file(older, tmp_path / "000000.safetensors")
    assert store.missing() == []
    assert store.stats == EncodingStats(3, 1, 12, 5)
    for name, spoilt in (
        ("lengths", np.array([2, 0])),
        ("lengths", np.array([1, 1, 1])),
        ("vectors", np.ones((3, 2), np.float32)),
    ):
        save_file({**older, name: spoilt}, tmp_path / "000000.safetensors")
        assert store.missing() == [0]
        line = f"{tmp_path / '000000.safetensors'} is damaged (its content was changed)"
        assert caplog.text.splitlines() == [f"{line}: it is made again"]
        caplog.clear()
    save_file({"stats": np.arange(6)}, tmp_path / "000001.safetensors")
    assert store.missing() == [0, 1]
    assert store.stats == EncodingStats(2, 1, 7, 3)  # what the second says is no statistics
    (tmp_path / "000001.safetensors").unlink()
    assert store.stats == EncodingStats(2, 1, 7, 3)
    store.remove()
    assert not tmp_path.exists()
    store.remove()


def test_a_folder_keeps_the_chunks_that_it_has(tmp_path):
    options = {"encoder": "e", "corpus": "c", "passages": 5, "dim": 3}
    assert EmbeddingStore(tmp_path / "a" / "b", chunk=2, **options).chunk == 2
    again = EmbeddingStore(tmp_path / "a" / "b", chunk=4, **options)
    assert (again.chunk, again.dim, again.missing()) == (2, 3, [0, 1, 2])
    with pytest.raises(UserError) as caught:
        EmbeddingStore(tmp_path / "a" / "b", chunk=2, **options | {"passages": 6})
    assert str(caught.value) == (
        f"the vectors in {tmp_path / 'a' / 'b'} are of another passages (5, not 6): delete the "
        "folder, or choose another"
    )


def test_vectors_come_back_whatever_the_order_of_their_memory(tmp_path):
    """numpy joins rows of length 1 and 0 column by column."""
    rows = np.arange(12, dtype=np.float32).reshape(4, 3)
    encoded = [row[None][:count] for row, count in zip(rows, (1, 0, 1, 1), strict=True)]
    assert not np.concatenate(encoded).flags.c_contiguous
    store = EmbeddingStore(tmp_path, encoder="e", corpus="c", passages=4, dim=3, chunk=4)
    store.write(0, Encoded(encoded))
    assert [array.tolist() for array in store] == [array.tolist() for array in encoded]
    assert store.missing() == []


def test_passages_without_vectors_are_kept(tmp_path):
    arrays = [np.zeros((n, 3), np.float16) for n in (0, 0, 2, 0, 0)]
    store = EmbeddingStore(tmp_path / "s", encoder="e", corpus="c", passages=5, dim=3, chunk=2)
    for i in range(3):
        store.write(i, Encoded(arrays[2 * i : 2 * i + 2]))
    assert_same(store, arrays)
    none = EmbeddingStore(tmp_path / "n", encoder="e", corpus="c", passages=0, dim=3, chunk=2)
    assert list(none) == []
    assert none.missing() == []
    assert none.stats == EncodingStats()


@pytest.mark.parametrize(
    "arrays",
    [[np.zeros((2, 3))], [np.zeros((2, 3))] * 3, [np.zeros((2, 3)), np.zeros((2, 4))]],
    ids=["too few", "too many", "another length"],
)
def test_arrays_that_do_not_fit_are_not_written(tmp_path, arrays):
    store = EmbeddingStore(tmp_path, encoder="e", corpus="c", passages=4, dim=3, chunk=2)
    with pytest.raises(ValueError, match=r"^2 arrays \[vectors, 3\] are expected$"):
        store.write(0, Encoded(arrays))
    assert store.missing() == [0, 1]


KILLED = """
import sys
sys.path.insert(0, {tests!r})
from test_encoding_store import *
from safetensors import numpy

def kill(*_):
    os.kill(os.getpid(), signal.SIGKILL)

def half(arrays, path):
    if len(Words.encoded) > 512:
        Path(path).write_bytes(numpy.save(arrays)[:3000])
        kill()
    save(arrays, path)

after = None
if {where!r} == "encoding":
    after = lambda n: kill() if n > 600 else None
else:
    save, numpy.save_file = numpy.save_file, half
corpus_embeddings(Words(after=after), corpus(), Path({folder!r}))
"""


@pytest.mark.parametrize("where", ["encoding", "writing"])
@pytest.mark.slow
def test_a_killed_run_goes_on_where_it_was(tmp_path, where):
    script = KILLED.format(
        tests=str(Path(__file__).parent), where=where, folder=str(tmp_path / "killed")
    )
    process = subprocess.run(
        [sys.executable, "-c", script], check=False, capture_output=True, text=True
    )
    assert process.returncode == -signal.SIGKILL, process.stderr
    assert sorted(files_of(tmp_path / "killed")) == [
        "000000.safetensors",
        "000001.safetensors",
        "meta.json",
    ]
    parts = list((tmp_path / "killed").glob(".*.part"))
    assert [p.stat().st_size for p in parts] == ([3000] if where == "writing" else [])

    seen = []
    store = corpus_embeddings(
        Words(), corpus(), tmp_path / "killed", lambda *step: seen.append(step)
    )
    assert Words.encoded == texts_of(corpus())[512:]
    assert seen[0] == (512, 1000)
    assert seen[-1] == (1000, 1000)
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    whole = corpus_embeddings(Words(), corpus(), tmp_path / "whole")
    assert files_of(tmp_path / "killed") == files_of(tmp_path / "whole")
    assert store.stats == whole.stats


def test_an_encoder_of_somebody_else_that_raises_is_named(tmp_path):
    class Broken(Words):
        def encode_document(self, texts, progress=None):
            raise RuntimeError("no such table\nmore")

    with pytest.raises(ContractError) as error:
        corpus_embeddings(Broken(), corpus(3), tmp_path / "store")
    assert str(error.value) == (
        f"the encoder {__name__}.{Broken.__qualname__} breaks its contract: it raises RuntimeError "
        "from encode_passages: no such table"
    )


def test_a_damaged_chunk_is_encoded_again(tmp_path):
    store = corpus_embeddings(Words(), corpus(), tmp_path / "store")
    expected = list(store)
    file = tmp_path / "store" / "000002.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(UserError, match=f"^{file} cannot be read: ."):
        list(store)
    Words.encoded.clear()
    again = corpus_embeddings(Words(), corpus(), tmp_path / "store")
    assert Words.encoded == texts_of(corpus())[512:768]
    assert_same(again, expected)


def test_a_chunk_that_another_process_writes_is_left_alone_and_ones_own_leftover_is_not(
    fresh_cache,
):
    path = fresh_cache / "embeddings" / "key"
    path.mkdir(parents=True)
    mine, theirs = (
        path / ".000000.safetensors.0123abcd.part",
        path / ".000001.safetensors.4567abcd.part",
    )
    mine.touch()
    theirs.touch()  # without a mark: safetensors replaces the file that it is given
    corpus_embeddings(Words(), corpus(300), path, None)
    assert (path / "000000.safetensors").is_file()
    assert not mine.exists()
    assert not theirs.exists()  # once that chunk was written here
    theirs = path / ".000009.safetensors.4567abcd.part"
    theirs.touch()
    (path / "000000.safetensors").unlink()
    corpus_embeddings(Words(), corpus(300), path, None)
    assert theirs.exists()


def test_no_changed_byte_of_a_chunk_is_taken_for_vectors(tmp_path, caplog):
    store = corpus_embeddings(Words(), corpus(300), tmp_path / "store")
    for file in (tmp_path / "store").glob("*.safetensors"):
        data = file.read_bytes()
        number = int(file.stem)
        for place in [*range(0, len(data), len(data) // 40), *range(len(data) - 20, len(data))]:
            file.write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
            caplog.clear()
            assert store.missing() == [number]
            [line] = caplog.text.splitlines()
            assert line.startswith(f"{file} is damaged (")
            assert line.endswith("): it is made again")
        file.write_bytes(data)
    assert store.missing() == []


@pytest.mark.parametrize("value", [None, "x", -1, 0, 1.5, True, [], "missing"])
def test_every_value_of_meta_json_has_its_type(tmp_path, value):
    path = tmp_path / "store"
    corpus_embeddings(Words(), corpus(20), path)
    whole = json.loads((path / "meta.json").read_text())
    for key in whole:
        bad = {k: v for k, v in whole.items() if k != key}
        if value != "missing":
            bad[key] = value
        (path / "meta.json").write_text(json.dumps(bad))
        with pytest.raises(UserError, match=r"meta\.json is damaged|are of another") as caught:
            corpus_embeddings(Words(), corpus(20), path)
        assert "\n" not in str(caught.value)


def test_vectors_of_something_else_are_refused_in_one_line(tmp_path):
    corpus_embeddings(Words(), corpus(), tmp_path / "store")

    class Others(Words):
        fingerprint = "others"

    class Wide(Words):
        dim = 7

    prints = corpus().fingerprint, corpus(seed=1).fingerprint
    for encoder, passages, key, value, wanted in (
        (Others(), corpus(), "encoder", "words", "others"),
        (Words(), corpus(seed=1), "corpus", *prints),
        (Wide(), corpus(), "dim", 6, 7),
    ):
        with pytest.raises(UserError) as caught:
            corpus_embeddings(encoder, passages, tmp_path / "store")
        assert str(caught.value) == (
            f"the vectors in {tmp_path / 'store'} are of another {key} ({value}, not {wanted}): "
            "delete the folder, or choose another"
        )
    file = tmp_path / "store" / "meta.json"
    file.write_text("{")
    again = r"\): delete the folder and encode again$"
    with pytest.raises(DamagedError, match=rf"^{file} is damaged \(.+{again}"):
        corpus_embeddings(Words(), corpus(), tmp_path / "store")


# --- in the retriever


def retriever():
    options = {"encoder": {"name": "words"}, "index": {"name": "exact", "storage": "float32"}}
    return LateInteractionRetriever(validate(LateInteractionRetriever.Config, options, "x"))


def stores(cache):
    return [p for p in (cache / "embeddings").iterdir() if p.is_dir()]


QUESTIONS = [Question(1, "koala river night"), Question(2, "old iron tower")]


def test_an_interrupted_preparation_goes_on_where_it_was(fresh_cache, monkeypatch):
    whole = retriever()
    whole.prepare(corpus())
    expected = whole.retrieve(QUESTIONS, 50)
    monkeypatch.setenv("RAVQA_CACHE", str(fresh_cache / "another"))

    def stop(n):
        if n > 600:
            raise KeyboardInterrupt

    Words.encoded.clear()
    stopped = retriever()
    stopped.encoder.after = stop
    with pytest.raises(KeyboardInterrupt):
        stopped.prepare(corpus())
    assert len(stores(fresh_cache / "another")) == 1
    Words.encoded.clear()
    again = retriever()
    again.prepare(corpus())
    assert Words.encoded == texts_of(corpus())[512:]
    assert again.retrieve(QUESTIONS, 50) == expected
    assert again.encoded["passages"] == whole.encoded["passages"]
    assert stores(fresh_cache / "another") == []  # the index has them now


def test_the_statistics_are_known_from_the_cache_too():
    retriever().prepare(corpus())
    again = retriever()
    again.prepare(corpus())
    words = [len(text.split()) for text in texts_of(corpus())]
    assert again.encoded["passages"] == EncodingStats(
        1000,
        sum(n > LIMIT for n in words),
        sum(words),
        sum(min(n, LIMIT) for n in words),
    )
    assert again.encoded["queries"] == EncodingStats()
    again.retrieve(QUESTIONS, 3)
    assert again.encoded["queries"].items == 2


def test_two_at_once_do_the_work_once(fresh_cache):
    started, wait = threading.Event(), threading.Event()

    def slow(_):
        started.set()
        wait.wait(60)

    first, second = retriever(), retriever()
    first.encoder.after = slow
    threads = [threading.Thread(target=first.prepare, args=(corpus(),))]
    threads[0].start()
    assert started.wait(60)
    threads.append(threading.Thread(target=second.prepare, args=(corpus(),)))
    threads[1].start()
    threads[1].join(0.3)
    assert threads[1].is_alive()  # it waits for the first
    wait.set()
    for thread in threads:
        thread.join(60)
    assert len(Words.encoded) == 1000
    assert first.retrieve(QUESTIONS, 9) == second.retrieve(QUESTIONS, 9)


def test_a_lock_is_free_again_after_an_error(tmp_path):
    with pytest.raises(KeyError), one_at_a_time(tmp_path / "x"):
        raise KeyError
    with one_at_a_time(tmp_path / "x") as state:
        assert state.is_main_process


# --- the command


def command(capsys, *arguments, code=0):
    with pytest.raises(SystemExit) as end:
        main(["encode", *(str(a) for a in arguments)])
    assert end.value.code == code
    return capsys.readouterr()


WITH_WORDS = ["--set", "retriever={name: late-interaction, encoder: {name: words}}"]


@pytest.fixture
def corpus_file(tmp_path):
    rows = [{"id": p.passage_id, "text": p.text} for p in corpus().values()]
    path = tmp_path / "passages.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_encode_makes_the_index_that_the_retriever_uses(fresh_cache, corpus_file, capsys):
    out = command(capsys, "--corpus", corpus_file, *WITH_WORDS).out
    stats = Words().encode_document(texts_of(corpus())).stats
    assert re.fullmatch(
        f"1,000 passages, {stats.vectors:,} vectors, {stats.truncated} truncated; "
        r"1,000 encoded now, [\d,.]+ passages per second; indexed in \d+ s\n",
        out,
    )
    assert stores(fresh_cache) == []
    [index] = (fresh_cache / "indexes").iterdir()
    before = [(file, file.stat().st_mtime_ns) for file in sorted(index.iterdir())]
    Words.encoded.clear()
    options = {"encoder": {"name": "words"}}
    used = LateInteractionRetriever(validate(LateInteractionRetriever.Config, options, "x"))
    used.prepare(Corpus.read(corpus_file))
    assert Words.encoded == []
    assert [(file, file.stat().st_mtime_ns) for file in sorted(index.iterdir())] == before
    assert "encoded and indexed" in command(capsys, "--corpus", corpus_file, *WITH_WORDS).out
    assert Words.encoded == []


def test_encode_takes_the_passages_of_a_dataset(okvqa_sample, capsys):
    out = command(capsys, "--dataset", "okvqa", *WITH_WORDS).out
    assert out.startswith(f"{len(okvqa_sample.corpus):,} passages, ")
    assert Words.encoded == texts_of(okvqa_sample.corpus)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--corpus"),
        (["--dataset", "okvqb"], "okvqa"),
        (["--corpus", "gone.jsonl"], "gone.jsonl"),
        (["--dataset", "okvqa", "--set", "retriever={name: random}"], "random encodes no"),
    ],
)
def test_mistakes_are_one_line(arguments, message, capsys):
    error = command(capsys, *WITH_WORDS, *arguments, code=2).err.splitlines()[-1]
    assert error.startswith("error: ")
    assert message in error


SHARED = """
import os, sys
from pathlib import Path
from ravqa.cli import main
from ravqa.core.settings import load_pipeline
from ravqa.corpora.corpus import Corpus
from ravqa.encoders.flmr import FLMREncoder
from ravqa.pipeline import Pipeline

encode = FLMREncoder.encode_passages

def logged(self, passages, progress=None):
    with open(sys.argv[1] + "." + os.environ["RANK"], "a") as log:
        log.write(f"{len(passages)}\\n")
    return encode(self, passages, progress)

FLMREncoder.encode_passages = logged
if sys.argv[2] == "encode":
    main(sys.argv[2:])
settings, _ = load_pipeline("sample", [sys.argv[6], "describer=null"])
pipeline = Pipeline.from_config(settings, retrieval_only=True)
pipeline.prepare(Corpus.read(Path(sys.argv[4])))
# One write a line: the processes share their output, and a line in pieces would be mixed up.
sys.stdout.write(f"{len(pipeline.retriever._index)} indexed\\n")
sys.stdout.flush()
"""


@pytest.mark.slow
def test_two_processes_share_the_work(corpus_file, tmp_path, monkeypatch, capsys):
    (tmp_path / "shared.py").write_text(SHARED)
    encoder = f"{{name: flmr, model: {CHECKPOINT}}}"
    arguments = ["--corpus", str(corpus_file)]
    arguments += ["--set", f"retriever={{name: late-interaction, encoder: {encoder}}}"]

    def together(cache, what):
        monkeypatch.setenv("RAVQA_CACHE", str(tmp_path / cache))
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
        command += ["--nproc-per-node", "2", str(tmp_path / "shared.py")]
        command += [str(tmp_path / f"log-{what}"), what, *arguments]
        run = subprocess.run(
            command,
            check=False,
            capture_output=True,
            text=True,
            env={**os.environ, "PYTHONPATH": str(TESTS.parent), "OMP_NUM_THREADS": "1"},
        )
        assert run.returncode == 0, run.stderr
        logs = [tmp_path / f"log-{what}.{rank}" for rank in (0, 1)]
        assert [log.read_text().split() for log in logs] == [["256", "256"], ["256", "232"]]
        return run

    run = together("two", "encode")
    assert run.stdout.count("passages per second") == 1
    assert run.stderr.count("encoding passages: 1,000/1,000") == 1
    monkeypatch.setenv("RAVQA_CACHE", str(tmp_path / "one"))
    alone = command(capsys, *arguments).out
    said = re.compile(r"1,000 passages, [\d,]+ vectors, [\d,]+ truncated; 1,000 encoded now")
    assert said.match(run.stdout)[0] == said.match(alone)[0]
    [two], [one] = ((tmp_path / cache / "indexes").iterdir() for cache in ("two", "one"))
    assert two.name == one.name
    pair = ExactIndex.open(two), ExactIndex.open(one)
    assert pair[0].ids == pair[1].ids
    for a, b in zip(*(index.embeddings() for index in pair), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=2e-4)  # stored in 16 bits

    # As well where a program of several processes prepares a retriever in each of them.
    run = together("third", "prepare")
    assert sorted(run.stdout.splitlines()) == ["1000 indexed"] * 2
    assert stores(tmp_path / "third") == []
