"""The index qdrant against brute force: the engine in this process, and behind HTTP.

No server can be had here. `Server` speaks the part of Qdrant's REST interface that the index uses
and has qdrant-client's own local mode answer it, so that what goes over the wire is read by others'
code: their request models, their MaxSim, their filters.
"""

import multiprocessing
import re
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import numpy as np
import pytest
from qdrant_server import Server, client, serving

from ravqa.core.errors import DamagedError, MissingExtraError, ServerError, UserError
from ravqa.core.settings import validate
from ravqa.corpora.corpus import Corpus
from ravqa.indexes.exact import ExactIndex
from ravqa.indexes.qdrant import QdrantIndex

pytest.importorskip("qdrant_edge", reason="pip install 'ravqa[qdrant]'")

DIM = 16


@pytest.fixture(autouse=True)
def new_to_servers(monkeypatch):
    monkeypatch.setattr("ravqa.indexes.qdrant._met", set())
    monkeypatch.setattr("ravqa.indexes.qdrant._WAITS", (0.001,) * 4)


@pytest.fixture
def server():
    with serving() as server:
        yield server


@pytest.fixture(params=["edge", "server"])
def config(request):
    """Of an index in this process, and of one at a server."""
    if request.param == "edge":
        yield QdrantIndex.Config(storage="float32")
    else:
        with serving() as server:
            yield QdrantIndex.Config(url=server.url, storage="float32")


def unit_rows(rng, count, dim=DIM):
    rows = rng.normal(size=(count, dim)).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def corpus(count, seed=0, first=0):
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, 9, count)
    return {f"p {first + i}/ä": unit_rows(rng, n) for i, n in enumerate(lengths)}


def build(path, passages, config, **options):
    return QdrantIndex.build(
        list(passages), iter(passages.values()), path, dim=DIM, config=config, **options
    )


def maxsim(query, passage):
    return float((query.astype(np.float64) @ passage.T.astype(np.float64)).max(1).sum())


def expected(query, passages, k, allowed=None):
    scores = {i: maxsim(query, p) for i, p in passages.items() if len(p)}
    best = sorted(scores, key=scores.get, reverse=True)
    return [(i, scores[i]) for i in best if allowed is None or i in allowed][:k]


def same(found, wanted):
    assert [i for i, _ in found] == [i for i, _ in wanted]
    np.testing.assert_allclose([s for _, s in found], [s for _, s in wanted], atol=1e-4)


def queries(seed=9):
    rng = np.random.default_rng(seed)
    return [unit_rows(rng, n) for n in (1, 5, 40)]


def test_all_passages_scored_equal_brute_force(tmp_path, config):
    passages = corpus(60)
    with closing(build(tmp_path / "ix", passages, config)) as index:
        for k in (1, 10, 100):
            for query, found in zip(
                queries(), index.search(queries(), k, prefetch=None), strict=True
            ):
                same(found, expected(query, passages, k))
        assert len(index) == 60
        assert index.ids == list(passages)
        assert index.dim == DIM


def test_zero_rows_of_a_query_do_not_count(tmp_path, config):
    passages = corpus(20)
    query = queries()[1]
    padded = np.concatenate([np.zeros((3, DIM), np.float32), query, np.zeros((2, DIM), np.float32)])
    with closing(build(tmp_path / "ix", passages, config)) as index:
        same(index.search([padded], 5)[0], expected(query, passages, 5))
        with pytest.raises(ValueError, match="not zero"):
            index.search([np.zeros((3, DIM), np.float32)], 5)


def test_a_prefetch_scores_the_passages_whose_means_come_nearest(tmp_path, config):
    passages = corpus(80)
    query = queries()[1]
    unit = {i: p.mean(0) / np.linalg.norm(p.mean(0)) for i, p in passages.items()}
    nearest = sorted(unit, key=lambda i: -float(unit[i] @ query.sum(0)))
    wanted = expected(query, passages, 80)
    with closing(build(tmp_path / "ix", passages, config)) as index:
        for prefetch in (5, 20):
            candidates = set(nearest[:prefetch])
            found = index.search([query], 5, prefetch=prefetch)[0]
            same(found, [hit for hit in wanted if hit[0] in candidates][:5])
            # fewer candidates than passages wanted would leave some out
            assert len(index.search([query], prefetch + 10, prefetch=prefetch)[0]) == prefetch + 10
        missed = [i for i, _ in wanted[:5] if i not in nearest[:5]]
        assert missed, "the test's data must be such that a prefetch matters"


