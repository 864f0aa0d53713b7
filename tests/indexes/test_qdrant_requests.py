"""What the index asks of Qdrant, request by request, from a server and from the engine here."""

import re
from types import SimpleNamespace

import numpy as np
import pytest

from ravqa.core.errors import DamagedError, UserError
from ravqa.indexes import qdrant
from ravqa.indexes.qdrant import QdrantIndex

client = pytest.importorskip("qdrant_client", reason="pip install 'ravqa[qdrant]'")
pytest.importorskip("qdrant_edge", reason="pip install 'ravqa[qdrant]'")
from qdrant_client.http import exceptions  # noqa: E402

m = client.models
URL = "http://localhost:6333"
KEY = "a-key-of-some-length"


BY_NAME = {
    *("collection_exists", "delete_collection", "create_collection", "get_collection"),
    *("upsert", "delete", "retrieve", "count", "scroll", "query_points"),
}


@pytest.fixture(autouse=True)
def known_server(monkeypatch):
    monkeypatch.setattr(qdrant, "_met", {URL})
    monkeypatch.setattr(qdrant, "_WAITS", ())


class Client:
    """Keeps what it is asked, and answers what it was given for that."""

    def __init__(self, **answers):
        self.answers, self.asked = answers, []

    def __getattr__(self, method):
        def ask(**options):
            if method in BY_NAME:
                assert options.pop("collection_name").startswith("c")
            self.asked.append((method, options))
            answer = self.answers.get(method)
            if isinstance(answer, list):
                answer = answer.pop(0)
            if isinstance(answer, Exception):
                raise answer
            return answer

        return ask


def server(**answers):
    made = qdrant._Server(QdrantIndex.Config(url=URL), "c")
    made._client = Client(**answers)
    return made


def test_the_client_is_made_for_the_address_with_key_and_patience(monkeypatch):
    made = []
    monkeypatch.setattr(client, "QdrantClient", lambda **options: made.append(options))
    for key in (None, KEY):
        if key:
            monkeypatch.setenv("QDRANT_API_KEY", key)
        engine = qdrant._Server(QdrantIndex.Config(url=URL, timeout=7), "c")
        options = {"url": URL, "api_key": key, "timeout": 7, "check_compatibility": False}
        assert made.pop() == options
        assert engine.where == f"the collection c at {URL}"


@pytest.mark.parametrize("there", [True, False])
def test_a_collection_has_a_multivector_without_a_graph_and_a_mean(there):
    engine = server(collection_exists=there)
    engine.create(5, "float16", "0123456789ab")
    assert engine._collection == "c-0123456789ab"
    tokens = m.VectorParams(
        size=5,
        distance=m.Distance.DOT,
        datatype=m.Datatype.FLOAT16,
        multivector_config=m.MultiVectorConfig(comparator=m.MultiVectorComparator.MAX_SIM),
        hnsw_config=m.HnswConfigDiff(m=0),
        on_disk=True,
    )
    vectors = {"tokens": tokens, "mean": m.VectorParams(size=5, distance=m.Distance.DOT)}
    expected = [("collection_exists", {})] + [("delete_collection", {})] * there
    assert engine._client.asked == [*expected, ("create_collection", {"vectors_config": vectors})]


def test_points_are_put_removed_and_read_and_each_change_is_waited_for():
    records = SimpleNamespace(id=1, payload={"id": "a"}), SimpleNamespace(id="x", payload={})
    engine = server(retrieve=records, count=SimpleNamespace(count=7))
    array = np.array([[0.5, 1], [2, 3]], np.float32)
    engine.put([(qdrant._META, {"tokens": array}, {"n": 1}), (qdrant._point_id("a"), {}, {})])
    engine.remove(("p", "q"))
    assert engine.payloads(("p", "q")) == {"1": {"id": "a"}, "x": {}}
    assert len(engine) == 7
    points = [
        m.PointStruct(id=qdrant._META, vector={"tokens": [[0.5, 1], [2, 3]]}, payload={"n": 1}),
        m.PointStruct(id=qdrant._point_id("a"), vector={}, payload={}),
    ]
    assert engine._client.asked == [
        ("upsert", {"points": points, "wait": True}),
        ("delete", {"points_selector": ["p", "q"], "wait": True}),
        ("retrieve", {"ids": ["p", "q"]}),
        ("count", {"exact": True}),
    ]


