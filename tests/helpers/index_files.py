"""What an index's files say, read with json and numpy alone, and MaxSim by its definition."""

import json
import math

import numpy as np

from ravqa.indexes.compressed.codec import SCALE_UNIT

KINDS = [
    ("exact", "float16"),
    ("exact", "float32"),
    ("exact", "int8"),
    ("compressed", "9bit"),
    ("compressed", "4bit"),
    ("compressed", "float16"),
]


def kind_of(name):
    from ravqa.indexes import INDEXES

    return INDEXES.get(name)


def build(path, passages, *, kind="exact", ids=None, dim=None, fingerprint="", **options):
    """An index of arrays, named p0, p1, ... unless told otherwise."""
    index = kind_of(kind)
    return index.build(
        names(len(passages)) if ids is None else ids,
        passages,
        path,
        dim=dim or passages[0].shape[1],
        config=index.Config(**options),
        fingerprint=fingerprint,
    )


def names(n):
    return [f"p{i}" for i in range(n)]


def units(rng, count, dim):
    """Random unit vectors, float32 [count, dim]."""
    return normalised(rng.normal(size=(count, dim)))


def normalised(rows):
    return (rows / np.linalg.norm(rows, axis=-1, keepdims=True)).astype(np.float32)


class Topics:
    """Passages about a few topics each, and queries that ask for the vectors of some of them."""

    def __init__(self, seed, dim=64, topics=200):
        self.rng = np.random.default_rng(seed)
        self.centers = units(self.rng, topics, dim)

    def passages(self, count, longest=24):
        out = []
        for _ in range(count):
            mine = self.rng.choice(len(self.centers), 5)
            out.append(
                self._near(self.centers[self.rng.choice(mine, self.rng.integers(3, longest))])
            )
        return out

    def queries(self, passages, count, vectors=48):
        out = []
        for _ in range(count):
            some = np.concatenate([passages[i] for i in self.rng.choice(len(passages), 6)])
            out.append(self._near(some[self.rng.choice(len(some), vectors)]))
        return out

    def _near(self, rows):
        dim = rows.shape[1]
        return normalised(rows + 0.5 / math.sqrt(dim) * self.rng.normal(size=rows.shape))


def maxsim(query, passage):
    """The definition, in float64: sum over query vectors of the best product; zero rows out."""
    if len(passage) == 0:
        return -math.inf
    rows = query[(query != 0).any(axis=1)].astype(np.float64)
    return float((rows @ passage.astype(np.float64).T).max(axis=1).sum())


def ranking(query, passages, k=None):
    """(id, score) of all passages that have vectors, best first, ties in the mapping's order.

    Args:
        passages: arrays by id.
    """
    scores = {i: maxsim(query, p) for i, p in passages.items() if len(p)}
    return sorted(scores.items(), key=lambda pair: -pair[1])[:k]


def assert_ranking(hits, expected, k, atol):
    """The k best of `expected` (all, best first); near ties may change places."""
    scores = dict(expected)
    assert len(hits) == len({i for i, _ in hits}) == min(k, len(expected))
    got = [score for _, score in hits]
    assert got == sorted(got, reverse=True)
    np.testing.assert_allclose(got, [scores[i] for i, _ in hits], rtol=0, atol=atol)
    np.testing.assert_allclose(got, [s for _, s in expected[: len(hits)]], rtol=0, atol=atol)


def overlap(found, expected):
    """The mean share of the expected rankings' passages that were found."""
    shares = [
        len({i for i, _ in a} & {i for i, _ in b}) / len(b)
        for a, b in zip(found, expected, strict=True)
    ]
    return float(np.mean(shares))


def manifest(path):
    return json.loads((path / "manifest.json").read_text(encoding="utf-8"))["index"]


def files(path):
    """Paths of all files in the folder, but the lock."""
    return {str(p.relative_to(path)) for p in path.rglob("*") if p.is_file()} - {"lock"}


def owned(path):
    """The files that are the index: the manifest and what it names."""
    return {"manifest.json", *manifest(path)["files"]}


def stored(path):
    """The vectors that the index holds, by id, in its order: float32 [vectors, dim] each."""
    state = manifest(path)
    out = {}
    for segment in state["segments"]:
        folder = path / segment["name"]
        ids = json.loads((folder / "ids.json").read_text(encoding="utf-8"))
        dead = np.zeros(len(ids), bool)
        if segment["gone"]:
            dead = np.unpackbits(np.load(path / segment["gone"]))[: len(ids)].astype(bool)
        read = _exact if state["kind"] == "exact" else _compressed
        arrays = read(path, folder, state["settings"])
        for passage_id, gone, array in zip(ids, dead, arrays, strict=True):
            if not gone:
                assert passage_id not in out
                out[passage_id] = array
    return out


def _exact(path, folder, settings):
    lengths = np.load(folder / "lengths.npy")
    vectors = np.load(folder / "vectors.npy").astype(np.float32)
    if settings["storage"] == "int8":
        vectors *= np.load(folder / "scales.npy")[:, None]
    out, at = [None] * len(lengths), 0
    for i in sorted(range(len(lengths)), key=lambda i: lengths[i]):  # the shortest come first
        out[i] = vectors[at : at + lengths[i]]
        at += lengths[i]
    return out


def _compressed(path, folder, settings):
    read = {file.stem: np.load(file) for file in folder.glob("*.npy") if "gone-" not in file.name}
    codec = path / settings["shared"]
    rotation, centers = (
        np.load(codec / "rotation.npy"),
        np.load(codec / "centers.npy").astype(np.float32),
    )
    ends = np.cumsum(read["lengths"])
    out = []
    for i, end in enumerate(ends):
        begin = end - read["lengths"][i]
        if settings["storage"] == "float16":
            out.append(read["vectors"][begin:end].astype(np.float32))
            continue
        runs = slice(read["run_offsets"][i], read["run_offsets"][i + 1])
        codes = np.zeros(end - begin, np.int64)
        for centroid, start in zip(read["centroids"][runs], read["run_starts"][runs], strict=True):
            codes[start:] = centroid  # until the next run overwrites the rest
        rest, fine = read["residuals"][begin:end], read["fine"][begin:end]
        planes = np.hstack([(fine >> bit) & 1 for bit in range(8)])[:, : centers.shape[1]]
        if settings["storage"] == "4bit":
            rest = np.hstack([rest & 15, rest >> 4]).astype(np.float32) - 7.5
            rest[:, : planes.shape[1]] += planes / 2 - 0.25
        else:
            rest = rest.astype(np.float32) + planes / 2
        steps = read["scales"][begin:end].astype(np.float32) * SCALE_UNIT
        out.append((centers[codes] + steps[:, None] * rest) @ rotation.T)
    return out
