"""The parts of local readers without a model: batches, halving, limits, positions, fingerprints."""

import json
import math
import threading
from types import SimpleNamespace

import pytest
import torch

from ravqa.core.accounts import Usage
from ravqa.core.errors import PromptError, UserError
from ravqa.core.outcomes import Failure
from ravqa.core.settings import fingerprint
from ravqa.readers.base import Prompt
from ravqa.readers.beginnings import Beginnings, common_prefix
from ravqa.readers.families import Family
from ravqa.readers.loading import LocalConfig, Placement
from ravqa.readers.local import LocalReader, State, _apart, _Closed, _log_probs
from ravqa.readers.thinking import Marks
from ravqa.readers.transformers_llm import TransformersLLM


class Modelless(LocalReader):
    """Runs nothing: its parts are called one by one."""

    def __init__(self, **options):
        self._options = LocalConfig(model="m", **options)
        self._in_use = threading.RLock()
        self._why = "the test"
        self.weights = "tiny"
        self._budget = self._options.batch_tokens
        self._strict = True
        self.context = None
        self._states = []
        self._beginnings = Beginnings(None)
        self._device = torch.device("cpu")
        self._decoder = SimpleNamespace(dtype=torch.float16)
        self._may_think = True
        self._opening = ""
        self._thinking_budget = 10

    def _inputs(self, prompts):
        raise AssertionError

    _lengths = _text = _inputs


# --- batches


@pytest.mark.parametrize(
    ("needed", "options", "size"),
    [
        ([5], {}, 1),
        ([5, 5, 5], {}, 3),
        ([5, 5, 5], {"batch_size": 2}, 2),
        ([5, 5, 5], {"batch_tokens": 15}, 3),
        ([5, 5, 5], {"batch_tokens": 14}, 2),
        ([5, 5, 9], {"batch_tokens": 26}, 2),  # all are as long as the longest
        ([5, 5, 9], {"batch_tokens": 27}, 3),
        ([5, 9, 9], {"batch_tokens": 17}, 1),
        ([9, 5, 5], {"batch_tokens": 26}, 2),
        ([50, 50], {"batch_tokens": 10}, 1),
    ],
)
def test_how_many_rows_form_a_batch(needed, options, size):
    assert Modelless(**options)._batch_size(needed) == size


def test_batches_are_of_one_kind_shortest_first():
    tested = Modelless(batch_size=2)
    tested._kind = lambda prompt: prompt.image is None
    prompts = [Prompt(str(i), b"x" if i % 2 else None) for i in range(6)]
    needed = {0: 9, 1: 3, 2: 5, 3: 2, 4: 7, 5: 1}
    batches = []

    def run(rows):
        batches.append(rows)
        return [f"row {row}" for row in rows]

    found = dict(tested._in_batches(prompts, needed, run))
    assert batches == [[2, 4], [0], [5, 3], [1]]
    assert found == {row: f"row {row}" for row in range(6)}
    assert dict(tested._in_batches(prompts, {}, run)) == {}


@pytest.mark.parametrize(
    ("size", "tokens", "batches"),
    [
        # Of x, y and z there are 3, 2 and 4 prompts, the longest of 9, 7 and 8 tokens; v and w have
        # one each.
        (16, 99, [[4, 3, 8, 7, 6, 5, 2, 1, 0], [9, 10]]),
        (5, 99, [[4, 3], [8, 7, 6, 5], [2, 1, 0], [9, 10]]),
        (4, 99, [[4, 3], [8, 7, 6, 5], [2, 1, 0], [9, 10]]),
        (3, 99, [[4, 3], [8, 7, 6], [5], [2, 1, 0], [9, 10]]),
        (16, 50, [[4, 3, 8, 7, 6, 5], [2, 1, 0], [9, 10]]),
        (1, 99, [[4], [3], [8], [7], [6], [5], [2], [1], [0], [9], [10]]),
    ],
)
def test_prompts_of_a_group_share_a_batch(size, tokens, batches):
    tested = Modelless(batch_size=size, batch_tokens=tokens)
    tested._group = lambda prompt: prompt.text
    needed = dict(enumerate([9, 8, 3, 7, 2, 8, 6, 5, 4, 1, 12]))
    made = []

    def run(rows):
        made.append(rows)
        return rows

    asked = [Prompt(text) for text in "xxxyyzzzzvw"]
    assert dict(tested._in_batches(asked, needed, run)) == {row: row for row in needed}
    assert made == batches


