"""A stand-in for Ray: as much as ravqa uses; actors live in this process and work when asked."""

import sys
from types import SimpleNamespace


class Ref:
    """A value, or what will be one when it is asked for."""

    def __init__(self, value=None, work=None):
        self.value, self.work = value, work


class Actor:
    """An actor of a class; after `spared` more calls it is lost, `lost` times."""

    def __init__(self, ray, kind, arguments):
        self.ray, self.spared, self.lost, self.starts, self.dead = ray, 0, 0, 0, False
        self.make = lambda: kind(*arguments)
        self.start()

    def start(self):
        self.starts += 1
        self.made = self.make()

    def __getattr__(self, name):
        return SimpleNamespace(remote=lambda *arguments: Ref(work=(self, name, arguments)))

    def work(self, name, arguments):
        exceptions = self.ray.exceptions
        if self.dead:
            raise exceptions.RayActorError("the actor is dead")
        if name == "call" and self.lost and self.spared:
            self.spared -= 1
        elif name == "call" and self.lost:
            self.lost -= 1
            self.start()
            raise exceptions.RayActorError("the actor died\nwith many lines")
        try:
            given = [a.value if isinstance(a, Ref) else a for a in arguments]
            return getattr(self.made, name)(*given)
        except Exception as e:
            raise exceptions.RayTaskError(e) from None


class Ray:
    """The module."""

    class exceptions:  # noqa: N801 (as it is called there)
        class RayError(Exception):
            pass

        class RayActorError(RayError):
            pass

        class RayTaskError(RayError):
            def __init__(self, cause):
                super().__init__(cause)
                self.cause = cause

    def __init__(self, *, nodes=2, silent=False, address="127.0.0.1:1"):
        self.started, self.options, self.actors = 0, [], []
        self.silent, self.address = silent, address
        self.resources = [{"CPU": 2.0} for _ in range(nodes)]
        self.found = None  # what nodes say of themselves, instead of the truth

    def is_initialized(self):
        return self.started > 0

    def init(self, **options):
        self.started += 1

    def get_runtime_context(self):
        return SimpleNamespace(gcs_address=self.address)

    def nodes(self):
        living = [
            {"Alive": True, "NodeID": f"id{i}", "NodeName": f"node{i}", "Resources": resources}
            for i, resources in enumerate(self.resources)
        ]
        return [*living, {"Alive": False, "Resources": {"CPU": 99.0}}]

    def cluster_resources(self):
        names = {name for node in self.resources for name in node}
        return {name: sum(node.get(name, 0) for node in self.resources) for name in names}

    available_resources = cluster_resources

    def put(self, value):
        if hasattr(getattr(value, "_embeddings", None), "__next__"):
            raise TypeError("cannot pickle an iterator")
        return Ref(value)

    def get(self, ref):
        if ref.work is None:
            return ref.value
        actor, name, arguments = ref.work
        return actor.work(name, arguments) if isinstance(actor, Actor) else actor(*arguments)

    def wait(self, refs, num_returns, timeout):
        return ([], refs) if self.silent else (refs[:1], refs[1:])

    def kill(self, actor):
        actor.dead = True

    def remote(self, kind=None, **options):
        if kind is None:  # for functions, which look at a node
            return lambda function: SimpleNamespace(
                options=lambda scheduling_strategy: SimpleNamespace(
                    remote=lambda *arguments: Ref(
                        work=((lambda *_: self.found) if self.found else function, "", arguments)
                    )
                )
            )

        def chosen(**given):
            if "num_cpu" in given:
                raise ValueError("Invalid option keyword num_cpu\nand more")
            self.options.append(given)
            return SimpleNamespace(remote=lambda *arguments: self._actor(kind, arguments))

        return SimpleNamespace(options=chosen)

    def _actor(self, kind, arguments):
        self.actors.append(Actor(self, kind, arguments))
        return self.actors[-1]


def use(monkeypatch, **options):
    """Have ravqa import the stand-in, and return it."""
    made = Ray(**options)
    placed = SimpleNamespace(NodeAffinitySchedulingStrategy=lambda node, soft: node)
    monkeypatch.setitem(sys.modules, "ray", made)
    monkeypatch.setitem(sys.modules, "ray.util.scheduling_strategies", placed)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    return made
