"""The compressed index: its paths, its quality against brute force, growth, and the retriever."""

import itertools
import math
import shutil
import subprocess
import sys

import numpy as np
import pytest
from index_files import (
    Topics,
    assert_ranking,
    build,
    files,
    manifest,
    maxsim,
    names,
    normalised,
    overlap,
    ranking,
    stored,
    units,
)

from ravqa.core.errors import UserError
from ravqa.core.records import Description, Question, Tag
from ravqa.core.settings import validate
from ravqa.corpora.corpus import Corpus
from ravqa.encoders.base import Encoder
from ravqa.indexes.compressed import native
from ravqa.indexes.compressed.index import CompressedIndex
from ravqa.indexes.exact import ExactIndex
from ravqa.retrievers.late_interaction import LateInteractionRetriever

STORAGES = ["9bit", "4bit", "float16"]
NATIVE = ["native"] if native.library() is not None else []  # where they could be compiled
COUNT = 1000


class Sample:
    """A corpus, its exact index and a compressed one, queries and their exact rankings."""

    def __init__(self, folder):
        topics = Topics(seed=0)
        self.passages = topics.passages(COUNT)
        self.more = Topics(seed=1).passages(COUNT // 3)  # about other things
        self.queries = topics.queries(self.passages, 20)
        self.other_queries = topics.queries(self.more, 20)
        self.folder = folder
        self.exact = build(folder / "exact", self.passages, storage="float32")
        self.index = build(folder / "compressed", self.passages, kind="compressed")
        self.best = self.exact.search(self.queries, 100)

    def copy(self, path):
        shutil.copytree(self.folder / "compressed", path)
        return CompressedIndex(path)


@pytest.fixture(scope="module")
def sample(tmp_path_factory):
    return Sample(tmp_path_factory.mktemp("sample"))


def top10(rankings):
    return [hits[:10] for hits in rankings]


# --- quality


def test_the_default_finds_what_the_exact_index_finds(sample):
    found = sample.index.search(sample.queries, 100)
    assert overlap(top10(found), top10(sample.best)) >= 0.99
    assert overlap(found, sample.best) >= 0.95


def test_returned_scores_are_maxsim_over_what_is_stored_and_in_order(sample):
    held = stored(sample.index.path)
    for query, hits in zip(
        sample.queries[:5], sample.index.search(sample.queries[:5], 50), strict=True
    ):
        assert_ranking(hits, ranking(query, {i: held[i] for i, _ in hits}), 50, 1e-4)
        [scores] = sample.index.score([query], [[i for i, _ in hits]])
        np.testing.assert_allclose([s for _, s in hits], scores, rtol=0, atol=1e-5)


def test_more_effort_finds_no_less(sample):
    found = {
        effort: top10(sample.index.search(sample.queries, 10, effort=effort))
        for effort in ("fast", "default", "careful")
    }
    shares = {effort: overlap(hits, top10(sample.best)) for effort, hits in found.items()}
    assert shares["fast"] >= 0.9
    assert shares["careful"] >= shares["default"] - 0.005
    assert shares["careful"] >= 0.99
    careful = CompressedIndex(sample.index.path, CompressedIndex.Config(effort="careful"))
    assert top10(careful.search(sample.queries, 10)) == found["careful"]
    few = sample.index.search(sample.queries, 10, candidates=20)
    assert overlap(few, top10(sample.best)) < shares["default"]


def test_queries_of_few_vectors_and_of_noise_find_the_same_too(sample):
    rng = np.random.default_rng(2)
    queries = {
        "few": [query[:8] for query in sample.queries],
        "noise": [np.concatenate([query[:24], units(rng, 80, 64)]) for query in sample.queries],
    }
    for name, some in queries.items():
        best = sample.exact.search(some, 10)
        assert overlap(sample.index.search(some, 10), best) >= 0.97, name


@pytest.mark.parametrize("scale", [1e-8, 1e-4, 1e-2, 1e3])
def test_the_length_of_a_querys_vectors_changes_scores_and_not_what_is_found(sample, scale):
    """A retriever divides long queries by their length, and weights their words."""
    queries = sample.queries[:6]
    plain = sample.index.search(queries, 10)
    scaled = sample.index.search([query * np.float32(scale) for query in queries], 10)
    assert overlap(scaled, plain) >= 0.98
    for a, b in zip(plain, scaled, strict=True):
        both = dict(a).keys() & dict(b).keys()
        np.testing.assert_allclose(
            [dict(b)[i] for i in both], [dict(a)[i] * scale for i in both], rtol=1e-3
        )


def test_weights_of_a_querys_vectors_count(sample):
    rng = np.random.default_rng(3)
    queries = [
        query * np.exp(rng.uniform(-6, 0, size=(len(query), 1))).astype(np.float32)
        for query in sample.queries
    ]
    best = sample.exact.search(queries, 10)
    assert overlap(sample.index.search(queries, 10), best) >= 0.98


@pytest.mark.parametrize("storage", STORAGES)
def test_a_corpus_whose_passages_are_all_looked_at_is_ranked_as_what_is_stored(tmp_path, storage):
    topics = Topics(seed=4)
    passages = topics.passages(150)
    index = build(tmp_path / "index", passages, kind="compressed", storage=storage)
    held = stored(tmp_path / "index")
    for query in topics.queries(passages, 10):
        [hits] = index.search([query], 10)
        assert_ranking(hits, ranking(query, held), 10, 1e-4)


def test_only_allowed_passages_are_found_among_many(sample):
    rng = np.random.default_rng(5)
    held = stored(sample.index.path)
    for count in (3, 100, 1000):
        allowed = [str(i) for i in rng.choice(names(COUNT), count, replace=False)]
        some = {i: held[i] for i in held if i in set(allowed)}
        for query in sample.queries[:4]:
            [hits] = sample.index.search([query], 10, allowed_ids=allowed)
            expected = ranking(query, some)
            if count <= 100:
                assert_ranking(hits, expected, 10, 1e-4)
            assert overlap([hits], [expected[:10]]) >= 0.9


# --- its paths


@pytest.mark.parametrize("storage", STORAGES)
def test_all_kernels_give_the_same(tmp_path, storage):
    topics = Topics(seed=6, dim=40)
    passages = [*topics.passages(250), np.zeros((0, 40), np.float32), *topics.passages(50)]
    queries = [*topics.queries(passages[:250], 6), units(np.random.default_rng(0), 3, 40)]
    path = tmp_path / "index"
    build(path, passages[:200], kind="compressed", storage=storage).add(
        [f"q{i}" for i in range(101)], passages[200:]
    )
    CompressedIndex(path).delete(["p3", "q7", "q50"])
    ways = {
        kernels: CompressedIndex(path, CompressedIndex.Config(kernels=kernels))
        for kernels in ("torch", "numba", *NATIVE)
    }
    held = stored(path)
    for query in queries:
        expected = ranking(query, held)
        for index in ways.values():
            [hits] = index.search([query], 12, candidates=1000)
            assert_ranking(hits, expected, 12, 1e-4)
        ids = list(held)
        one, *others = (index.score([query], [ids])[0] for index in ways.values())
        for scores in others:
            np.testing.assert_allclose(scores, one, rtol=0, atol=1e-5)
    one, *others = (index.search(queries, 10, candidates=120) for index in ways.values())
    assert all(overlap(found, one) >= 0.95 for found in others)


@pytest.fixture
def without(monkeypatch):
    """Call with the name of a package that is then as if not installed."""

    def hide(package):
        monkeypatch.setitem(sys.modules, package, None)
        monkeypatch.delitem(sys.modules, "ravqa.indexes.compressed.kernels", raising=False)

    return hide


@pytest.mark.parametrize("kernels", ["torch", *NATIVE])
def test_it_works_where_numba_is_missing(tmp_path, without, sample, monkeypatch, kernels):
    without("numba")
    if kernels == "torch":
        monkeypatch.setattr(native, "library", lambda: None)
    index = CompressedIndex(sample.index.path)
    found = index.search(sample.queries, 10)
    assert index._kernels == kernels
    assert sys.modules.get("ravqa.indexes.compressed.kernels") is None
    assert overlap(found, top10(sample.best)) >= 0.99
    made = build(tmp_path / "index", sample.passages[:50], kind="compressed")
    made.delete(["p1"])
    made.compact()
    assert len(made.search(sample.queries[:1], 100)[0]) == 49


def test_numba_where_it_is_missing_is_named_with_the_extra_that_brings_it(without, sample):
    without("numba")
    config = CompressedIndex.Config(kernels="numba")
    with pytest.raises(UserError, match=r"numba.*pip install"):
        CompressedIndex(sample.index.path, config).search(sample.queries[:1], 3)


def test_importing_the_index_imports_and_compiles_nothing_heavy():
    code = (
        "import sys, ravqa.indexes.auto, ravqa.indexes.compressed.index\n"
        "print(sorted({'torch', 'numba', 'faiss'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


# --- settings


def test_unknown_and_bad_settings_of_a_search_are_named(sample):
    for bad in ({"efort": "fast"}, {"effort": "most"}, {"candidates": 0}, {"candidates": "many"}):
        with pytest.raises(UserError) as caught:
            sample.index.search(sample.queries[:1], 3, **bad)
        message = str(caught.value)
        assert "\n" not in message
        assert next(iter(bad)) in message
    with pytest.raises(UserError, match="effort"):  # the near name
        sample.index.search(sample.queries[:1], 3, efort="fast")


@pytest.mark.parametrize(
    "fixed",
    [
        {"storage": "4bit"},
        {"centroids": 9},
        {"seed": 3},
        {"retrain": False},
        {"device": "cpu"},
        {"device_gib": 1.0},
        {"kernels": "torch"},
    ],
    ids=lambda option: next(iter(option)),
)
def test_a_search_refuses_settings_that_it_cannot_follow(sample, fixed):
    with pytest.raises(UserError, match=next(iter(fixed))):
        sample.index.search(sample.queries[:1], 3, **fixed)


# --- what vectors there may be


def test_more_than_256_runs_in_a_passage(tmp_path):
    rng = np.random.default_rng(8)
    passages = [units(rng, n, 16) for n in (1500, 3, 900, 0, 70)]
    path = tmp_path / "index"
    index = build(path, passages, kind="compressed", centroids=600)
    [segment] = manifest(path)["segments"]
    runs = np.diff(np.load(path / segment["name"] / "run_offsets.npy"))
    assert runs.max() > 400
    assert_ranking(
        index.search([query := units(rng, 30, 16)], 5)[0], ranking(query, stored(path)), 5, 1e-4
    )


def test_a_passage_of_more_vectors_than_places_is_refused_by_id(tmp_path):
    rng = np.random.default_rng(9)
    most = units(rng, 65535, 8)
    index = build(tmp_path / "index", [most, most[:2]], kind="compressed", centroids=4)
    query = units(rng, 3, 8)
    assert_ranking(index.search([query], 2)[0], ranking(query, stored(tmp_path / "index")), 2, 1e-4)
    with pytest.raises(ValueError, match="'long one' has 65536 vectors"):
        index.add(["fine", "long one"], [most[:3], np.concatenate([most, most[:1]])])
    assert index.ids == ["p0", "p1"]


@pytest.mark.parametrize("dim", [2, 7, 12, 100])
@pytest.mark.parametrize("storage", STORAGES)
def test_widths_that_are_no_multiple_of_eight(tmp_path, storage, dim):
    rng = np.random.default_rng(dim)
    passages = [units(rng, 1 + i % 9, dim) for i in range(60)]
    path = tmp_path / "index"
    if storage == "4bit" and dim % 2:
        with pytest.raises(ValueError, match="even"):
            build(path, passages, kind="compressed", storage=storage)
        assert files(path) == set()
        return
    for kernels in ("numba", "torch", *NATIVE):
        shutil.rmtree(path, ignore_errors=True)
        index = build(path, passages, kind="compressed", storage=storage, kernels=kernels)
        query = units(rng, 11, dim)
        held = stored(path)
        assert_ranking(index.search([query], 9)[0], ranking(query, held), 9, 1e-4)


@pytest.mark.parametrize("dim", [16, 64, 128])
def test_components_are_kept_as_finely_as_their_bits_allow(tmp_path, dim):
    """Also of vectors far from every centroid; errors are passed on: some exceed half a step."""
    rng = np.random.default_rng(dim)
    passages = [units(rng, 1, dim) for _ in range(300)]
    path = tmp_path / "index"
    build(path, passages, kind="compressed", storage="9bit", centroids=1)
    codec = path / manifest(path)["settings"]["shared"]
    rotation, [center] = np.load(codec / "rotation.npy"), np.load(codec / "centers.npy")
    for passage, kept in zip(passages, stored(path).values(), strict=True):
        step = np.abs(passage @ rotation - center).max() / 254
        error = np.abs((kept - passage) @ rotation)
        assert error.max() <= 2 * step + 2**-11
        assert np.sqrt((error**2).mean()) <= 1.3 * step / np.sqrt(12) + 2**-11


@pytest.mark.parametrize(("storage", "dim"), [("9bit", 64), ("4bit", 128)])
def test_errors_are_small_and_smallest_along_what_vectors_share(tmp_path, storage, dim):
    rng = np.random.default_rng(dim)
    shared = units(rng, 1, dim)[0]
    passages = [normalised(units(rng, 1, dim) + 0.4 * shared) for _ in range(3000)]
    path = tmp_path / "index"
    build(path, passages, kind="compressed", storage=storage, centroids=256)
    held = np.concatenate(list(stored(path).values()))
    error = held - np.concatenate(passages)
    each = np.sqrt((error**2).mean())  # of a component
    assert each < (0.1 if storage == "4bit" else 0.004) / np.sqrt(dim)
    assert np.sqrt(((error @ shared) ** 2).mean()) < 0.5 * each  # of any direction: 1


def test_a_single_centroid_and_equal_and_opposite_vectors_are_searched_rightly(tmp_path):
    rng = np.random.default_rng(10)
    one = units(rng, 1, 16)
    corpora = {
        "one centroid": ([units(rng, 1 + i % 5, 16) for i in range(200)], 1),
        "equal": ([np.repeat(one, 1 + i % 5, axis=0) for i in range(200)], None),
        "opposite": ([np.repeat(one if i % 2 else -one, 3, axis=0) for i in range(200)], None),
        "copies": ([units(np.random.default_rng(i % 7), 4, 16) for i in range(200)], 50),
    }
    for name, (passages, centroids) in corpora.items():
        path = tmp_path / name
        index = build(path, passages, kind="compressed", centroids=centroids)
        held = stored(path)
        for query in (one, units(rng, 20, 16), -one):
            [hits] = index.search([query], 10, candidates=200)
            assert_ranking(hits, ranking(query, held), 10, 1e-4)


# --- growth


def grown(path, passages, options):
    """An index built from a fifth of the passages, the rest added in parts."""
    first = len(passages) // 5
    index = build(path, passages[:first], kind="compressed", **options)
    for some in _parts(first, len(passages)):
        index.add([f"p{i}" for i in some], (passages[i] for i in some))
    return index


def _parts(first, last, parts=5):
    bounds = np.linspace(first, last, parts + 1).astype(int)
    return [range(a, b) for a, b in itertools.pairwise(bounds)]


def test_an_index_grown_from_a_fifth_is_as_good_as_a_fresh_one(tmp_path, sample):
    path = tmp_path / "index"
    index = grown(path, sample.passages, {})
    assert index.ids == names(COUNT)
    fresh = overlap(sample.index.search(sample.queries, 100), sample.best)
    assert overlap(index.search(sample.queries, 100), sample.best) >= fresh - 0.01
    assert overlap(index.search(sample.queries, 10), top10(sample.best)) >= 0.99
    assert manifest(path)["settings"]["shared"] != "shared-000001"  # centroids were chosen anew
    assert index.verify() == []


def test_centroids_are_not_chosen_anew_if_that_is_not_wanted(tmp_path, sample):
    path = tmp_path / "index"
    index = grown(path, sample.passages[:500], {"retrain": False})
    assert manifest(path)["settings"]["shared"] == "shared-000001"
    assert len(index) == 500


@pytest.mark.slow
def test_added_passages_about_other_things_are_found_as_well_as_in_a_fresh_index(tmp_path, sample):
    index = sample.copy(tmp_path / "grown")
    ids = [f"o{i}" for i in range(len(sample.more))]
    index.add(ids, sample.more)
    both = sample.passages + sample.more
    every = names(COUNT) + ids
    fresh = build(tmp_path / "fresh", both, ids=every, kind="compressed")
    exact = build(tmp_path / "exact", both, ids=every, storage="float32")
    queries = sample.queries + sample.other_queries
    best = exact.search(queries, 100)
    expected = overlap(fresh.search(queries, 100), best)
    assert overlap(index.search(queries, 100), best) >= expected - 0.01


@pytest.mark.slow
def test_a_large_corpus_that_begins_with_what_fits_best_is_not_drift(tmp_path):
    rng = np.random.default_rng(14)
    alike = [normalised(units(rng, 1, 64) + 0.02 * rng.normal(size=(100, 64))) for _ in range(1400)]
    passages = alike + [units(rng, 100, 64) for _ in range(600)]
    path = tmp_path / "index"
    index = build(path, passages, kind="compressed", centroids=4096)
    index.add(["one more"], passages[-1:])
    assert manifest(path)["settings"]["shared"] == "shared-000001"
    assert len(manifest(path)["segments"]) == 2


def test_changes_and_compaction_keep_what_is_found(tmp_path, sample):
    index = sample.copy(tmp_path / "index")
    rng = np.random.default_rng(11)
    gone = [str(i) for i in rng.choice(names(COUNT), 300, replace=False)]
    index.delete(gone[:200])
    index.update(gone[200:250], [sample.passages[int(i[1:])] for i in gone[200:250]])
    index.delete(gone[250:])
    left = {i: sample.passages[int(i[1:])] for i in names(COUNT) if i in set(index.ids)}
    assert len(left) == COUNT - 250
    exact = ExactIndex.build(list(left), list(left.values()), tmp_path / "exact", dim=64)
    best = exact.search(sample.queries, 10)
    before = index.search(sample.queries, 10)
    assert overlap(before, best) >= 0.99
    size = index.stats()["bytes"]
    index.compact()
    after = index.search(sample.queries, 10)
    assert overlap(after, before) >= 0.99
    assert index.stats()["segments"] == 1
    assert index.stats()["bytes"] < 0.95 * size
    assert not set(gone[:200]) & {i for hits in after for i, _ in hits}
    held = stored(index.path)
    assert set(held) == set(left)


@pytest.mark.parametrize("storage", STORAGES)
def test_many_compactions_lose_no_more_than_one(tmp_path, storage):
    topics = Topics(seed=12)
    passages = topics.passages(150)
    path = tmp_path / "index"
    index = build(path, passages, kind="compressed", storage=storage)
    queries = topics.queries(passages, 5)

    def loss():
        held = stored(path)
        return max(
            abs(maxsim(q, held[i]) - maxsim(q, p)) / len(q)
            for q in queries
            for i, p in zip(names(150), passages, strict=True)
        )

    first = loss()
    for _ in range(4):
        index.compact()
    assert loss() <= 1.2 * first + 1e-5


def test_the_same_passages_make_the_same_files(tmp_path):
    passages = Topics(seed=13).passages(150)
    for name in ("one", "two"):
        index = build(tmp_path / name, passages, kind="compressed")
        index.add(["a"], passages[:1])
        index.delete(["p2"])
    assert files(tmp_path / "one") == files(tmp_path / "two")
    for name in files(tmp_path / "one"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes(), (
            name
        )


# --- under the retriever


class Remembering(Encoder):
    """An encoder that encodes nothing twice."""

    def __init__(self, encoder):
        self._encoder = encoder
        self._known = {}
        self.fingerprint, self.dim, self.weights = encoder.fingerprint, encoder.dim, encoder.weights

    def encode_document(self, texts, progress=None):
        return self._through(self._encoder.encode_document, texts)

    def encode_query(self, queries):
        return self._through(self._encoder.encode_query, [tuple(spans) for spans in queries])

    def _through(self, encode, items):
        new = [item for item in dict.fromkeys(items) if item not in self._known]
        self._known |= dict(zip(new, encode(new), strict=True)) if new else {}
        return [self._known[item] for item in items]


def ask(text, *tags):
    return Question(1, text, description=Description(tags=tags) if tags else None)


QUESTIONS = [
    ask("What is the main food of this animal?", Tag(("jaguar", "panther"), 0.8)),
    ask("Where does this animal live?", Tag(("koala", "koala bear"), 0.6, ("animal",))),
    ask("Which of them sleeps through the winter?", Tag(("hedgehog",), 0.5), Tag(("cat",), 0.2)),
    ask("a bird that cannot fly"),
]


def hits_of(encoder, corpus, **index):
    options = {"index": index, "depth": 50}
    config = validate(LateInteractionRetriever.Config, options, "retriever")
    retriever = LateInteractionRetriever(config)
    retriever.encoder = encoder
    retriever.prepare(corpus)
    return retriever.retrieve(QUESTIONS, 20)


def compare(encoder, corpus, **options):
    expected = hits_of(encoder, corpus, name="exact", storage="float16")
    for storage, atol in (("float16", 1e-4), ("9bit", 0.005)):
        found = hits_of(encoder, corpus, name="compressed", storage=storage, **options)
        for a, b in zip(found, expected, strict=True):
            assert [h.rank for h in a] == [h.rank for h in b]
            # the same hits, but for the order of those whose scores hardly differ
            np.testing.assert_allclose([h.score for h in a], [h.score for h in b], atol=atol)
            scores = {h.passage_id: h.score for h in b}
            for hit in a:
                assert math.isclose(
                    hit.score, scores.get(hit.passage_id, b[-1].score), abs_tol=2 * atol
                )


@pytest.mark.slow
def test_the_retriever_finds_with_it_what_it_finds_with_the_exact_kind(
    fresh_cache, encoder, okvqa_sample
):
    some = [p for p in okvqa_sample.corpus.values() if p.extra["aspect"] != "gloss"][:24]
    compare(Remembering(encoder), Corpus(some), candidates=20)


@pytest.mark.slow
def test_the_retriever_finds_with_it_what_it_finds_with_the_exact_kind_in_a_large_corpus(
    fresh_cache, encoder, okvqa_sample
):
    compare(Remembering(encoder), Corpus(list(okvqa_sample.corpus.values())[::4]))