def test_what_does_not_fit_into_the_context_is_not_run():
    tested = Modelless()
    tested._kind = lambda prompt: None
    tested.context = 8
    long = Failure(
        "the test: a prompt of 9 tokens, including those to be written, is longer than the context "
        "of 8: use fewer or shorter passages"
    )
    found = dict(tested._in_batches([Prompt("a")] * 2, {0: 8, 1: 9}, lambda rows: rows))
    assert found == {0: 0, 1: long}
    tested._strict = False
    assert tested._too_long({0: 99}) == {}
    tested._strict, tested.context = True, None
    assert tested._too_long({0: 99}) == {}


def test_a_batch_that_fails_is_halved_until_the_row_is_found():
    tested = Modelless()
    asked = []

    def run(rows):
        asked.append(rows)
        if 3 in rows:
            raise ValueError("row 3 is odd\nindeed")
        return [-row for row in rows]

    found = list(tested._halving([1, 2, 3, 4, 5], {}, run))
    assert asked == [[1, 2, 3, 4, 5], [1, 2], [3, 4, 5], [3], [4, 5]]
    assert found == [(1, -1), (2, -2), (3, Failure("the test: row 3 is odd")), (4, -4), (5, -5)]
    assert tested._budget == tested._options.batch_tokens  # nothing to do with memory
    assert list(tested._halving([], {}, run)) == []
    with pytest.raises(ValueError, match="zip"):
        list(tested._halving([1, 2], {}, lambda rows: [0]))


def test_what_does_not_fit_into_memory_is_halved_and_later_batches_are_smaller():
    tested = Modelless(batch_tokens=100)
    tested._states = ["kept"]

    def run(rows):
        if len(rows) > 1 or rows == [4]:
            raise MemoryError
        return rows

    found = dict(tested._halving([1, 2, 3, 4], {1: 5, 2: 6, 3: 7, 4: 8}, run))
    assert [found[row] for row in (1, 2, 3)] == [1, 2, 3]
    assert found[4] == Failure(
        "the test: a prompt of 8 tokens does not fit into the memory of cpu: set device_map, dtype "
        "or quantization of the reader"
    )
    assert tested._states == []
    assert tested._budget == 6  # two rows of six tokens did not fit
    [(_, failure)] = tested._halving([4], {}, run)
    assert "the test: a prompt does not fit into the memory of cpu" in failure.reason
    assert tested._budget == 6


def test_a_device_that_fails_ends_the_call():
    def run(rows):
        raise RuntimeError("CUDA error: an illegal address")

    with pytest.raises(UserError, match="the test: the device failed"):
        list(Modelless()._halving([1, 2], {}, run))


def test_outcomes_are_taken_apart():
    lost = Failure("no")
    assert _apart([(3, "a"), (1, lost), (0, "b")]) == ({3: "a", 0: "b"}, {1: lost})


# --- what is refused


def test_tokens_that_a_model_does_not_know_are_refused():
    tested = Modelless()
    tested._known = 7
    tested._tokenizer = SimpleNamespace(convert_ids_to_tokens=lambda number: f"t{number}")
    tested._check_ids([[0, 6], [], [3]])
    with pytest.raises(PromptError) as error:
        tested._check_ids([[0, 6], [7, 2]])
    assert str(error.value) == (
        "the test: the tokenizer gives 't7' the number 7, but the model has only 7 tokens"
    )