@pytest.mark.slow
def test_a_real_corpus_keeps_its_ten_best_through_the_prefetch(tmp_path, encoder, okvqa_sample):
    from ravqa.encoders.base import Span

    ids = list(okvqa_sample.corpus)[:120]
    vectors = encoder.encode_document([okvqa_sample.corpus[i].content for i in ids])
    asked = encoder.encode_query([[Span(q.question)] for q in okvqa_sample.questions[:20]])
    exact = ExactIndex.build(ids, vectors, tmp_path / "exact", dim=encoder.dim)
    with closing(QdrantIndex.build(ids, vectors, tmp_path / "ix", dim=encoder.dim)) as index:
        truth = exact.search(asked, 10)
        overlaps = []
        for prefetch in (20, 60):
            found = index.search(asked, 10, prefetch=prefetch)
            pairs = zip(found, truth, strict=True)
            overlaps.append(np.mean([len(dict(a).keys() & dict(b).keys()) / 10 for a, b in pairs]))
    assert overlaps[0] >= 0.9
    assert overlaps[1] >= 0.98


def test_only_allowed_passages_are_found(tmp_path, config):
    passages = corpus(60)
    allowed = list(passages)[5:40]
    with closing(build(tmp_path / "ix", passages, config)) as index:
        for query in queries():
            wanted = expected(query, passages, 8, allowed)
            same(index.search([query], 8, allowed_ids=[*allowed, "unknown"])[0], wanted)
            # the filter holds for the first stage too, else candidates would be used up by others
            found = index.search([query], 8, allowed_ids=iter(allowed), prefetch=10)[0]
            assert len(found) == 8
            assert {i for i, _ in found} <= set(allowed)
        assert index.search(queries(), 8, allowed_ids=[]) == [[], [], []]
        assert index.search(queries(), 8, allowed_ids=["unknown"]) == [[], [], []]


def test_changes_are_those_of_a_dictionary(tmp_path, config):
    passages = corpus(30)
    with closing(build(tmp_path / "ix", passages, config)) as index:
        new = corpus(10, seed=1, first=30)
        index.add(list(new), iter(new.values()))
        passages |= new
        changed = corpus(5, seed=2, first=0) | corpus(3, seed=3, first=40)
        index.update(list(changed), iter(changed.values()))
        passages = {i: p for i, p in passages.items() if i not in changed} | changed
        for i in list(passages)[:4]:
            del passages[i]
        gone = [i for i in (corpus(30) | new | changed) if i not in passages]
        index.delete(gone)
        assert len(index) == len(passages) == 39
        assert index.ids == list(passages)
        assert all(i in index for i in passages)
        assert not any(i in index for i in gone)
        index.compact()
        for query in queries():
            same(index.search([query], 50)[0], expected(query, passages, 50))
        assert index.verify() == []
    with closing(QdrantIndex.open(tmp_path / "ix")) as again:
        assert again.ids == list(passages)


def test_refused_changes_change_nothing(tmp_path, config):
    passages = corpus(10)
    one = unit_rows(np.random.default_rng(1), 2)
    with closing(build(tmp_path / "ix", passages, config)) as index:
        with pytest.raises(ValueError, match="already in the index"):
            index.add(["new", "p 3/ä"], [one, one])
        with pytest.raises(KeyError, match="unknown"):
            index.delete(["p 3/ä", "unknown"])
        with pytest.raises(ValueError, match="'long' has a vector of length 2"):
            index.add(["long"], [one * 2])
        assert index.ids == list(passages)
        same(index.search([one], 20)[0], expected(one, passages, 20))


def test_scores_are_of_the_passages_named(tmp_path, config):
    passages = corpus(20) | {"empty": np.zeros((0, DIM), np.float32)}
    with closing(build(tmp_path / "ix", passages, config)) as index:
        wanted = [["p 3/ä", "empty", "p 1/ä", "p 3/ä"], [], ["p 9/ä"]]
        scores = index.score(queries(), wanted)
        for query, ids, row in zip(queries(), wanted, scores, strict=True):
            truth = [maxsim(query, passages[i]) if i != "empty" else -np.inf for i in ids]
            np.testing.assert_allclose(row, truth, atol=1e-4)
        with pytest.raises(KeyError, match="unknown"):
            index.score(queries()[:1], [["p 3/ä", "unknown"]])
        assert "empty" in index
        assert "empty" not in dict(index.search(queries(), 50)[0])