def test_all_points_are_read_page_by_page():
    pages = [([SimpleNamespace(payload=1), SimpleNamespace(payload=2)], "next"), ([], None)]
    engine = server(scroll=pages)
    assert list(engine.scroll()) == [1, 2]
    assert engine._client.asked == [
        ("scroll", {"limit": 1000, "offset": None}),
        ("scroll", {"limit": 1000, "offset": "next"}),
    ]


@pytest.mark.parametrize("allowed", [None, ["x", "y"]])
@pytest.mark.parametrize("prefetch", [None, 30])
def test_a_search_asks_for_maxsim_after_the_means(prefetch, allowed):
    points = [SimpleNamespace(payload={"id": "a"}, score=2.5)]
    engine = server(query_points=SimpleNamespace(points=points))
    query = np.array([[1, 2], [3, 4]], np.float32)
    assert engine.search(query, 9, prefetch, allowed) == [({"id": "a"}, 2.5)]
    only = allowed and m.Filter(must=[m.HasIdCondition(has_id=["x", "y"])])
    first = m.Prefetch(query=[4, 6], using="mean", limit=30, filter=only) if prefetch else None
    assert engine._client.asked == [
        (
            "query_points",
            {
                "query": [[1, 2], [3, 4]],
                "using": "tokens",
                "prefetch": first,
                "query_filter": only,
                "limit": 9,
            },
        )
    ]


def test_a_servers_troubles_are_told():
    engine = server(get_collection=[SimpleNamespace(status=s) for s in ("red", "green")])
    assert engine.faults() == [f"the collection c at {URL} has the status red"]
    assert engine.faults() == []
    assert engine.optimize() is engine.flush() is None


def refusal(status, content):
    return exceptions.UnexpectedResponse(status, "reason", content, None)


with_key = pytest.mark.filterwarnings("ignore:Api key is used with an insecure:UserWarning")


@with_key
@pytest.mark.parametrize(
    ("error", "message"),
    [
        (refusal(401, b"no\n key"), "401 no key; is QDRANT_API_KEY set?"),
        (refusal(403, b"no"), "403 no; is QDRANT_API_KEY set?"),
        (refusal(500, b"of \xff " + KEY.encode() + b" x" * 500), f"500 of \ufffd ***{' x' * 96}"),
    ],
    ids=["401", "403", "500"],
)
def test_what_a_server_refuses_is_one_line_without_the_key(monkeypatch, error, message):
    monkeypatch.setenv("QDRANT_API_KEY", KEY)
    engine = server(count=error)
    with pytest.raises(UserError) as caught:
        len(engine)
    assert str(caught.value) == f"the collection c at {URL}: {message}"


@with_key
def test_a_server_that_does_not_answer_is_one_line_without_the_key(monkeypatch):
    monkeypatch.setenv("QDRANT_API_KEY", KEY)
    engine = server(count=exceptions.ResponseHandlingException(OSError(f"away from {KEY}")))
    with pytest.raises(UserError) as caught:
        len(engine)
    assert str(caught.value) == f"the collection c at {URL} cannot be reached: away from ***"


class Called(tuple):
    """What a name of a package made."""

    def close(self):
        pass


class Recorder:
    """A stand-in for a package: calling a name of it gives the name with its arguments."""

    def __init__(self, name=""):
        self._name = name

    def __getattr__(self, name):
        return Recorder(f"{self._name}.{name}" if self._name else name)

    def __call__(self, *args, **options):
        return Called((self._name, args, options))

    def __eq__(self, other):
        return isinstance(other, Recorder) and other._name == self._name

    def __hash__(self):
        return hash(self._name)


class Shard:
    """An opened collection that keeps what it is asked."""

    def __init__(self, *answers):
        self.asked, self.answers = [], list(answers)

    def __getattr__(self, method):
        def ask(*args):
            self.asked.append((method, args))
            return self.answers.pop(0) if self.answers else None

        return ask


def edge(tmp_path, *answers):
    made = qdrant._Edge(tmp_path / "edge")
    made._edge, made._opened = Recorder(), qdrant._Handle(Shard(*answers))
    return made