def test_what_was_switched_off_is_told_with_its_reason():
    tested = Modelless()
    assert str(tested._unable("stream")) == "the test: tiny cannot stream"
    tested.switched_off = {"score": "it is off"}
    assert str(tested._unable("score answers")) == "the test: tiny cannot score answers: it is off"
    assert str(tested._unable("stream")) == "the test: tiny cannot stream"
    tested.switched_off = {"score": "it is off", "next_token_logprobs": "so is this"}
    for what in ("stream", "score answers"):
        assert str(tested._unable(what)) == f"the test: tiny cannot {what}: so is this"


def test_numbers_that_are_none_name_the_type():
    tested = Modelless()
    assert tested._checked("a", 1.0, -math.inf) == "a"
    found = tested._checked("a", 1.0, math.nan)
    assert found == Failure(
        "the test: a log-probability is not a number (dtype float16): set dtype to float32"
    )


def test_thinking_that_was_cut_off_says_why():
    tested = Modelless()
    thought = SimpleNamespace(tokens=[0] * 9)
    assert tested._cut_off(thought) == Failure(
        "the test: the model's output is reasoning without an answer"
    )
    thought.tokens.append(0)
    assert tested._cut_off(thought) == Failure(
        "the test: the model spent all 10 tokens on thinking: raise max_thinking_tokens"
    )


@pytest.mark.parametrize(
    ("template", "image", "said"),
    [("T", None, "question"), ("T", b"x", "image"), (None, None, "")],
)
def test_a_template_that_hides_a_part_is_refused(template, image, said):
    tested = Modelless()
    tested._template = template
    tested._text = lambda prompt: "the same"
    tested._marks_of_thinking = SimpleNamespace(closing=lambda text: "")
    if not said:
        tested._check_template(Prompt("a", image), Prompt("b"))
        return
    with pytest.raises(UserError) as error:
        tested._check_template(Prompt("a", image), Prompt("b"))
    assert str(error.value) == (
        f"the test: the chat template of tiny never shows the {said}: set prompt_form to plain, or "
        "replace the template"
    )


def test_a_template_that_fails_or_opens_thinking_is_noticed():
    tested = Modelless()
    tested._template = "T"
    tested._marks_of_thinking = SimpleNamespace(closing=lambda text: text == "a <think>")

    def fails(prompt):
        raise PromptError("it is broken")

    tested._text = fails
    with pytest.raises(UserError, match=r"^it is broken$") as error:
        tested._check_template(Prompt("a"), Prompt("b"))
    assert type(error.value) is UserError
    tested._text = lambda prompt: prompt.text
    tested._check_template(Prompt("a"), Prompt("b"))
    assert tested.max_thinking_tokens == 0
    tested._text = lambda prompt: f"{prompt.text} <think>"
    tested._check_template(Prompt("a"), Prompt("b"))
    assert tested.max_thinking_tokens == 10


# --- prompts


def test_prompts_without_thinking_are_closed():
    tested = Modelless()
    tokenizer = SimpleNamespace(get_added_vocab=dict)
    tested._marks_of_thinking = Marks(tokenizer, None)
    own = frozenset({"<s>"})
    [closed] = tested._closed([Prompt("a", b"x", own)])
    assert isinstance(closed, _Closed)
    assert (closed.text, closed.image, closed.own) == ("a", b"x", own)
    assert closed != Prompt("a", b"x", own)
    assert tested._shown(closed, "a <think>") == "a <think></think>"
    assert tested._shown(Prompt("a"), "a <think>") == "a <think>"
    tested._opening = "<think>"
    assert tested._shown(closed, "a") == "a<think>\n\n</think>\n\n"
    tested._may_think = False
    assert tested._closed([Prompt("a")]) == [Prompt("a")]
    assert not isinstance(tested._closed([Prompt("a")])[0], _Closed)