def test_ties_come_in_passage_order(tmp_path, config):
    one = unit_rows(np.random.default_rng(1), 3)
    passages = {f"{i}": one for i in (4, 2, 9, 0, 7)}
    with closing(build(tmp_path / "ix", passages, config)) as index:
        assert [i for i, _ in index.search([one], 5)[0]] == ["4", "2", "9", "0", "7"]
        index.update(["4"], [one])
        assert [i for i, _ in index.search([one], 5)[0]] == ["2", "9", "0", "7", "4"]


@pytest.mark.slow
def test_searches_in_threads_equal_serial_ones(tmp_path, config):
    asked = [q for seed in range(8) for q in queries(seed)]
    with closing(build(tmp_path / "ix", corpus(40), config)) as index:
        serial = index.search(asked, 5)
        with ThreadPoolExecutor(8) as pool:
            threads = list(pool.map(lambda q: index.search([q], 5)[0], asked))
    assert threads == serial


def test_float16_loses_no_more_than_its_rounding(tmp_path):
    passages = corpus(30)
    query = queries()[2]
    config = QdrantIndex.Config(storage="float16")
    with closing(build(tmp_path / "ix", passages, config)) as index:
        found = dict(index.search([query], 30)[0])
    for i, score in expected(query, passages, 30):
        assert abs(found[i] - score) < len(query) * 2**-10
    assert any(found[i] != pytest.approx(s, abs=1e-6) for i, s in expected(query, passages, 30))


def test_reopened_it_answers_the_same_and_knows_what_it_was_built_from(tmp_path, config):
    path = tmp_path / "ix"
    with closing(build(path, corpus(20), config, fingerprint="corpus and encoder")) as index:
        before = index.search(queries(), 5)
    assert QdrantIndex.built(path)
    with closing(QdrantIndex.open(path, config, fingerprint="corpus and encoder")) as index:
        assert index.search(queries(), 5) == before
        assert index.fingerprint == "corpus and encoder"
        assert index.stats()["passages"] == 20
    with pytest.raises(UserError, match="another corpus or with another encoder"):
        QdrantIndex.open(path, config, fingerprint="something else")
    with pytest.raises(UserError, match="already has an index"):
        build(path, corpus(20), config)


class Interruption(BaseException):
    """Like KeyboardInterrupt: no subclass of Exception."""


def test_a_build_that_did_not_end_is_no_index_and_is_done_anew(tmp_path, config, monkeypatch):
    monkeypatch.setattr("ravqa.indexes.qdrant._BATCH", 10 * DIM)
    path = tmp_path / "ix"
    passages = corpus(20)

    def failing():
        yield from list(passages.values())[:10]
        raise Interruption

    with pytest.raises(Interruption):
        QdrantIndex.build(list(passages), failing(), path, dim=DIM, config=config)
    assert not QdrantIndex.built(path)
    with pytest.raises(UserError, match=r"build did not end|does not exist"):
        QdrantIndex.open(path, config)
    few = corpus(5, seed=3, first=50)
    with closing(build(path, few, config)) as index:
        assert index.ids == list(few)
        same(index.search(queries(), 20)[0], expected(queries()[0], few, 20))


def test_what_is_no_index_is_refused(tmp_path):
    with pytest.raises(UserError, match="no index in"):
        QdrantIndex.open(tmp_path / "nowhere")
    with pytest.raises(UserError, match="no index in"):
        QdrantIndex.open(tmp_path, QdrantIndex.Config())
    (tmp_path / "qdrant.json").write_text("{")
    with pytest.raises(UserError, match="damaged"):
        QdrantIndex.open(tmp_path)
    (tmp_path / "edge").mkdir()
    with pytest.raises(UserError, match="damaged") as caught:
        QdrantIndex.open(tmp_path, QdrantIndex.Config())
    assert "\n" not in str(caught.value)


def _open(path, asked, answers):
    while asked.get(timeout=60):
        try:
            QdrantIndex.open(path).close()
            answers.put("opened")
        except UserError as e:
            answers.put(str(e))