def test_a_collection_here_is_made_as_on_a_server(tmp_path):
    engine = edge(tmp_path)
    before = engine._opened.shard
    (tmp_path / "edge").mkdir()
    (tmp_path / "edge" / "old").write_text("x")
    engine.create(5, "float16", "any")
    assert before.asked == [("close", ())]
    assert not list((tmp_path / "edge").iterdir())
    name, (folder, config), _ = engine._opened.shard
    assert (name, folder) == ("EdgeShard.create", str(tmp_path / "edge"))
    tokens = (
        "EdgeVectorParams",
        (),
        {
            "size": 5,
            "distance": Recorder("Distance.Dot"),
            "datatype": Recorder("VectorStorageDatatype.Float16"),
            "multivector_config": (
                "MultiVectorConfig",
                (Recorder("MultiVectorComparator.MaxSim"),),
                {},
            ),
            "hnsw_config": (
                "HnswIndexConfig",
                (),
                {"m": 0, "ef_construct": 4, "full_scan_threshold": 0},
            ),
            "memory": Recorder("Memory.Cold"),
        },
    )
    mean = ("EdgeVectorParams", (), {"size": 5, "distance": Recorder("Distance.Dot")})
    assert config == ("EdgeConfig", (), {"vectors": {"tokens": tokens, "mean": mean}})


def test_points_here_are_put_removed_and_read(tmp_path):
    records = [SimpleNamespace(id=1, payload={"id": "a"})]
    engine = edge(tmp_path, None, None, records, 7, None, None)
    shard = engine._opened.shard
    engine.put([("i", {"tokens": np.array([[0.5]])}, {"n": 1})])
    engine.remove(("p", "q"))
    assert engine.payloads(("p",)) == {"1": {"id": "a"}}
    assert len(engine) == 7
    engine.optimize()
    engine.flush()
    assert engine.faults() == []
    engine.close()
    engine.close()
    point = ("Point", ("i", {"tokens": [[0.5]]}, {"n": 1}), {})
    assert shard.asked == [
        ("update", (("UpdateOperation.upsert_points", ([point],), {}),)),
        ("update", (("UpdateOperation.delete_points", (["p", "q"],), {}),)),
        ("retrieve", (["p"], True, False)),
        ("count", (("CountRequest", (), {"exact": True}),)),
        ("optimize", ()),
        ("flush", ()),
        ("close", ()),
    ]
    assert engine._opened is None


def test_points_here_are_read_page_by_page(tmp_path):
    engine = edge(tmp_path, ([SimpleNamespace(payload=1)], 5), ([SimpleNamespace(payload=2)], None))
    assert list(engine.scroll()) == [1, 2]
    assert engine._opened.shard.asked == [
        ("scroll", (("ScrollRequest", (), {"offset": at, "limit": 1000, "with_payload": True}),))
        for at in (None, 5)
    ]


@pytest.mark.parametrize("allowed", [None, ["x", "y"]])
@pytest.mark.parametrize("prefetch", [None, 30])
def test_a_search_here_asks_for_maxsim_after_the_means(tmp_path, prefetch, allowed):
    engine = edge(tmp_path, [SimpleNamespace(payload={"id": "a"}, score=2.5)])
    query = np.array([[1, 2], [3, 4]], np.float32)
    assert engine.search(query, 9, prefetch, allowed) == [({"id": "a"}, 2.5)]
    condition = ("HasIdCondition", ({"x", "y"},), {})
    only = allowed and ("Filter", (), {"must": [condition]})
    nearest = "Query.Nearest"
    options = {"limit": 30, "query": (nearest, ([4, 6], "mean"), {}), "filter": only}
    assert engine._opened.shard.asked == [
        (
            "query",
            (
                (
                    "QueryRequest",
                    (),
                    {
                        "limit": 9,
                        "query": (nearest, ([[1, 2], [3, 4]], "tokens"), {}),
                        "prefetches": [("Prefetch", (), options)] if prefetch else None,
                        "filter": only,
                        "with_payload": True,
                    },
                ),
            ),
        )
    ]


# -- what a collection says of itself


class Engine:
    """A collection that holds the given description, and as many other points."""

    where = "the collection"

    def __init__(self, description=None, points=0, exists=True):
        self.description, self.points, self._exists = description, points, exists

    def exists(self):
        return self._exists

    def use(self, version):
        pass

    def payloads(self, ids):
        assert ids == [qdrant._META]
        return {} if self.description is None else {qdrant._META: self.description}

    def __len__(self):
        return self.points + (self.description is not None)


