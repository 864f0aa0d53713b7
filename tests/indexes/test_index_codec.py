"""The codec's numbers against their definitions, written out in numpy, and tables by hand."""

from types import SimpleNamespace

import numpy as np
import pytest
from index_files import normalised, units

from ravqa.indexes.compressed import codec as code
from ravqa.indexes.compressed import index as search
from ravqa.indexes.compressed.codec import SCALE_UNIT, Codec, Coded, decode
from ravqa.indexes.compressed.index import CompressedIndex
from ravqa.indexes.segmented.index import top

DIM = 40  # two panels of 16 components and a part of one


def alike(count, dim=DIM, seed=0):
    """Unit vectors that have much in common, so that their second moments matter."""
    rng = np.random.default_rng(seed)
    return normalised(units(rng, count, dim) + 0.5 * units(rng, 1, dim))


def moments(rows):
    """Of vectors, with a tenth of their mean square added to each component's."""
    found = rows.T.astype(np.float64) @ rows / len(rows)
    return found + 0.1 * np.trace(found) / len(found) * np.eye(len(found))


# -- sizes, by hand


@pytest.mark.parametrize(
    ("vectors", "expected"),
    [
        (0, 1),
        (1, 1),
        (7, 1),
        (8, 2),
        (100, 16),  # a quarter of them is less than 8 x 10
        (10_000, 512),  # 800
        (16_384, 1024),  # 8 x 128
        (1_000_000, 4096),  # 8,000
        (67_108_864, 65_536),
        (10**9, 65_536),
    ],
)
def test_the_number_of_centroids_is_the_power_of_two_below_its_rule(vectors, expected):
    assert code.default_centroids(vectors) == expected
    assert Codec.sample_size(vectors, None) == min(vectors, 40 * expected)
    assert Codec.sample_size(vectors, 3) == min(vectors, 120)


def test_further_bits_take_their_bytes():
    widths = {bits: [code.fine_width(dim, bits) for dim in (7, 64, 100, 128)] for bits in (9, 8, 4)}
    assert widths == {9: [1, 8, 13, 16], 8: [0, 0, 0, 0], 4: [0, 3, 4, 6]}