@pytest.mark.slow
def test_another_process_is_told_that_the_folder_is_in_use(tmp_path):
    context = multiprocessing.get_context("spawn")
    asked, answers = context.Queue(), context.Queue()
    index = build(tmp_path / "ix", corpus(3), QdrantIndex.Config())
    process = context.Process(target=_open, args=(tmp_path / "ix", asked, answers))
    process.start()
    asked.put(True)
    assert "another process has it" in answers.get(timeout=60)
    index.close()
    asked.put(True)
    assert answers.get(timeout=60) == "opened"
    asked.put(False)
    process.join()


# -- the server ---------------------------------------------------------------------------------


def test_uploads_are_bounded(tmp_path, server, monkeypatch):
    monkeypatch.setattr("ravqa.indexes.qdrant._BATCH", 20 * DIM)
    passages = corpus(50)
    with closing(build(tmp_path / "ix", passages, QdrantIndex.Config(url=server.url))) as index:
        assert index.ids == list(passages)
    sizes = [size for method, path, size in server.requests if path.endswith("/points")]
    assert len(sizes) > 10
    longest = max(len(p) for p in passages.values())
    assert max(sizes) < (20 + longest) * DIM * 30


def test_a_second_machine_takes_the_collection_that_is_there(tmp_path, server):
    here = QdrantIndex.Config(url=server.url, collection="shared")
    passages = corpus(10)
    build(tmp_path / "one", passages, here, fingerprint="f").close()
    uploads = len(server.requests)

    def never():
        raise AssertionError("the vectors are not needed")
        yield

    path = tmp_path / "two"
    with closing(
        QdrantIndex.build(list(passages), never(), path, dim=DIM, config=here, fingerprint="f")
    ) as index:
        assert index.ids == list(passages)
    assert not any(method == "PUT" for method, _, _ in server.requests[uploads:])
    with pytest.raises(UserError, match="another corpus or by another encoder"):
        build(tmp_path / "three", passages, here, fingerprint="g")
    with pytest.raises(UserError, match="another corpus or by another encoder"):
        build(tmp_path / "four", passages, here)
    with closing(QdrantIndex.open(tmp_path / "anywhere", here, fingerprint="f")) as index:
        assert len(index) == 10


def test_someone_elses_collection_is_left_alone(tmp_path, server):
    m = client.models
    server.engine.create_collection("theirs", m.VectorParams(size=2, distance=m.Distance.DOT))
    server.engine.upsert("theirs", [m.PointStruct(id=1, vector=[1.0, 0.0], payload={})])
    here = QdrantIndex.Config(url=server.url, collection="theirs")
    with pytest.raises(UserError, match="no index of ravqa"):
        build(tmp_path / "ix", corpus(3), here)
    with pytest.raises(UserError, match="build did not end"):
        QdrantIndex.open(tmp_path / "ix", here)
    assert server.engine.count("theirs").count == 1


def test_a_lost_collection_is_said(tmp_path, server):
    here = QdrantIndex.Config(url=server.url)
    with closing(build(tmp_path / "ix", corpus(3), here)) as index:
        server.engine.delete("ravqa-ix", [next(iter(server.engine.scroll("ravqa-ix")[0])).id])
        [own] = server.engine.get_collections().collections
        server.engine.delete_collection(own.name)
        with pytest.raises(UserError, match="no index"):
            index.verify()
        with pytest.raises(UserError, match="404"):
            index.search(queries(), 3)
    with pytest.raises(UserError, match=f"ravqa-ix at {server.url}"):
        QdrantIndex.open(tmp_path / "ix")


def test_a_change_that_did_not_end_is_found_by_verify(tmp_path, server, monkeypatch):
    monkeypatch.setattr("ravqa.indexes.qdrant._BATCH", 20 * DIM)
    monkeypatch.setattr("ravqa.indexes.qdrant._WAITS", ())
    new = corpus(20, seed=1, first=10)
    with closing(build(tmp_path / "ix", corpus(10), QdrantIndex.Config(url=server.url))) as index:

        def failing():
            yield from list(new.values())[:15]
            server.broken = ("PUT", "points")
            yield from list(new.values())[15:]

        with pytest.raises(UserError, match="500"):
            index.add(list(new), failing())
        server.broken = None
        assert re.fullmatch(r"\d+ passages instead of 10", index.verify()[0])
        index.update(list(new), list(new.values()))
        assert index.verify() == []
        assert len(index) == 30


