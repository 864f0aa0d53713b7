"""What readers charge for: tokens that local models read and wrote, and what was in the cache."""

import pytest
import reader_models
from test_cached_reader import Counting

from ravqa.core.accounts import Account, Cost, Prices, Usage, charged_to
from ravqa.readers.base import Generation, Prompt
from ravqa.readers.cached import CachedReader


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    from ravqa.readers.transformers_llm import TransformersLLM

    folder = reader_models.llama(tmp_path_factory.mktemp("model"))
    return TransformersLLM(
        TransformersLLM.Config(model=str(folder), device="cpu", max_new_tokens=4)
    )


PROMPTS = [
    Prompt("Q: who?", payer=1),
    Prompt("Passage: koalas eat leaves. Question: what?", payer="b"),
]


@pytest.fixture
def account():
    made = Account()
    with charged_to(made):
        yield made


def test_a_local_model_charges_the_tokens_it_read_and_wrote(model, account):
    lengths = model.count_tokens(PROMPTS)
    assert account.total == Cost()
    with account.booked() as charged:
        made = model.generate(PROMPTS)
    for prompt, length, generation in zip(PROMPTS, lengths, made, strict=True):
        usage = generation.usage
        assert usage.prompt_tokens == length
        assert 1 <= usage.completion_tokens <= 4
        assert charged[prompt.payer] == Cost.of(usage)
    assert account.total.requests == 0


def test_scoring_reads_a_prompt_once_and_its_answers(model, account):
    first, second = PROMPTS
    with account.booked() as charged:
        model.score([first, first, second], ["koala", "a tree", "koala"])
    tokens = {a: len(model._answer_ids(first, a)) for a in ("koala", "a tree")}
    lengths = model.count_tokens(PROMPTS)
    assert charged == {
        1: Cost(prompt_tokens=lengths[0] + tokens["koala"] + tokens["a tree"]),
        "b": Cost(prompt_tokens=lengths[1] + tokens["koala"]),
    }


def test_next_tokens_are_charged_one_by_one_and_the_prompt_once(model, account):
    first = PROMPTS[0]
    [length] = model.count_tokens([first])
    model.forget()
    tokens = []
    with account.booked() as charged:
        for _ in range(3):
            [row] = model.next_token_logprobs([first], [tokens])
            tokens.append(int(row.argmax()))
    assert charged == {1: Cost(prompt_tokens=length, completion_tokens=3)}


class Priced(Counting):
    """Knows what each prompt takes."""

    charges = True
    prices = Prices(prompt=1, completion=10, currency="EUR")

    def generate(self, prompts):
        made = []
        for found, prompt in zip(super().generate(prompts), prompts, strict=True):
            usage = Usage(len(prompt.text), 2)
            self._charge(usage, prompt.payer)
            made.append(Generation(found.text, found.log_prob, found.tokens, usage=usage))
        return made


def test_what_comes_from_the_cache_is_told_apart_with_what_it_had_cost(fresh_cache, account):
    first, second = CachedReader(Priced()), CachedReader(Priced())
    with account.booked() as charged:
        made = first.generate(PROMPTS)
    cost = Cost(prompt_tokens=7, completion_tokens=2, money=27e-6)
    assert charged[1] == cost
    with account.booked() as charged:
        assert second.generate(PROMPTS) == made
    assert charged[1] == Cost(
        reused=1, reused_prompt_tokens=7, reused_completion_tokens=2, reused_money=27e-6
    )
    assert second.inner.asked == []


def test_what_an_earlier_version_kept_had_an_unknown_cost(fresh_cache, account):
    before, now = CachedReader(Counting()), CachedReader(Counting())
    before.generate(PROMPTS)
    with account.booked() as charged:
        now.generate(PROMPTS)
    assert charged == {p.payer: Cost(reused=1, reused_unknown=1) for p in PROMPTS}


def test_a_reader_that_does_not_count_has_unknown_costs(fresh_cache, account):
    reader = CachedReader(Counting())
    with account.booked() as charged:
        reader.generate(PROMPTS)
        reader.score(PROMPTS, ["a", "b"])
        reader.score(PROMPTS, ["a", "b"])
    wanted = Cost(unknown=2, reused=1, reused_unknown=1)
    assert charged == {p.payer: wanted for p in PROMPTS}