def description(**changes):
    made = qdrant._Description(1, 5, "f", "float16", whole=True, passages=3, next=4)
    return qdrant.asdict(qdrant.replace(made, **changes))


def test_a_collection_that_is_there_is_taken_built_again_or_left_alone():
    already = qdrant._already
    assert already(Engine(exists=False), "f") is False
    assert already(Engine(), "f") is False
    assert already(Engine(description(whole=False), 9), "f") is False
    assert already(Engine(description()), "f") is True
    other = (
        "the collection already has an index, of another corpus or by another encoder: use another "
        "collection, or delete this one"
    )
    for found, wanted in (
        (description(), "g"),
        (description(), ""),
        (description(fingerprint=""), ""),
        (description(format=2), "f"),
    ):
        with pytest.raises(UserError, match=f"^{other}$"):
            already(Engine(found), wanted)
    with pytest.raises(UserError, match=r"^the collection already exists and is no index of ravqa"):
        already(Engine(points=1), "f")
    with pytest.raises(UserError, match=r"^the collection is no index of ravqa, or is damaged \(."):
        already(Engine({"id": "theirs"}), "f")


def opened(engine, fingerprint=None):
    made = object.__new__(QdrantIndex)
    made.path, made._engine, made._wanted = "here", engine, fingerprint
    made._meta = made._read()
    return made


def test_an_index_is_what_its_collection_says():
    made = opened(Engine(description(), 3), "f")
    assert (made.dim, made.fingerprint, len(made)) == (5, "f", 3)
    assert made.stats() == {
        "kind": "qdrant",
        "dim": 5,
        "passages": 3,
        "where": "the collection",
        "fingerprint": "f",
        "storage": "float16",
    }
    for engine, message in (
        (Engine(exists=False), r"^no index in here: the collection does not exist$"),
        (Engine(), r"^the collection has an index whose build did not end: build it again$"),
        (Engine(description(whole=False)), r"whose build did not end: build it again$"),
        (Engine(description(format=2)), r"^the collection has format 2, but this version reads 1:"),
    ):
        with pytest.raises(UserError, match=message):
            opened(engine)
    message = (
        "^the collection was built from another .*: build it again, or use another collection$"
    )
    with pytest.raises(DamagedError, match=message):
        opened(Engine(description()), "g")


def test_where_an_index_is_comes_from_its_options_or_its_folder(tmp_path):
    edge_ = qdrant._engine(tmp_path, QdrantIndex.Config())
    assert edge_.where == f"the collection in {tmp_path / 'edge'}"
    for options, name in (({}, f"ravqa-{tmp_path.name}"), ({"collection": "mine"}, "mine")):
        engine = qdrant._engine(tmp_path, QdrantIndex.Config(url=URL, **options))
        assert engine.where == f"the collection {name} at {URL}"
        engine.close()
    config = QdrantIndex.Config(url=URL, prefetch=None)
    (tmp_path / "qdrant.json").write_text(config.model_dump_json())
    assert qdrant._pointed_at(tmp_path) == config
    (tmp_path / "qdrant.json").write_text("{")
    message = f"^{tmp_path / 'qdrant.json'} is damaged: delete the folder and build again$"
    with pytest.raises(DamagedError, match=message):
        qdrant._pointed_at(tmp_path)
    with pytest.raises(UserError, match=f"^no index in {tmp_path / 'nowhere'}$"):
        qdrant._pointed_at(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("url", "message"),
    [
        (None, None),
        ("http://host", None),
        ("https://host:1/path", None),
        ("ftp://host", "http://HOST:PORT or https://HOST:PORT is expected"),
        ("http:///path", "http://HOST:PORT or https://HOST:PORT is expected"),
        ("http://me@host", "a key does not belong here: set QDRANT_API_KEY in the environment"),
        ("http://:pw@host", "a key does not belong here: set QDRANT_API_KEY in the environment"),
        ("http://host?key=1", "a key does not belong here: set QDRANT_API_KEY in the environment"),
    ],
)
def test_addresses_name_a_server_and_no_key(url, message):
    if message is None:
        assert QdrantIndex.Config(url=url).url == url
    else:
        with pytest.raises(ValueError, match=re.escape(message)):
            QdrantIndex.Config(url=url)