def test_planes_hold_bit_k_of_byte_b_for_component_k_times_the_width_plus_b():
    bits = np.random.default_rng(0).integers(0, 2, (5, 19)).astype(np.uint8)
    packed = code._planes(bits)
    assert packed.shape == (5, 3)
    assert packed.dtype == np.uint8
    for row, plane in zip(bits, packed, strict=True):
        for c in range(24):
            assert (plane[c % 3] >> (c // 3)) & 1 == (row[c] if c < 19 else 0)


@pytest.mark.parametrize(
    ("lengths", "size", "expected"),
    [
        ([], 5, []),
        ([2, 3, 1], 5, [(0, 2), (2, 3)]),
        ([2, 3, 0, 1], 5, [(0, 3), (3, 4)]),
        ([9, 0, 9], 5, [(0, 1), (1, 2), (2, 3)]),
        ([1, 1, 1, 1], 2, [(0, 2), (2, 4)]),
        ([0, 0], 1, [(0, 2)]),
    ],
)
def test_blocks_hold_as_many_passages_as_fit(lengths, size, expected):
    assert list(code.blocks(np.array(lengths, np.int64), size)) == expected


@pytest.mark.parametrize(
    ("lanes", "expected"), [(1, 1), (64, 64), (65, 32), (128, 32), (129, 64), (320, 64)]
)
def test_a_long_querys_sample_is_spread_evenly_and_comes_first(lanes, expected):
    assert search._sampled(lanes) == expected
    order = search._sample_first(lanes)
    assert sorted(order) == list(range(lanes))
    assert order[:expected].tolist() == [i * lanes // expected for i in range(expected)]
    assert order[expected:].tolist() == sorted(order[expected:])


@pytest.mark.parametrize(
    ("passages", "vectors", "expected"),
    [
        (10_000, 32, 1400),
        (10_000, 64, 1400),
        (10_000, 65, 1500),
        (10_000, 320, 1500),
        (2500, 320, 750),
        (160_000, 320, 12_000),  # 15 x 400 x the fourth root of 16
        (0, 10, 0),
    ],
)
def test_candidates_grow_with_the_root_of_the_corpus(passages, vectors, expected):
    assert search.default_candidates(passages, vectors) == expected


def test_measuring_stops_when_no_other_value_can_be_among_the_greatest():
    rng = np.random.default_rng(0)
    guesses = rng.normal(size=400).astype(np.float32)
    values = guesses + 5 + rng.normal(size=400).astype(np.float32) * np.float32(0.1)
    asked = []

    def measure(places):
        asked.append(len(places))
        return values[places]

    for k, slack in ((1, 3), (10, 3), (10, 9), (10, 1e6), (400, 0), (500, 0)):
        asked.clear()
        places, found = search._until(guesses, measure, k, slack, (7, 16))
        assert len(set(places)) == len(places) == sum(asked)
        np.testing.assert_array_equal(found, values[places])
        assert asked[0] == min(k + 7, 400)
        assert set(asked[1:-1]) <= {16}
        assert set(np.argsort(-values)[:k]) <= set(places)
        for done in [*np.cumsum(asked)[:-1], len(places)]:  # it stops at the first chance
            order = np.argsort(-guesses, kind="stable")
            gaps = values[order[:done]] - guesses[order[:done]]
            least = np.sort(values[order[:done]])[::-1][k - 1 : k]
            next_best = guesses[order[done : done + 1]] + gaps.mean() + slack * gaps.std()
            assert (len(next_best) == 0 or next_best < least) == (done == len(places))
    assert search._until(guesses[:0], measure, 3, 1, (7, 16))[1].tolist() == []


def test_guesses_are_made_anew_by_what_was_measured():
    rng = np.random.default_rng(1)
    parts = rng.normal(size=(400, 3)).astype(np.float32)
    parts[:, 2] = 0.5  # says nothing
    values = parts @ np.array([2, -1, 0], np.float32) + np.float32(7)
    asked = []

    def measure(places):
        asked.append(places)
        return values[places]

    # By these weights the greatest values come last; by the right ones they come next.
    places, found = search._until(-values, measure, 5, 1.0, (15, 10), parts)
    np.testing.assert_array_equal(found, values[places])
    np.testing.assert_array_equal(places, np.concatenate(asked))
    assert [len(some) for some in asked] == [20, 10]
    assert set(asked[0]) == set(np.argsort(values)[:20])
    assert set(asked[1]) == set(np.argsort(-values)[:10])
    same = np.ones((40, 2), np.float32)
    assert len(search._until(same[:, 0], lambda some: same[some, 0], 3, 1.0, (2, 2), same)[0]) == 40
    np.testing.assert_allclose(search._weights(parts[:9], values[:9]), [2, -1, 0], atol=1e-5)


def test_the_best_are_found_and_kept_in_order():
    rng = np.random.default_rng(0)
    for count in (0, 1, 5, 30):
        values = rng.integers(0, 9, 30)[:count].astype(np.float32)
        for k in (1, 3, 30, 40):
            found = search._best(values, k)
            assert list(found) == sorted(found)
            assert sorted(values[found]) == sorted(values)[max(0, count - k) :]
            values[: count // 4] = -np.inf
            expected = sorted(range(count), key=lambda i: -values[i])
            expected = [i for i in expected if values[i] > -np.inf][:k]
            assert top(values, k).tolist() == expected


# -- rounding


def test_feedback_is_the_best_answer_of_earlier_components_to_an_error():
    rows = alike(300)
    found = code._feedback(rows)
    assert found.dtype == np.float32
    square = moments(rows)
    for h in range(DIM):
        others = slice(None, h)
        # The errors of earlier components that make the mean square error of products least.
        answer = -np.linalg.solve(square[others, others], square[others, h])
        np.testing.assert_allclose(found[h, others], answer, rtol=0, atol=1e-4)
        least = square[h, h] + square[h, others] @ answer
        np.testing.assert_allclose(found[h, h], least, rtol=1e-4)
        assert not found[h, h + 1 :].any()
    alone = code._feedback(np.zeros((0, 4), np.float32))
    np.testing.assert_allclose(alone, np.eye(4) * 1.1 / 4, rtol=0, atol=1e-6)


def rounded(values, feedback, limits, units, offset):
    """One component of one vector after the other, from the last to the first."""
    out = np.zeros(values.shape)
    for row, kept in zip(values.astype(np.float64), out, strict=True):
        left = row.copy()
        for h in reversed(range(len(left))):
            nearest = (np.rint(left[h] / units[h] - offset) + offset) * units[h]
            kept[h] = min(max(nearest, -limits[h]), limits[h])
            left[:h] -= feedback[h, :h] * (left[h] - kept[h])
    return out


@pytest.mark.parametrize(("rows", "compiled"), [(1, False), (7, False), (2048, False), (1, True)])
@pytest.mark.parametrize("fine", [False, True])
def test_rounding_passes_errors_on_to_the_components_before(monkeypatch, rows, compiled, fine):
    monkeypatch.setattr(code, "_ROWS", rows)
    if compiled:
        kernels = pytest.importorskip("ravqa.indexes.compressed.kernels")
        assert kernels._TOGETHER < 100  # so that the last ones are fewer
    feedback = code._feedback(alike(300))
    values = np.random.default_rng(1).normal(size=(100, DIM)).astype(np.float32) * 5
    limits = np.full(DIM, 7.5, np.float32)
    units_ = np.where(np.arange(DIM) < 11, 0.5, 1).astype(np.float32)
    options = (units_, 0.5) if fine else ()
    found, costs = code._round(values, feedback, limits, *options, compiled=compiled)
    grid = units_ if fine else np.ones(DIM)
    expected = rounded(values, feedback, limits, grid, 0.5 if fine else 0)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)
    errors = values - expected
    square = np.einsum("nd,de,ne->n", errors, moments(alike(300)), errors)
    np.testing.assert_allclose(costs, square, rtol=1e-3)
    assert found.dtype == costs.dtype == np.float32


@pytest.fixture(scope="module")
def trained():
    vectors = alike(600)
    return vectors, Codec.train(vectors, 600, 12, 3, "cpu")


def test_centroids_are_the_means_of_the_vectors_nearest_to_their_directions(trained):
    vectors, made = trained
    np.testing.assert_allclose(made.rotation @ made.rotation.T, np.eye(DIM), rtol=0, atol=1e-5)
    turned = vectors @ made.rotation
    directions = code.kmeans(turned, 12, 3, "cpu")
    codes = np.argmax(turned @ directions.T, axis=1)
    assert set(codes) == set(range(12))
    residuals = []
    for c in range(12):
        own = turned[codes == c]
        np.testing.assert_allclose(made.centers[c], own.mean(0), rtol=0, atol=1e-3)
        rest = own - made.centers[c]
        assert made.spread[c] == pytest.approx(np.sqrt((rest**2).mean()), rel=1e-4)
        residuals.append((rest**2).sum(1))
    assert made.fit == pytest.approx(1 - np.concatenate(residuals).mean() / 2, abs=1e-5)
    assert made.trained_on == 600
    assert np.array_equal(made.centers, made.centers.astype(np.float16))
    np.testing.assert_allclose(made.middle, made.centers.mean(0), rtol=0, atol=1e-6)
    np.testing.assert_allclose(made.feedback, code._feedback(turned), rtol=0, atol=1e-6)
    other = Codec.train(vectors, 600, 12, 4, "cpu")
    assert not np.allclose(other.rotation, made.rotation)


def test_a_codec_of_few_vectors_or_none():
    few = Codec.train(alike(3), 3, 12, 0, "cpu")
    assert len(few.centers) == 3
    none = Codec.train(np.zeros((0, 9), np.float32), 0, None, 0, "cpu")
    np.testing.assert_allclose(none.centers, np.full((1, 9), 1 / 3), rtol=0, atol=1e-3)
    assert (none.fit, none.trained_on, none.spread.tolist()) == (1.0, 0, [0.0])


def test_a_centroid_without_vectors_keeps_its_direction():
    directions = np.eye(4, dtype=np.float32)
    rows = normalised(np.array([[9, 1, 0, 0], [9, 0, 1, 0], [0, 0, 9, 1]], np.float32))
    spread, feedback = np.zeros(4, np.float32), np.eye(4, dtype=np.float32)
    made = Codec(directions, directions, spread, feedback, 1.0, 3)._with_means(rows, "cpu")
    expected = [rows[:2].mean(0), directions[1], rows[2], directions[3]]
    np.testing.assert_allclose(made.centers, expected, rtol=0, atol=1e-3)
    assert made.spread[1] == made.spread[3] == 0
    assert made.spread[0] > 0.03


def naive(made, vectors, bits):
    """Codes, steps and stored vectors, rotated; by the description of the stored form."""
    turned = vectors @ made.rotation
    lengths = np.linalg.norm(made.centers, axis=1, keepdims=True)
    codes = np.argmax(turned @ (made.centers / lengths).T, axis=1)
    rest = turned - made.centers[codes]
    widest = np.abs(rest).max(1)
    if bits != 4:
        steps = np.ceil(widest / 127 / SCALE_UNIT) * SCALE_UNIT
        finest = 1 if bits == 8 else 2
        limits = np.full(DIM, 127.0 * finest)
        grid = rest / steps[:, None] * finest
        kept = rounded(grid, made.feedback, limits, np.ones(DIM), 0) / finest
        return codes, steps, made.centers[codes] + kept * steps[:, None]
    finer = 8 * (3 * DIM // 64)
    units_ = np.where(np.arange(DIM) < finer, 0.5, 1)
    limits = np.where(np.arange(DIM) < finer, 7.75, 7.5)
    best = []
    for clip in (2.5, 2.8, 3.1):
        wanted = np.minimum(widest, clip * np.sqrt((rest**2).mean(1))) / 7.5
        steps = np.rint(wanted / SCALE_UNIT) * SCALE_UNIT
        kept = rounded(rest / steps[:, None], made.feedback, limits, units_, 0.5)
        errors = rest - kept * steps[:, None]
        costs = np.einsum("nd,de,ne->n", errors, moments(alike(600) @ made.rotation), errors)
        best.append((costs, steps, made.centers[codes] + kept * steps[:, None]))
    chosen = np.argmin([costs for costs, _, _ in best], axis=0)
    rows = np.arange(len(vectors))
    steps, kept = (np.stack([b[i] for b in best])[chosen, rows] for i in (1, 2))
    return codes, steps, kept


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("bits", [4, 8, 9])
def test_vectors_are_stored_as_described(trained, bits, compiled):
    if compiled:
        pytest.importorskip("numba")
    vectors, made = trained[0][:200], trained[1]
    coded = made.encode(vectors, bits, "cpu", compiled)
    codes, steps, kept = naive(made, vectors, bits)
    assert np.array_equal(coded.codes, codes)
    rest = vectors @ made.rotation - made.centers[codes]
    assert coded.rest == pytest.approx((rest**2).sum(), rel=1e-5)
    found = decode(made.centers, coded)
    assert found.dtype == np.float32
    # Sums in another order move a few values across the middle between two steps.
    alike_ = np.abs(found - kept).max(1) < 1e-4
    assert alike_.mean() > 0.97
    np.testing.assert_allclose((coded.scales * SCALE_UNIT)[alike_], steps[alike_], rtol=1e-3)
    assert coded.codes.dtype == coded.scales.dtype == np.uint16
    assert coded.residuals.dtype == (np.uint8 if bits == 4 else np.int8)
    assert coded.residuals.shape == (200, DIM // 2 if bits == 4 else DIM)
    assert coded.fine.shape == (200, code.fine_width(DIM, bits))


def test_decoding_by_hand():
    centers = np.array([[0, 0, 0, 0], [1, 2, 3, 4]], np.float32)
    scales = np.array([0, 2**17 // 4], np.uint16)  # steps of 0 and 1/4
    codes, none = np.array([0, 1], np.uint16), np.zeros((2, 0), np.uint8)
    eight = np.array([[9, 9, 9, 9], [4, -4, 8, 0]], np.int8)
    found = decode(centers, Coded(codes, eight, none, scales))
    assert found.tolist() == [[0, 0, 0, 0], [2, 1, 5, 4]]
    fine = np.array([[0], [0b0101]], np.uint8)  # half a step more for components 0 and 2
    found = decode(centers, Coded(codes, eight, fine, scales))
    assert found[1].tolist() == [2.125, 1, 5.125, 4]
    # Two components of 4 bits a byte: 0 and 2 in the low halves, 1 and 3 in byte 1 ...
    four = np.array([[0, 0], [0xF0 | 8, 0x70 | 7]], np.uint8)
    found = decode(centers, Coded(codes, four, none, scales))
    assert found[1].tolist() == [1 + 0.125, 2 - 0.125, 3 + 7.5 / 4, 4 - 0.125]
    found = decode(centers, Coded(codes, four, fine, scales))
    less = 0.0625
    expected = [1.125 + less, 1.875 - less, 3 + 7.5 / 4 + less, 3.875 - less]
    assert found[1].tolist() == expected


def test_a_vector_that_is_its_centroid_has_the_least_step():
    one = np.eye(8, dtype=np.float32)[:1]
    made = Codec(np.eye(8, dtype=np.float32), one, np.zeros(1, np.float32), np.eye(8), 1.0, 1)
    for bits in (4, 8, 9):
        coded = made.encode(one, bits, "cpu")
        assert coded.scales.tolist() == [1]
        np.testing.assert_allclose(decode(made.centers, coded), one, rtol=0, atol=1e-4)
        assert coded.rest == 0


# -- the nearest centroid among many


@pytest.mark.parametrize("cells", [1, 16])
def test_the_nearest_of_many_centroids_is_searched_in_near_cells(monkeypatch, cells):
    monkeypatch.setattr(code, "_LARGE", 64)
    monkeypatch.setattr(code, "_NEAR_CELLS", cells)
    centers = units(np.random.default_rng(0), 64, 8) * np.float32(0.9)
    made = Codec(np.eye(8), centers, np.zeros(64), np.eye(8), 1.0, 64)
    rows = units(np.random.default_rng(1), 500, 8)
    found = made.finder(rows, "cpu")
    assert found.dtype == np.uint16
    best = np.argmax(rows @ centers.T, axis=1)
    if cells == 16:  # all eight of them
        assert np.array_equal(found, best)
    else:
        assert 0.4 < (found == best).mean() < 1
    lost = (rows * (centers[best] - centers[found])).sum(1)
    assert lost.min() >= -1e-6
    assert lost.mean() < 0.1
    near = made.finder.near
    assert made.finder.cells.shape == (8, 8)
    assert [len(n) for n in near] == [64] * 8 if cells == 16 else sum(map(len, near)) == 64


def test_products_with_centres_are_made_some_points_at_a_time():
    rng = np.random.default_rng(0)
    points, centers = units(rng, 150, 2), units(rng, 2**17, 2)  # 4 points at a time
    found = code._nearest(points, centers, "cpu")
    assert found.dtype == np.int64
    best = (points @ centers.T).max(1)
    np.testing.assert_allclose((points * centers[found]).sum(1), best, rtol=0, atol=1e-6)


@pytest.mark.parametrize("compiled", [False, True])
def test_kmeans_is_lloyds_method(monkeypatch, compiled):
    monkeypatch.setattr(code, "_BLOCK", 13)
    if compiled:
        pytest.importorskip("numba")
    points = alike(60, 5)
    rng = np.random.default_rng(8)
    centers = points[rng.choice(60, 7, replace=False)]
    for _ in range(3):
        owner = np.argmax(points @ centers.T, axis=1)
        sums = np.stack([points[owner == c].sum(0) for c in range(7)])
        empty = [c for c in range(7) if not (owner == c).any()]
        sums[empty] = points[rng.choice(60, len(empty))]
        centers = normalised(sums)
    found = code.kmeans(points, 7, 8, "cpu", rounds=3, compiled=compiled)
    np.testing.assert_allclose(found, centers, rtol=0, atol=1e-5)
    # Of equal points all but one centre is left without any.
    same = np.repeat(points[:1], 9, axis=0)
    np.testing.assert_allclose(code.kmeans(same, 4, 0, "cpu"), same[:4], rtol=0, atol=1e-6)


def test_centres_chosen_by_near_cells_fit_almost_as_well(monkeypatch):
    points = units(np.random.default_rng(0), 2000, 8)
    fits = []
    for large in (10**6, 64):
        monkeypatch.setattr(code, "_LARGE", large)
        monkeypatch.setattr(code, "_NEAR_CELLS", 6)
        centers = code.kmeans(points, 100, 0, "cpu")
        np.testing.assert_allclose(np.linalg.norm(centers, axis=1), 1, rtol=0, atol=1e-5)
        fits.append((points @ centers.T).max(1).mean())
    begun = points[np.random.default_rng(0).choice(2000, 100, replace=False)]
    at_first = (points @ begun.T).max(1).mean()
    assert fits[1] - at_first > 0.9 * (fits[0] - at_first) > 0.02


def test_blocks_are_computed_in_order_and_a_few_at_a_time():
    kernels = pytest.importorskip("ravqa.indexes.compressed.kernels")
    taken = []
    found = code.each(lambda n: n * n, (taken.append(n) or n for n in range(50)), compiled=True)
    assert next(found) == 0
    assert len(taken) == kernels.threads() + 1
    assert [*found] == [n * n for n in range(1, 50)]
    failing = code.each(lambda n: 1 // (3 - n), range(9), compiled=True)
    with pytest.raises(ZeroDivisionError):
        list(failing)


# -- files, and when centroids are chosen anew


def test_a_saved_codec_is_the_same(trained, tmp_path):
    made = trained[1]
    made.save(tmp_path)
    again = Codec.load(tmp_path, DIM)
    for name in ("rotation", "centers", "spread", "feedback", "fit", "trained_on"):
        assert np.array_equal(getattr(again, name), getattr(made, name))
        assert getattr(again, name).__class__ is getattr(made, name).__class__
    assert again.centers.dtype == np.float32
    with pytest.raises(ValueError, match="does not contain the arrays of a codec"):
        Codec.load(tmp_path, DIM + 1)
    arrays = {f.stem: np.load(f) for f in tmp_path.glob("*.npy")}
    for name, array in arrays.items():
        for bad in (array.astype(np.float64), array[1:], array[None]):
            if name == "centers" and bad.shape == array[1:].shape:
                continue  # then the spread does not fit, which is tried too
            np.save(tmp_path / f"{name}.npy", bad)
            with pytest.raises(ValueError, match="does not contain the arrays of a codec"):
                Codec.load(tmp_path, DIM)
        np.save(tmp_path / f"{name}.npy", array)
    for text in ('{"layout": 2}', '{"layout": 2, "fit": 1.0, "trained_on": 3, "more": 2}'):
        (tmp_path / "codec.json").write_text(text, encoding="utf-8")
        with pytest.raises(ValueError, match="does not contain the arrays of a codec"):
            Codec.load(tmp_path, DIM)
    for text in ('{"fit": 1.0, "trained_on": 3}', '{"layout": 3, "fit": 1.0, "trained_on": 3}'):
        (tmp_path / "codec.json").write_text(text, encoding="utf-8")
        with pytest.raises(ValueError, match="another version of ravqa wrote it"):
            Codec.load(tmp_path, DIM)


@pytest.mark.parametrize("bits", [4, 9])
def test_the_mean_residual_of_a_passage_is_that_of_its_vectors(trained, bits):
    vectors, made = trained
    lengths = np.array([0, 3, 1, 0, 40, 556, 0])
    codes = made.encode(vectors, bits, "cpu").codes
    means, scales = made.mean_residuals(vectors, codes, lengths)
    assert (means.dtype, means.shape, scales.dtype) == (np.int8, (7, DIM), np.uint16)
    rest = vectors @ made.rotation - made.centers[codes]
    ends = np.cumsum(lengths)
    for row, scale, end, n in zip(means, scales, ends, lengths, strict=True):
        mean = rest[end - n : end].mean(0) if n else np.zeros(DIM)
        step = scale * SCALE_UNIT
        assert np.abs(row * step - mean).max() <= step * 0.51
        assert step < np.abs(mean).max() / 126 + 2 * SCALE_UNIT
    nothing, _ = made.mean_residuals(vectors[:0], codes[:0], lengths[:1])
    assert not nothing.any()


@pytest.mark.parametrize(
    ("trained_on", "segments", "expected"),
    [
        (100, [(400, 0.8)], False),  # four times as many are allowed
        (100, [(401, 0.8)], True),
        (100, [(100, 0.8), (25, 0.70)], False),  # a quarter may be strange
        (100, [(100, 0.8), (26, 0.70)], True),
        (100, [(100, 0.8), (90, 0.76)], False),  # not worse by more than 0.05
        (100, [(100, 0.8), (90, None)], False),
        (0, [(4, 1.0)], False),
        (0, [(5, 1.0)], True),
    ],
)
def test_centroids_are_outgrown_by_many_vectors_or_by_strange_ones(trained_on, segments, expected):
    manifest = SimpleNamespace(
        segments=[SimpleNamespace(vectors=n, fit=fit) for n, fit in segments],
        vectors=sum(n for n, _ in segments),
    )
    state = SimpleNamespace(
        shared=SimpleNamespace(trained_on=trained_on, fit=0.8), manifest=manifest
    )
    for retrain in (True, False):
        index = SimpleNamespace(config=CompressedIndex.Config(retrain=retrain))
        assert CompressedIndex._wants_compact(index, state) == (expected and retrain)