@pytest.mark.parametrize(
    ("rows", "shared"),
    [
        ([[1, 2, 3], [1, 2, 4]], 2),
        ([[1, 2, 3], [1, 2, 3]], 3),
        ([[1, 2], [1, 2, 3]], 2),
        ([[1], [1, 2, 3]], 1),
        ([[5, 1], [6, 1]], 0),
        ([[1, 2, 3, 9], [1, 2, 4, 9], [1, 2, 3, 8]], 2),
        ([[1, 2, 3, 4]], 4),
    ],
)
def test_the_beginning_that_all_share(rows, shared):
    assert common_prefix(rows) == shared
    assert common_prefix(rows[::-1]) == shared


class Past:
    def __init__(self):
        self.asked = []

    def reorder_cache(self, index):
        self.asked.append(index.tolist())


def test_rows_of_a_state_are_selected_together():
    keys = [(Prompt(str(i)), (i,)) for i in range(3)]
    numbers = torch.arange(3)[:, None]

    def state():
        return State(Past(), numbers + 10, numbers + 20.0, numbers, keys=list(keys))

    whole = state()
    whole.select([0, 1, 2])
    assert whole.past.asked == []  # nothing changes
    some = state()
    some.select([2, 0, 2])
    assert some.past.asked == [[2, 0, 2]]
    assert some.mask[:, 0].tolist() == [12, 10, 12]
    assert some.logits[:, 0].tolist() == [22, 20, 22]
    assert some.shifts[:, 0].tolist() == [2, 0, 2]
    assert (some.encoded, some.across) == (None, None)
    assert some.keys == [keys[2], keys[0], keys[2]]
    fewer = state()
    fewer.select([0, 1])
    assert fewer.past.asked == [[0, 1]]


def test_log_probabilities_of_a_states_rows():
    logits = torch.tensor([[0.0, 0.0], [0.0, math.log(3)]])
    state = State(Past(), torch.ones(2, 1), logits, keys=["a", "b"])
    found = dict(_log_probs(state))
    assert found["a"] == pytest.approx([math.log(0.5)] * 2)
    assert found["b"] == pytest.approx([math.log(0.25), math.log(0.75)], abs=1e-6)


# --- tokens


class Pairs:
    """Every two letters are a token, so that what follows a text may change its last one."""

    all_special_tokens = ("</s>", " ")

    def __call__(self, text, add_special_tokens):
        if not isinstance(text, str):
            return {"input_ids": [self(one, add_special_tokens)["input_ids"] for one in text]}
        return {"input_ids": [text[i : i + 2] for i in range(0, len(text), 2)]}


@pytest.mark.parametrize(
    ("text", "answer", "ids"),
    [
        ("ab", "cde", [" c", "de"]),
        ("abc", "de", [" d", "e"]),  # the prompt's last token would change: the answer alone
        ("a ", "cd", ["cd"]),
        ("ab</s>", "cd", ["cd"]),
        ("ab", "", []),
    ],
)
def test_an_answer_is_the_tokens_that_follow_the_prompts(text, answer, ids):
    tested = Modelless()
    tested._encodes, tested._tokenizer = False, Pairs()
    tested._scored = lambda given: given
    tested._text = lambda prompt: prompt.text
    assert tested._answer_ids(Prompt(text), answer) == ids


def test_a_prompt_without_tokens_is_refused():
    tested = object.__new__(TransformersLLM)
    tested._template, tested._tokenizer = None, Pairs()
    tested._text = lambda prompt: prompt.text
    tested._check_ids = lambda ids: None
    assert tested._ids([Prompt("ab"), Prompt("c")]) == [["ab"], ["c"]]
    assert tested._ids([]) == []
    with pytest.raises(PromptError) as error:
        tested._ids([Prompt("ab"), Prompt("")])
    assert str(error.value) == "the reader transformers-llm: a prompt without tokens"


# --- placement


