"""One reader for several on a Ray cluster, of which a stand-in has the actors."""

import threading

import fake_ray
import pytest
import ray_parts
from spelling import Spelling

from ravqa.core.accounts import Account, Usage, charged_to
from ravqa.core.cluster import WorkerOptions, noted_losses
from ravqa.core.errors import UserError
from ravqa.core.registry import Entry
from ravqa.core.settings import Part
from ravqa.readers import READERS
from ravqa.readers.base import Prompt, Reader
from ravqa.readers.on_ray import RayReader
from ravqa.testing import check_reader

PROMPTS = [Prompt(text) for text in ("a b c d", "e f g h", "i j k l")]


class Charging(Spelling):
    """A reader that charges for what it does."""

    charges = True
    switched_off = {"batches": "they differ"}  # noqa: RUF012
    made = 0

    class Config(Reader.Config):
        pass

    def __init__(self, config):
        super().__init__()
        Charging.made += 1

    def generate(self, prompts):
        for prompt in prompts:
            self._charge(Usage(7, 2), prompt.payer)
        return super().generate(prompts)


@pytest.fixture
def ray(monkeypatch):
    monkeypatch.setitem(READERS._entries, "charging", Entry(f"{__name__}:Charging", "for tests"))
    return fake_ray.use(monkeypatch)


def reader(name="charging", number=2):
    config = READERS.get(name).Config()
    return RayReader(Part(name=name), config, WorkerOptions(number=number))


def test_it_is_what_its_readers_are_and_answers_as_they_do(ray):
    found, one = reader(), Charging(None)
    assert found.generate(PROMPTS) == one.generate(PROMPTS)
    assert list(found.generate_each(PROMPTS)) == list(enumerate(one.generate(PROMPTS)))
    texts = ["a", "bc", "cab"]
    assert found.score(PROMPTS, texts) == one.score(PROMPTS, texts)
    assert list(found.score_each(PROMPTS, texts)) == list(enumerate(one.score(PROMPTS, texts)))
    assert found.decode([1, 2]) == "ab"
    assert found.problem() == ""
    rows = found.next_token_logprobs(PROMPTS[:1], [[1]])
    assert (rows[0] == one.next_token_logprobs(PROMPTS[:1], [[1]])[0]).all()
    assert found.abilities == one.abilities
    assert (found.fingerprint, found.ends) == (one.fingerprint, one.ends)
    assert found.switched_off == {"batches": "they differ"}
    assert (found.workers, found.thread_safe) == (2, True)
    with pytest.raises(UserError, match=r"cannot count tokens$"):
        found.count_tokens(PROMPTS)


def test_it_keeps_the_contract_of_readers(ray):
    check_reader(reader("watched"))


def test_every_thread_has_a_worker_of_its_own(ray):
    found = reader()
    places = []

    def work():
        for _ in range(2):
            found.generate(PROMPTS[:1])
            places.append(found._own.worker)

    for _ in range(4):
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
    assert places == [0, 0, 1, 1, 0, 0, 1, 1]


def test_what_workers_charge_is_charged_here(ray):
    found, account = reader(), Account()
    with charged_to(account), account.booked() as costs:
        found.generate([Prompt("a", payer=3), Prompt("b", payer=4), Prompt("c", payer=3)])
    assert {payer: cost.prompt_tokens for payer, cost in costs.items()} == {3: 14, 4: 7}


def test_a_lost_reader_is_built_again_and_asked_again(ray):
    found = reader(number=1)
    wanted = found.generate(PROMPTS)
    made, ray.actors[0].lost = Charging.made, 1
    with noted_losses() as lost:
        assert found.generate(PROMPTS) == wanted
    assert [loss.what for loss in lost] == ["the reader 1 of 1"]
    assert Charging.made == made + 1


def test_readers_of_servers_and_nodes_that_differ_are_refused(ray, monkeypatch):
    monkeypatch.setattr(ray_parts.WatchedReader.Config, "servers", lambda self: ("http://a",))
    with pytest.raises(UserError, match=r"^--workers ray is for readers whose model runs on their"):
        reader("watched")
    monkeypatch.setattr(Charging, "fingerprint", property(lambda self: f"weights {id(self)}"))
    with pytest.raises(UserError, match=r"^--workers ray: the workers' readers differ: "):
        reader()