@pytest.mark.filterwarnings("ignore:Api key is used with an insecure connection:UserWarning")
def test_the_key_comes_from_the_environment_and_goes_nowhere_else(tmp_path, server, monkeypatch):
    server.key = "s3cret"
    here = QdrantIndex.Config(url=server.url)
    with pytest.raises(UserError, match=r"401.*QDRANT_API_KEY"):
        build(tmp_path / "ix", corpus(3), here)
    monkeypatch.setenv("QDRANT_API_KEY", "s3cret")
    with closing(build(tmp_path / "ix", corpus(3), here)) as index:
        assert len(index) == 3
        assert "s3cret" not in f"{index.stats()} {index.config!r} {index!r} {vars(index)}"
    files = [p for p in (tmp_path / "ix").rglob("*") if p.is_file()]
    assert files
    assert not any(b"s3cret" in p.read_bytes() for p in files)


def test_a_server_that_is_away_is_one_clear_line(tmp_path):
    with closing(Server()) as gone:
        url = gone.url
    with pytest.raises(UserError, match="cannot be reached") as caught:
        QdrantIndex.open(tmp_path / "ix", QdrantIndex.Config(url=url, timeout=1))
    assert url in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "url",
    ["localhost:6333", "ftp://host", "http://", "http://me:pw@host", "https://host?api_key=1"],
)
def test_urls_that_are_none_or_hold_a_key_are_refused(url):
    with pytest.raises(UserError, match="url"):
        validate(QdrantIndex.Config, {"url": url}, "index")


def test_only_the_prefetch_can_be_set_for_a_search(tmp_path):
    with closing(build(tmp_path / "ix", corpus(3), QdrantIndex.Config())) as index:
        with pytest.raises(ValueError, match="prefetch only"):
            index.search(queries(), 3, url="http://elsewhere")
        with pytest.raises(UserError, match="prefetch"):
            index.search(queries(), 3, prefetch=0)


@pytest.mark.parametrize("missing", ["qdrant_client", "qdrant_edge"])
def test_a_missing_package_names_the_extra(tmp_path, monkeypatch, missing):
    monkeypatch.setitem(__import__("sys").modules, missing, None)
    url = "http://localhost:1" if missing == "qdrant_client" else None
    with pytest.raises(MissingExtraError, match=r"ravqa\[qdrant\]"):
        build(tmp_path / "ix", corpus(3), QdrantIndex.Config(url=url))


def test_the_retriever_uses_it(fresh_cache, config, okvqa_sample, models_loaded_once):
    from ravqa.core.settings import Part
    from ravqa.retrievers.late_interaction import LateInteractionRetriever as Retriever

    few = Corpus([okvqa_sample.corpus[i] for i in list(okvqa_sample.corpus)[:15]])
    rankings = []
    for index in (
        Part(name="exact", storage="float32"),
        Part(name="qdrant", **config.model_dump()),
    ):
        retriever = Retriever(Retriever.Config(index=index, depth=5))
        retriever.prepare(few)
        hits = retriever.retrieve(okvqa_sample.questions[:4], 5)
        rankings.append([[hit.passage_id for hit in row] for row in hits])
        if hasattr(retriever._index, "close"):
            retriever._index.close()
        assert all(len(row) == 5 for row in hits)
    assert rankings[0] == rankings[1]


# -- rebuilt collections, busy servers, versions -------------------------------------------------


def names(server):
    return sorted(c.name for c in server.engine.get_collections().collections)