def test_a_local_readers_fingerprint_is_of_what_can_change_an_answer(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}), encoding="utf-8")

    def placed(**options):
        return Placement(LocalConfig(model=str(tmp_path), device="cpu", **options), "the test")

    made = placed()
    assert (made.weights, made.device) == (str(tmp_path), "cpu")
    base = made.fingerprint("kind/1")
    for same in (
        {"batch_size": 3},
        {"batch_tokens": 99},
        {"device_map": "auto"},
        {"dtype": "float32"},  # what auto means here
        {"max_thinking_tokens": 7},
    ):
        assert placed(**same).fingerprint("kind/1") == base
    thinks = placed().fingerprint("kind/1", thinks=True)
    others = [
        placed().fingerprint("kind/2"),
        placed(max_new_tokens=7).fingerprint("kind/1"),
        placed(beams=2).fingerprint("kind/1"),
        placed(context=7).fingerprint("kind/1"),
        placed(dtype="bfloat16").fingerprint("kind/1"),
        placed(attention="eager").fingerprint("kind/1"),
        placed(trust_remote_code=True).fingerprint("kind/1"),
        thinks,
        placed(max_thinking_tokens=7).fingerprint("kind/1", thinks=True),
    ]
    assert len({base, *others}) == len(others) + 1
    left_out = {
        "model", "adapter", "batch_size", "batch_tokens", "device", "device_map", "dtype",
        "max_thinking_tokens", "trust_remote_code",
    }  # fmt: skip
    config = LocalConfig(model=str(tmp_path)).model_dump(exclude=left_out)
    assert base == fingerprint("kind/1", config, "torch.float32", made.content, None, None)


def test_a_model_and_an_adapter_of_the_hub_are_known_by_their_commits_too(tmp_path, monkeypatch):
    config = LocalConfig(model=str(tmp_path), device="cpu")

    def prints():
        made = Placement(config, "the test")
        plain = made.fingerprint("kind/1")
        made._adapter = str(tmp_path)
        return plain, made.fingerprint("kind/1")

    local = prints()
    commits = {}
    monkeypatch.setattr("ravqa.readers.loading.commit_of", lambda *file: commits.get(file))
    assert prints() == local
    commits[str(tmp_path), "adapter_config.json"] = "one"
    plain, adapted = prints()
    assert plain == local[0]
    assert adapted not in local
    commits[(str(tmp_path),)] = "two"
    assert len({*prints(), plain, adapted}) == 4


# --- generation


def test_generation_is_plain_whatever_a_checkpoint_sets():
    from transformers import GenerationConfig

    tested = Modelless(beams=3, max_new_tokens=9)
    tested.max_new_tokens = 9
    tested._stops, tested._pad, tested._start = [4, 5], 6, [7, 8]
    own = GenerationConfig(
        bos_token_id=1, do_sample=True, temperature=0.3, repetition_penalty=2.0, top_k=3
    )
    tested._decoder = SimpleNamespace(generation_config=own)
    tested._set_generation()
    found = tested._decoder.generation_config
    assert (found.max_new_tokens, found.num_beams, found.do_sample) == (9, 3, False)
    assert (found.bos_token_id, found.eos_token_id, found.pad_token_id) == (1, [4, 5], 6)
    assert found.decoder_start_token_id == 7
    assert found.return_dict_in_generate
    assert found.output_logits
    plain = GenerationConfig()
    for name in ("temperature", "repetition_penalty", "top_k"):
        assert getattr(found, name) == getattr(plain, name)
    tested._start = []
    tested._set_generation()
    assert tested._decoder.generation_config.decoder_start_token_id is None


