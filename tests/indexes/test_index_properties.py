"""Any sequence of changes and searches equals a dictionary with brute force."""

import itertools
import tempfile
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from index_files import assert_ranking, build, files, kind_of, maxsim, owned, ranking, stored

DIM = 16
VECTORS = 4  # of a passage, at most

# Unit vectors of halves and of axes: exact in float16, and their products with queries of quarters
# are exact whatever the order of summation, so that scores must be equal and ties are real.
AXES = [sign * row for row in np.eye(DIM) for sign in (-1, 1)]
HALVES = [
    np.roll(np.array([*signs, *[0] * (DIM - 4)]) / 2, 4 * shift)
    for signs in itertools.product((-1, 1), repeat=4)
    for shift in range(3)
]
UNITS = np.array([*AXES, *HALVES], dtype=np.float32)

arrays = st.lists(st.integers(0, len(UNITS) - 1), max_size=VECTORS).map(
    lambda rows: UNITS[np.array(rows, dtype=int)]
)
queries = (
    st.lists(st.lists(st.integers(-8, 8), min_size=DIM, max_size=DIM), min_size=1, max_size=4)
    .map(lambda rows: np.array(rows, dtype=np.float32) / 4)
    .filter(np.any)
)
passage_ids = st.integers(0, 15).map("p{}".format)
corpora = st.dictionaries(passage_ids, arrays, max_size=8)
subsets = st.lists(passage_ids, max_size=12)


class Living(RuleBasedStateMachine):
    """An index, a second handle on it, and the dictionaries that they should equal."""

    kind: str
    storage: str

    @initialize(passages=corpora)
    def build(self, passages):
        self.folder = tempfile.TemporaryDirectory(prefix="ravqa-index-")
        self.fsync = mock.patch("os.fsync")  # the disk itself is not tested here
        self.fsync.start()
        self.path = Path(self.folder.name) / "index"
        self.index = build(
            self.path,
            list(passages.values()),
            ids=list(passages),
            dim=DIM,
            kind=self.kind,
            storage=self.storage,
        )
        self.reader = self.open()
        self.alive = dict(passages)
        self.deleted = set()
        self.look()

    def open(self):
        return kind_of(self.kind)(self.path)

    def look(self):
        """Take down what a reader that looks now should see."""
        self.seen = dict(self.alive), stored(self.path)

    @rule(passages=corpora)
    def add(self, passages):
        new = {i: p for i, p in passages.items() if i not in self.alive}
        if len(new) < len(passages):
            with pytest.raises(ValueError, match="is already in the index"):
                self.index.add(list(passages), list(passages.values()))
        self.index.add(list(new), list(new.values()))
        self.alive |= new
        self.deleted -= new.keys()

    @rule(ids=subsets)
    def delete(self, ids):
        known = [i for i in ids if i in self.alive]
        if len(known) < len(ids):
            with pytest.raises(KeyError):
                self.index.delete(ids)
        self.index.delete(known)
        for i in known:
            self.alive.pop(i, None)
        self.deleted |= set(known)

    @rule(passages=corpora)
    def update(self, passages):
        self.index.update(list(passages), list(passages.values()))
        for i in passages:
            self.alive.pop(i, None)  # it comes behind the others
        self.alive |= passages
        self.deleted -= passages.keys()

    @rule()
    def compact(self):
        self.index.compact()
        assert self.index.stats()["deleted"] == 0
        assert self.index.stats()["segments"] == (1 if self.alive else 0)

    @rule()
    def open_again(self):
        self.index = self.open()

    @rule()
    def refresh(self):
        self.reader.refresh()
        self.look()

    @rule(query=queries, k=st.integers(1, 20), allowed=st.none() | subsets)
    def search(self, query, k, allowed):
        self.compare(self.index, (self.alive, stored(self.path)), query, k, allowed)
        self.compare(self.reader, self.seen, query, k, allowed)

    def compare(self, index, passages, query, k, allowed):
        alive, held = passages
        [hits] = index.search([query], k, allowed_ids=allowed)
        if index is self.index:
            assert not self.deleted & {i for i, _ in hits}
        held = {i: p for i, p in held.items() if allowed is None or i in allowed}
        if self.storage in ("float16", "float32") and self.kind == "exact":
            alive = {i: p for i, p in alive.items() if allowed is None or i in allowed}
            assert hits == ranking(query, alive, k)
        # So few passages are all looked at: nothing may be missed.
        assert_ranking(hits, ranking(query, held), k, 1e-4)
        ids = list(held)
        [scores] = index.score([query], [ids])
        np.testing.assert_allclose(scores, [maxsim(query, held[i]) for i in ids], rtol=0, atol=1e-4)
        assert [score for _, score in hits] == pytest.approx(
            [scores[ids.index(i)] for i, _ in hits], abs=1e-5
        )

    @invariant()
    def holds_what_it_should(self):
        assert self.index.ids == list(self.alive)
        assert len(self.index) == len(self.alive)
        assert self.reader.ids == list(self.seen[0])
        held = stored(self.path)
        assert list(held) == list(self.alive)
        for passage_id, array in self.alive.items():
            assert held[passage_id].shape == array.shape
            # In any order: for each vector the nearest that is stored is its own; others' products
            # with it are at most a half.
            if len(array):
                nearest = (array @ held[passage_id].T).max(axis=1)
                assert nearest.min() > (0.6 if self.storage == "4bit" else 0.95)
        assert self.index.verify() == []
        assert files(self.path) == owned(self.path)

    def teardown(self):
        if hasattr(self, "folder"):
            self.fsync.stop()
            self.folder.cleanup()


def machine(kind, storage, examples):
    living = type("Living", (Living,), {"kind": kind, "storage": storage})
    living.TestCase.settings = settings(max_examples=examples, stateful_step_count=12)
    return living.TestCase


TestExactFloat16 = machine("exact", "float16", 10)
TestExactFloat32 = machine("exact", "float32", 2)
TestExactInt8 = machine("exact", "int8", 5)
TestCompressed9Bit = machine("compressed", "9bit", 8)
TestCompressed4Bit = machine("compressed", "4bit", 5)
TestCompressedFloat16 = machine("compressed", "float16", 2)
