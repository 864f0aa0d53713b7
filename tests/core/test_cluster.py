"""Workers of a Ray cluster, in the hands of a stand-in for Ray; tests/runs/test_ray.py has Ray."""

import fake_ray
import pytest

import ravqa
from ravqa.core import cluster
from ravqa.core.cluster import Crew, Head, WorkerOptions, connected, losses, noted_losses
from ravqa.core.errors import UserError


@pytest.fixture
def ray(monkeypatch):
    return fake_ray.use(monkeypatch)


def crew(number=2, **options):
    return Crew([list] * number, options=options, what="the worker", why="a test")


def append(made, value):
    made.append(value)
    return list(made)


def test_workers_keep_their_objects_and_their_results_come_in_the_calls_order(ray):
    workers = crew(3)
    assert ray.options == [{"scheduling_strategy": "SPREAD", "max_restarts": -1}]
    assert workers.run({2: (append, ("c",)), 0: (append, ("a",))}) == [["c"], ["a"]]
    done = []
    shared = workers.put("z")
    assert workers.run({0: (append, (shared,))}, report=done.append) == [["a", "z"]]
    assert done == [1]
    workers.close()
    assert all(actor.dead for actor in ray.actors)


def test_what_a_lost_worker_was_asked_is_repeated_once_and_noted(ray):
    workers = crew()
    with noted_losses() as lost:
        ray.actors[1].lost = 1
        calls = {0: (append, ("a",)), 1: (append, ("b",))}
        assert workers.run(calls) == [["a"], ["b"]]
        assert [(loss.what, loss.reason) for loss in lost] == [
            ("the worker 2 of 2", "the actor died")
        ]
        assert losses() == tuple(lost)
        ray.actors[1].lost = 2
        with pytest.raises(UserError, match=r"^the worker 2 of 2 was lost twice: the actor died$"):
            workers.run(calls)
    assert losses() == ()
    assert ray.actors[1].starts == 4


def test_changes_are_not_repeated(ray):
    workers = crew()
    ray.actors[0].lost = 1
    with pytest.raises(UserError, match=r"^the worker 1 of 2 was lost \(the actor died\) while it"):
        workers.run({0: (append, ("a",))}, repeat=False)
    assert workers.run({0: (append, ("b",))}) == [["b"]]


def test_a_worker_that_cannot_be_replaced_ends_the_work(ray, monkeypatch):
    monkeypatch.setattr(cluster, "_PATIENCE_S", 0.0)
    workers = crew()
    ray.actors[0].lost = 1
    with pytest.raises(UserError, match=r"and could not be started again in 0 s$"):
        workers.run({0: (append, ("a",))})


def test_what_a_call_raises_is_raised_here_the_first_of_several(ray):
    workers = crew()
    with pytest.raises(ZeroDivisionError):
        workers.run({1: (lambda made: 1 / 0, ()), 0: (append, ("a",))})
    ray.actors[1].lost = 1
    with pytest.raises(ZeroDivisionError):
        workers.run({0: (lambda made: 1 / 0, ()), 1: (append, ("a",))})


def test_resources_that_the_nodes_do_not_have_are_refused(ray):
    ray.resources = [{"CPU": 4.0, "GPU": 1.0}, {"CPU": 3.0}]
    assert len(crew(3, num_cpus=2)) == 3
    expected = (
        r"^a test: 4 workers with 2 CPU each need more than the Ray cluster has: room for 3 "
        r"\(nodes: 4 CPU; 3 CPU\)$"
    )
    with pytest.raises(UserError, match=expected):
        crew(4, num_cpus=2)
    with pytest.raises(UserError, match=r"2 workers with 1 CPU, 1 GPU each .* room for 1"):
        crew(2, num_cpus=1, num_gpus=1)
    with pytest.raises(UserError, match="with 1 tpu each"):
        crew(1, resources={"tpu": 1})
    with pytest.raises(
        UserError, match=r"^a test: Ray refuses the workers' options: Invalid option keyword num_c"
    ):
        crew(1, num_cpu=1)


def test_nodes_must_have_the_same_package_and_the_folder(ray, tmp_path):
    made = Crew([list], options={}, what="w", why="a test", folder=tmp_path / "new")
    assert made.run({0: (append, ("a",))}) == [["a"]]
    assert list((tmp_path / "new").iterdir()) == []
    expected = f"install ravqa {ravqa.__version__} there$"
    ray.found = ("0.0.1", "far", True)
    with pytest.raises(
        UserError, match=rf"^a test: the Ray node node0 \(far\) has ravqa 0.0.1: {expected}"
    ):
        crew()
    ray.found = ("", "far", True)
    with pytest.raises(UserError, match=f"has no package ravqa: {expected}"):
        crew()
    ray.found = (ravqa.__version__, "far", False)
    with pytest.raises(
        UserError,
        match=rf"does not see the folder {tmp_path}: choose",
    ):
        Crew([list], options={}, what="w", why="a test", folder=tmp_path)


def test_a_silent_cluster_is_not_waited_for(monkeypatch):
    monkeypatch.setattr(cluster, "_PATIENCE_S", 0.0)
    ray = fake_ray.use(monkeypatch, silent=True)
    with pytest.raises(
        UserError, match=r"^a test: the Ray node node0 has started no worker in 0 s$"
    ):
        crew()
    monkeypatch.setattr(cluster, "check_nodes", lambda *given: None)
    with pytest.raises(
        UserError,
        match=r"^a test: 2 of 2 workers were not started in 0 s: .* \(free: 4 CPU, 0 GPU\)$",
    ):
        crew()
    assert [actor.dead for actor in ray.actors] == [True, True]


def test_a_lost_head_is_one_line(monkeypatch):
    head = Head(fake_ray.use(monkeypatch, silent=True))
    head.check()  # it may have been a moment
    monkeypatch.setattr(cluster, "_HEAD_S", 0.0)
    with pytest.raises(UserError, match=r"^the head of the Ray cluster at 127.0.0.1:1 was lost: "):
        head.wait([fake_ray.Ref()])


def test_clusters_that_cannot_be_reached_are_refused(ray, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    with pytest.raises(
        UserError, match=r"^the Ray cluster at 127.0.0.1:1 \(RAY_ADDRESS\) cannot be reached: "
    ):
        connected("a test")
    monkeypatch.setenv("RAY_ADDRESS", "ray://127.0.0.1:1")
    with pytest.raises(UserError, match="addresses of Ray's client are not supported"):
        connected("a test")
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    monkeypatch.setattr(ray, "init", lambda **given: 1 / 0)
    with pytest.raises(
        UserError, match=r"^the Ray cluster at auto \(RAY_ADDRESS\) cannot be joined: division by"
    ):
        connected("a test")


def test_workers_have_a_processor_each_and_a_gpu_if_there_are_any(ray):
    ray.resources = [{"CPU": 4.0}, {"CPU": 3.0}]
    assert WorkerOptions().settled(ray) == (7, {"num_cpus": 1.0, "num_gpus": 0.0})
    own = WorkerOptions(number=2, num_cpus=3, memory=5)
    assert own.settled(ray) == (2, {"num_cpus": 3, "num_gpus": 0.0, "memory": 5})
    ray.resources = [{"CPU": 4.0, "GPU": 2.0}, {"CPU": 3.0}]
    assert WorkerOptions().settled(ray) == (2, {"num_cpus": 1.0, "num_gpus": 1.0})
    assert WorkerOptions(num_gpus=0, num_cpus=0.5).settled(ray)[0] == 14