def test_a_rebuilt_collection_takes_the_place_of_the_old_one_at_once(tmp_path, server):
    here = QdrantIndex.Config(url=server.url, collection="zoo", prefetch=None, storage="float32")
    old, new = corpus(8), corpus(9, seed=4, first=20)
    query = queries()[0]
    with closing(build(tmp_path / "old", old, here, fingerprint="f")) as reader:
        [first] = names(server)
        assert re.fullmatch("zoo-[0-9a-f]{12}", first)
        with pytest.raises(UserError, match="another corpus or by another encoder"):
            build(tmp_path / "no", new, here, fingerprint="g")
        server.engine.create_collection("zoo-0123456789ab", {})  # left by a build that was killed
        with closing(build(tmp_path / "new", new, here, fingerprint="g", replaces="f")) as index:
            assert len(names(server)) == 3
            same(reader.search([query], 5)[0], expected(query, old, 5))
            same(index.search([query], 5)[0], expected(query, new, 5))
            with closing(QdrantIndex.open(tmp_path / "new", here, fingerprint="g")) as early:
                assert len(early) == 9
            with closing(QdrantIndex.open(tmp_path / "old", here)) as by_name:
                assert len(by_name) == 8
            index.publish()
            index.publish()
            assert len(names(server)) == 1
            assert names(server) != [first]
            same(reader.search([query], 5)[0], expected(query, new, 5))
            switch = [r for r in server.requests if r[1] == "/collections/aliases"]
            assert len(switch) == 2  # one for each of the two builds
            with pytest.raises(DamagedError, match="built from another corpus"):
                QdrantIndex.open(tmp_path / "old", here, fingerprint="f")
            index.drop()
    assert names(server) == []


def test_a_collection_of_an_older_version_is_replaced_too(tmp_path, server):
    here = QdrantIndex.Config(url=server.url, collection="zoo", storage="float32")
    build(tmp_path / "old", corpus(3), here, fingerprint="f").close()
    [own] = names(server)
    m = client.models  # they made it under the name itself
    gone = m.DeleteAliasOperation(delete_alias=m.DeleteAlias(alias_name="zoo"))
    server.engine.update_collection_aliases([gone])
    collections = server.engine._client.collections
    collections["zoo"] = collections.pop(own)
    with closing(QdrantIndex.open(tmp_path / "old", here, fingerprint="f")) as index:
        assert len(index) == 3
    with closing(build(tmp_path / "new", corpus(5), here, fingerprint="g", replaces="f")) as index:
        index.publish()
    with closing(QdrantIndex.open(tmp_path / "x", here, fingerprint="g")) as index:
        assert len(index) == 5
    assert len(names(server)) == 1


def test_a_busy_or_failing_server_is_asked_again_and_not_for_ever(tmp_path, server):
    passages = corpus(3)
    with closing(build(tmp_path / "ix", passages, QdrantIndex.Config(url=server.url))) as index:
        server.failures = [503, 429, 500, 502]
        asked = len(server.requests)
        assert len(index.search(queries(), 3)[0]) == 3
        assert len(server.requests) - asked == 4 + len(queries())
        server.failures = [503] * 5
        with pytest.raises(ServerError, match=rf"ravqa-ix at {server.url}: 503") as caught:
            index.search(queries(), 3)
        assert "\n" not in str(caught.value)
        assert server.failures == []
        server.failures = [404]  # is no passing trouble
        with pytest.raises(ServerError, match="404"):
            index.search(queries(), 3)


@pytest.mark.parametrize(
    ("found", "what"), [("1.20.9", None), ("1.19.0", None), ("1.18.0", "warned"), ("2.0.1", "no")]
)
def test_versions_of_server_and_client_are_compared_once(
    tmp_path, server, caplog, monkeypatch, found, what
):
    monkeypatch.setattr("ravqa.indexes.qdrant.version_of", lambda name: "1.20.0")
    server.version = found
    here = QdrantIndex.Config(url=server.url)
    if what == "no":
        with pytest.raises(
            UserError, match=r"has version 2\.0\.1, and qdrant-client 1\.20\.0: their"
        ):
            build(tmp_path / "ix", corpus(3), here)
        return
    build(tmp_path / "ix", corpus(3), here).close()
    QdrantIndex.open(tmp_path / "ix").close()
    assert sum(path == "/" for _, path, _ in server.requests) == 1
    said = [r.getMessage() for r in caplog.records if "qdrant-client" in r.getMessage()]
    assert len(said) == (1 if what else 0)


def test_what_is_no_qdrant_server_is_one_line(tmp_path, server, monkeypatch):
    monkeypatch.setattr(server, "do", lambda *_: (200, {"exists": "perhaps"}))
    server.version = None
    with pytest.raises(UserError, match="gives an answer that is not Qdrant's") as caught:
        QdrantIndex.open(tmp_path / "ix", QdrantIndex.Config(url=server.url))
    assert "\n" not in str(caught.value)