@pytest.mark.parametrize(
    ("own", "config", "expected"),
    [
        ((2, 3, None), {}, [2]),
        ((2, 3, 4), {}, [2, 4]),
        ((0, 3, None), {"decoder_start_token_id": 5}, [0]),
        ((None, 3, None), {"decoder_start_token_id": 5}, [5]),
        ((None, 3, 4), {"decoder_start_token_id": None}, [3, 4]),
        ((None, 0, None), {}, [0]),
        ((None, None, None), {}, [6]),
    ],
)
def test_the_first_tokens_of_a_decoder(own, config, expected):
    start, begin, forced = own
    tested = Modelless()
    tested._pad = 6
    tested._decoder = SimpleNamespace(
        config=SimpleNamespace(**config),
        generation_config=SimpleNamespace(
            decoder_start_token_id=start, bos_token_id=begin, forced_bos_token_id=forced
        ),
    )
    assert tested._first_tokens() == expected


def test_a_tokenizer_without_padding_is_padded_by_an_end_mark(tmp_path):
    import reader_models

    from ravqa.readers.transformers_llm import TransformersLLM

    folder = reader_models.llama(tmp_path / "model")
    config = TransformersLLM.Config(model=str(folder), device="cpu", max_new_tokens=4)
    prompts = [Prompt("Q: who?"), Prompt("Passage: koalas eat leaves. Question: what?")]
    padded = TransformersLLM(config)
    assert padded._pad == padded._tokenizer.pad_token_id not in padded._stops
    found = padded.generate(prompts)
    file = folder / "tokenizer_config.json"
    settings = json.loads(file.read_text(encoding="utf-8"))
    del settings["pad_token"]
    file.write_text(json.dumps(settings), encoding="utf-8")
    bare = TransformersLLM(config)
    assert bare._tokenizer.pad_token_id is None
    assert bare._pad == bare._stops[0]
    assert bare.generate(prompts) == found


def generating(sequences, logits, beams=None):
    """A reader whose model gave these; token 0 ends, and each token's text is its number."""
    tested = Modelless()
    tested._may_think = False
    tested.ends = frozenset({0})
    masks = torch.tensor([[0, 1, 1]] + [[1, 1, 1]] * (len(sequences) - 1))
    tested._inputs = lambda prompts: {"attention_mask": masks}
    tested._thoughts = lambda prompts: []
    tested.decode = lambda tokens: "".join(str(token) for token in tokens if token)
    result = SimpleNamespace(sequences=torch.tensor(sequences), logits=logits)
    if beams is not None:
        result.beam_indices = torch.tensor(beams)
    tested._run = lambda inputs, **_: result
    return tested._generate([Prompt(str(i)) for i in range(len(sequences))])


def test_a_generations_log_probability_is_that_of_its_tokens_and_end_mark():
    generator = torch.Generator().manual_seed(1)
    logits = [torch.randn(3, 5, generator=generator) for _ in range(3)]
    logs = torch.stack(logits, 1).log_softmax(-1)  # rows, steps, tokens
    prompt = [9, 9]
    found = generating([prompt + [2, 0, 4], prompt + [1, 2, 3], prompt + [0, 1, 1]], logits)
    first, second, silent = found
    assert (first.text, first.tokens) == ("2", 2)
    assert [made.usage for made in (first, second)] == [Usage(2, 2), Usage(3, 3)]
    assert first.log_prob == pytest.approx(float(logs[0, 0, 2] + logs[0, 1, 0]), abs=1e-5)
    assert (second.text, second.tokens) == ("123", 3)
    expected = float(logs[1, 0, 1] + logs[1, 1, 2] + logs[1, 2, 3])
    assert second.log_prob == pytest.approx(expected, abs=1e-5)
    assert silent.reason == "the model ended its answer before the first word"
    assert (silent.tokens, silent.text) == (1, "")
    assert silent.log_prob == pytest.approx(float(logs[2, 0, 0]), abs=1e-5)
    broken = [logits[0], logits[1].clone(), logits[2]]
    broken[1][1] = math.nan
    found = generating([prompt + [2, 0, 4], prompt + [1, 2, 3]], [part[:2] for part in broken])
    assert found[0] == first
    assert "a log-probability is not a number" in found[1].reason


