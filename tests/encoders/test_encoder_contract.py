"""What every encoder's results are held to, their statistics, and the cache of image features."""

import copy
import hashlib
import io
from dataclasses import asdict

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import CLIPVisionConfig, CLIPVisionModel

from ravqa.core.errors import ContractError, DataError
from ravqa.encoders.base import (
    Encoded,
    Encoder,
    EncodingStats,
    checked_vectors,
    without_zero_rows,
)
from ravqa.encoders.features import FeatureCache, tower_fingerprint


class Three(Encoder):
    """An encoder of vectors of three numbers."""

    dim, fingerprint = 3, "three"

    def encode_document(self, texts, progress=None):
        return Encoded()

    def encode_query(self, queries):
        return Encoded()


def ones(*shape):
    return np.ones(shape, np.float32)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ([ones(2, 3)], "it returned 1 results from encoding for 2 items"),
        ([ones(2, 3)] * 3, "it returned 3 results from encoding for 2 items"),
        ([ones(2, 3), ones(2, 4)], r"arrays \[vectors, 3\] are expected, got \[2, 4\]"),
        ([ones(3), ones(2, 3)], r"arrays \[vectors, 3\] are expected, got \[3\]"),
        ([ones(2, 3), ones(1, 2, 3)], r"arrays \[vectors, 3\] are expected, got \[1, 2, 3\]"),
        ([[[1.0, 0.0, 0.0]], ones(2, 3)], r"arrays \[vectors, 3\] are expected, got list"),
        ([ones(2, 3), ones(2, 3) * np.nan], "a vector is not finite"),
        ([ones(2, 3) * np.inf, ones(2, 3)], "a vector is not finite"),
    ],
)
def test_what_an_encoder_may_not_give_is_said_with_its_name(arrays, message):
    with pytest.raises(ContractError, match=rf"^the encoder \S+\.Three breaks its .+: {message}$"):
        checked_vectors(Three(), arrays, 2)


def test_an_encoder_that_sees_images_must_encode_questions():
    with pytest.raises(ContractError) as error:
        Three().encode_question([])
    assert str(error.value) == (
        f"the encoder {__name__}.Three breaks its contract: it sees images and does not define "
        "`encode_question`"
    )


def test_what_an_encoder_gives_is_kept_with_its_statistics():
    given = Encoded([ones(2, 3), ones(0, 3)], truncated=1, tokens=9, neutralised=4)
    assert checked_vectors(Three(), given, 2) is given
    assert given.stats == EncodingStats(2, truncated=1, tokens=9, vectors=2, neutralised=4)
    counted = checked_vectors(Three(), [ones(2, 3), ones(1, 3)], 2)
    assert isinstance(counted, Encoded)
    assert counted.stats == EncodingStats(items=2, truncated=0, tokens=0, vectors=3)
    assert checked_vectors(Three(), [], 0).stats == EncodingStats()


def test_statistics_are_added_and_read_back():
    one, other = EncodingStats(1, 2, 3, 4, 5), EncodingStats(10, 20, 30, 40, 50)
    assert one + other == EncodingStats(11, 22, 33, 44, 55)
    assert EncodingStats.read(asdict(one)) == one
    assert EncodingStats.read(asdict(EncodingStats())) == EncodingStats(0, 0, 0, 0, 0)
    whole = asdict(one)
    assert whole.pop("neutralised") == 5  # older versions did not count them
    assert EncodingStats.read(whole) == EncodingStats(1, 2, 3, 4)
    spoilt = [{k: v for k, v in whole.items() if k != key} for key in whole]
    spoilt += [whole | {"more": 1}, whole | {"items": -1}, whole | {"items": "x"}, {}, [], None]
    for bad in spoilt:
        with pytest.raises(ValueError, match=r"."):
            EncodingStats.read(bad)
    with pytest.raises(ValueError, match=r"^not the statistics of an encoding$"):
        EncodingStats.read(whole | {"more": 1})


def test_rows_of_zeros_are_left_out():
    rows = np.array([[0, 0], [0, 1], [-1, 1], [0, 0]], np.float32)
    for output in ("float32", "float16"):
        made = without_zero_rows(rows, output)
        assert made.dtype == output
        assert made.tolist() == [[0, 1], [-1, 1]]


# -- image features


def picture(colour):
    buffer = io.BytesIO()
    Image.new("RGB", (4, 4), colour).save(buffer, "PNG")
    return buffer.getvalue()


RED, BLUE = picture("red"), picture("blue")


def features(seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(4, generator=generator), torch.randn(2, 4, generator=generator)


@pytest.mark.parametrize("output", ["float32", "float16"])
def test_features_are_kept_by_the_images_bytes_whatever_names_them(output, tmp_path, fresh_cache):
    cache = FeatureCache("a tower", output)
    (tmp_path / "red.png").write_bytes(RED)
    assert cache.get([RED, tmp_path / "red.png"]) == {}
    cache.put({tmp_path / "red.png": features(0), BLUE: features(1)})
    again = FeatureCache("a tower", output)
    found = again.get([RED, tmp_path / "red.png", picture("green"), BLUE])
    assert list(found) == [RED, tmp_path / "red.png", BLUE]
    for image, seed in zip(found, (0, 0, 1), strict=True):
        for part, expected in zip(found[image], features(seed), strict=True):
            assert part.dtype == torch.float32
            assert torch.equal(part, expected.to(getattr(torch, output)).float())
    names = {hashlib.sha256(data).hexdigest() for data in (RED, BLUE)}
    [folder] = (fresh_cache / "image-features").iterdir()
    files = {file.relative_to(folder).as_posix() for file in folder.rglob("*.npz")}
    assert files == {f"{name[:2]}/{name}.npz" for name in names}
    for file in folder.rglob("*.npz"):
        with np.load(file) as arrays:
            assert {arrays[key].dtype.name for key in ("pooled", "patches")} == {output}
    # Other towers, and other types, have folders of their own.
    other = "float16" if output == "float32" else "float32"
    for elsewhere in (FeatureCache("another", output), FeatureCache("a tower", other)):
        assert elsewhere.get([RED]) == {}
    with pytest.raises(DataError, match=r"gone\.png cannot be read"):
        cache.get([tmp_path / "gone.png"])


def tower(**options):
    torch.manual_seed(0)
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1}
    sizes |= {"num_attention_heads": 2, "image_size": 4, "patch_size": 2, **options}
    return CLIPVisionModel(CLIPVisionConfig(**sizes))


def test_a_towers_fingerprint_changes_with_all_that_changes_its_output_and_nothing_else():
    plain = tower()
    expected = tower_fingerprint(plain)
    assert tower_fingerprint(copy.deepcopy(plain)) == expected
    named = copy.deepcopy(plain)
    named.config.architectures, named.config.initializer_range = ["Another"], 0.5
    named.config.dtype, named.config._name_or_path = torch.float16, "elsewhere"
    assert tower_fingerprint(named) == expected
    others = [
        tower(layer_norm_eps=0.5),
        tower(hidden_act="gelu"),
        copy.deepcopy(plain).half(),
    ]
    for name in ("bias", "weight"):
        changed = copy.deepcopy(plain)
        getattr(changed.encoder.layers[0].mlp.fc1, name).data.view(-1)[-1] += 0.1
        others.append(changed)
    # The same numbers under other names are another tower.
    swapped = copy.deepcopy(plain)
    attention = swapped.encoder.layers[0].self_attn
    attention.q_proj, attention.k_proj = attention.k_proj, attention.q_proj
    others.append(swapped)
    found = {expected, *(tower_fingerprint(other) for other in others)}
    assert len(found) == 1 + len(others)