def test_of_a_beam_search_the_chosen_beams_count():
    generator = torch.Generator().manual_seed(2)
    logits = [torch.randn(4, 5, generator=generator) for _ in range(4)]  # two rows of two beams
    logs = torch.stack(logits, 1).log_softmax(-1)
    beams = [[0, 1, 1, -1], [2, 2, -1, -1]]  # the longest took three steps
    first, second = generating([[9, 1, 2, 3], [9, 4, 0, 0]], logits, beams)
    assert (first.text, first.tokens) == ("123", 3)
    expected = float(logs[0, 0, 1] + logs[1, 1, 2] + logs[1, 2, 3])
    assert first.log_prob == pytest.approx(expected, abs=1e-5)
    assert (second.text, second.tokens) == ("4", 2)
    assert second.log_prob == pytest.approx(float(logs[2, 0, 4] + logs[2, 1, 0]), abs=1e-5)


def test_answers_of_different_lengths_are_scored_with_an_end_mark():
    """Against the sum over tokens that is written out; each step's logits are known."""
    generator = torch.Generator().manual_seed(3)
    start = torch.randn(3, 6, generator=generator)
    after = torch.randn(3, 2, 6, generator=generator)
    tested = Modelless()
    tested._pad, tested._stops = 5, [0, 4]
    asked = []

    def extend(state, tokens):
        asked.append(tokens.tolist())
        return after

    tested._extend = extend
    state = State(None, torch.ones(3, 1), start)
    found = tested._score(state, [[1, 2], [3], []])
    assert asked == [[[1, 2], [3, 5], [5, 5]]]
    logs = torch.cat([start[:, None], after], 1).log_softmax(-1)
    ends = logs[..., [0, 4]].logsumexp(-1)  # any end mark will do
    assert found == pytest.approx(
        [
            float(logs[0, 0, 1] + logs[0, 1, 2] + ends[0, 2]),
            float(logs[1, 0, 3] + ends[1, 1]),
            float(ends[2, 0]),
        ],
        abs=1e-5,
    )
    assert tested._score(state, [[], [], []]) == pytest.approx(ends[:, 0].tolist(), abs=1e-5)
    assert len(asked) == 1  # nothing to read


def test_tokens_are_read_after_a_state_at_their_positions():
    given = []

    def model(takes, first=0):
        tested = Modelless()
        tested._encodes, tested._takes_positions = False, takes
        tested._family = Family(first_position=first)

        def forward(**inputs):
            given.append(inputs)
            rows, width = inputs["input_ids"].shape
            return SimpleNamespace(logits=torch.arange(rows * width * 2.0).reshape(rows, width, 2))

        tested._decoder = forward
        return tested

    mask = torch.tensor([[0, 1, 1], [1, 1, 1]])
    tokens = torch.tensor([[7, 8], [7, 8]])
    state = State("past", mask, None)
    logits = model(True)._extend(state, tokens)
    assert given[-1]["position_ids"].tolist() == [[2, 3], [3, 4]]
    assert given[-1]["attention_mask"].tolist() == [[0, 1, 1, 1, 1], [1, 1, 1, 1, 1]]
    assert (given[-1]["past_key_values"], given[-1]["use_cache"]) == ("past", True)
    assert given[-1]["input_ids"] is tokens
    assert state.mask is given[-1]["attention_mask"]
    assert torch.equal(state.logits, logits[:, -1])
    shifted = State("past", mask, None, shifts=torch.tensor([[10], [20]]))
    model(True, first=1)._extend(shifted, tokens)
    assert given[-1]["position_ids"].tolist() == [[13, 14], [24, 25]]
    across = torch.ones(2, 1, 3, 4)
    model(False)._extend(State("past", mask, None, across=across), tokens)
    assert "position_ids" not in given[-1]
    assert given[-1]["cross_attention_mask"].shape == (2, 2, 3, 4)
