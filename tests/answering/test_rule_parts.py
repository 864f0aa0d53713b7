"""The parts of decision rules: batches, keys, failures, and the words of what is refused."""

import json
import math
from types import SimpleNamespace

import pytest
from abilities import give
from hypothesis import given
from hypothesis import strategies as st
from spelling import Spelling, prompts

from ravqa.answering import rules
from ravqa.answering.answerer import Answerer, load_template
from ravqa.answering.config import AnsweringConfig, ExamplesConfig
from ravqa.answering.examples import ExamplePool
from ravqa.answering.extract import Extraction, is_shortened, short_answer
from ravqa.answering.fitting import fit
from ravqa.answering.priors import log_priors, log_softmax, log_sum
from ravqa.answering.rules import answering_config, rule_class, rule_settings
from ravqa.answering.rules import mixture as mixing
from ravqa.answering.rules.base import Case, DecisionRule, PerPassage, first_best, known, scored
from ravqa.answering.rules.mixture import Mixed, decode
from ravqa.answering.streaming import AnswerStream
from ravqa.core.errors import ContractError, PromptError, UserError
from ravqa.core.outcomes import Failure
from ravqa.core.records import Answer, Draft, Hit, Passage, Question
from ravqa.core.settings import fingerprint
from ravqa.readers.base import Generation, Prompt, Reader
from ravqa.readers.cached import CachedReader


def rule(name, **options):
    return rule_class(name)(answering_config({"decision": name, **options}))


def case(number, count, text="Q"):
    names = [f"{text}{number}/{k}" for k in range(count)]
    return Case(
        question=Question(number, text),
        prompts=tuple(prompts(names)),
        keys=tuple(f"key {name}" for name in names),
        passage_ids=tuple((name,) for name in names),
        log_priors=tuple([-math.log(count)] * count),
    )


def draft(text="a", raw=None, log_prob=-1.0, tokens=1):
    return Draft(
        text=text,
        raw=text if raw is None else raw,
        log_prob=log_prob,
        tokens=tokens,
        passage_ids=("p",),
        prompt_hash="k",
    )


# --- what a rule takes for an answer


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("top1", "there is one prompt"),
        ("none", "there is one prompt"),
        ("concat", "there is one prompt"),
        ("mixture", "several passages are decoded together"),
    ],
)
def test_rules_that_have_nothing_to_choose_are_not_asked_to(name, said):
    with pytest.raises(AssertionError, match=f"^{said}$"):
        rule(name).decide(case(1, 2), [draft(), draft()])


THOUGHT = "raise reader.max_new_tokens if it was cut short"
EMPTY = "the model ended its answer before the first word"


@pytest.mark.parametrize(
    ("raw", "off", "said"),
    [
        ("<think>hm", {}, f"the model's output is reasoning without an answer: {THOUGHT}"),
        ("<think>hm</think> ", {}, f"the model's output is reasoning without an answer: {THOUGHT}"),
        ("<think>hm</think> </s>", {}, EMPTY),
        ("</s>", {}, EMPTY),
        (" ", {"reasoning": False}, EMPTY),
        ("", {"next_example": False}, EMPTY),
        ("<think>hm", {"reasoning": False}, None),
        ("</s>", {"next_example": False}, None),
        ("<think>hm</think> a", {}, None),
    ],
)
def test_what_is_no_answer_is_said(raw, off, said):
    tested = rule("top1", extract=off)
    drafts = [draft("x", "x"), draft("short", raw, -2.0)]
    if said is None:
        found = tested.chosen(1, drafts, -3.0)
        assert found == Answer("short", drafts, "top1", raw=raw, log_prob=-3.0)
        return
    with pytest.raises(PromptError) as error:
        tested.chosen(1, drafts)
    assert str(error.value) == said
    assert tested.decided(case(1, 1), drafts[1:]) == Failure(said)
    assert tested.chosen(0, drafts).text == "x"  # the other one is not looked at


def test_the_defaults_of_a_rule_of_ones_own():
    class First(DecisionRule):
        def groups(self, found):
            return [[pair] for pair in found]

        def decide(self, case, drafts):
            return self.chosen(0, drafts)

    tested = First(First.Config())
    assert tested.problem(Spelling()) == ""
    assert tested.chooses
    assert tested.log_priors([(9.0, 1.0), None, (0.0, 5.0)]) == [-math.log(3)] * 3
    made = tested.single(case(1, 1), Generation("Koala.", -2.0, 3))
    assert (made.text, made.raw, made.log_prob) == ("koala", "Koala.", -2.0)
    assert made.drafts[0].tokens == 3


@pytest.mark.parametrize("when", ["when built", "from groups"])
def test_a_rule_of_somebody_else_that_raises_is_named(when, monkeypatch):
    class Broken(DecisionRule):
        def groups(self, found):
            raise RuntimeError("no such table\nmore")

        def decide(self, case, drafts):
            raise AssertionError

    tested = object.__new__(Answerer)
    tested.rule = Broken(Broken.Config())
    monkeypatch.setattr(rules, "rule_class", {"broken": Broken}.__getitem__)
    call, given = tested._groups, []
    if when == "when built":
        monkeypatch.setattr(Broken, "__init__", Broken.groups)
        call, given = rules.build_rule, SimpleNamespace(decision="broken")
    with pytest.raises(ContractError) as error:
        call(given)
    assert str(error.value) == (
        f"the decision rule {__name__}.{Broken.__qualname__} breaks its contract: it raises "
        f"RuntimeError {when}: no such table"
    )


def test_whether_there_can_be_several_prompts():
    class Each(PerPassage):
        def decide(self, case, drafts):
            return self.chosen(0, drafts)

    for passages, empty, several in ((1, False, False), (2, False, True), (1, True, True)):
        tested = Each(Each.Config(passages=passages, empty_passage=empty))
        assert tested.chooses is several
        assert tested.groups(["a", "b"]) == [["a"], ["b"]] + [[]] * empty
    assert not rule("concat", passages=3).chooses


def test_small_parts_of_rules():
    assert first_best([1.0, 3.0, 3.0, 2.0]) == 1
    assert first_best([-math.inf, -math.inf]) == 0
    assert known(draft(log_prob=0.0)) == 0.0
    with pytest.raises(PromptError) as error:
        known(draft(log_prob=None))
    assert str(error.value) == "the reader returned a generation without its log-probability"
    found = scored([draft(), draft("b")], [1.5, 2.5], [0.0, math.log(0.25)])
    assert [(d.text, d.score, d.prior) for d in found] == [("a", 1.5, 1.0), ("b", 2.5, 0.25)]
    for scores, priors in (([1.0, 2.0], [0.0]), ([1.0], [0.0, 0.0])):
        with pytest.raises(ValueError, match="zip"):
            scored([draft()], scores, priors)


def test_priors_of_no_score_and_of_no_passage():
    assert log_priors([None, None], "scores", 1.0) == pytest.approx([-math.log(2)] * 2)
    assert log_priors([4.0, None, None], "scores", 2.0) == pytest.approx([-math.log(3)] * 3)
    assert log_softmax([-math.inf] * 3, 2.0) == [-math.log(3)] * 3
    assert log_sum([]) == log_sum([-math.inf]) == -math.inf
    assert log_sum([math.log(2), math.log(3), -math.inf]) == pytest.approx(math.log(5))
    assert log_sum([1000.0, 1000.0]) == pytest.approx(1000 + math.log(2))


def test_the_longest_text_that_is_searched_whole():
    rules = Extraction(**dict.fromkeys(Extraction.model_fields, False))
    whole = "a" * 4000 + "b" * 4000
    assert short_answer(whole, rules) == whole
    assert short_answer("a" * 4000 + "x" + "b" * 4000, rules) == f"{whole[:4000]}\n{whole[4000:]}"
    for thinking, expected in (("", True), ("<think>" + "x" * 9000 + "</think>", False)):
        assert is_shortened(f"{thinking}{whole}"[: 8000 + len(thinking)], Extraction()) is False
        assert is_shortened(f"{thinking}{whole}y", Extraction()) is True
        assert is_shortened(thinking + "y", Extraction()) is False
        assert is_shortened(" " * 8001 + "y", Extraction()) is False
        assert is_shortened(f"{thinking}y" + "z" * 8000, Extraction(reasoning=expected)) is True


# --- mixtures


@given(st.lists(st.integers(2, 5), max_size=12), st.integers(1, 12))
def test_batches_of_mixtures_are_as_full_as_they_may_be(counts, most):
    tested = rule("mixture", batch_size=most)
    batches = list(tested._batches([case(i, n) for i, n in enumerate(counts)]))
    assert [i for batch in batches for i in batch] == list(range(len(counts)))
    sizes = [sum(counts[i] for i in batch) for batch in batches]
    assert all(size <= most or len(batch) == 1 for size, batch in zip(sizes, batches, strict=True))
    for size, after in zip(sizes, batches[1:], strict=False):
        assert size + counts[after[0]] > most


def test_a_mixture_is_kept_under_the_keys_of_its_prompts_and_their_priors(fresh_cache):
    """Kept decodings are found again by later versions, until the number of their form changes."""
    cases = [case(1, 2), case(2, 1), case(3, 3)]
    asked = []

    class Watched(CachedReader):
        def recall(self, keys, make, out, back):
            asked.append(list(keys))
            return super().recall(keys, make, out, back)

    rule("mixture", prune=0.5).answer(cases, Watched(Spelling()))
    assert asked == [
        [fingerprint("mixture/1", c.keys, c.log_priors, 0.5) for c in (cases[0], cases[2])]
    ]


def test_a_mixture_without_a_word_is_not_kept():
    mixed = Mixed("ab", -1.5, 3, (-1.0, None), (1.0, 0.0))
    kept = mixing._out(mixed)
    assert kept == ["ab", -1.5, 3, (-1.0, None), (1.0, 0.0)]
    assert mixing._back(["ab", -1.5, 3, [-1.0, None], [1.0, 0.0]]) == mixed
    assert mixing._out(Mixed(" ", -1.5, 3, (), ())) is None
    assert mixing._back(["\u200b", -1.5, 3, [], []]) is None


def test_mixtures_and_questions_with_one_passage_keep_their_places(fresh_cache):
    reader = Spelling(seed=3)
    cases = [case(i, n) for i, n in enumerate((1, 2, 1, 3, 2, 1))]
    found = rule("mixture").answer(cases, CachedReader(reader))
    for own, answer in zip(cases, found, strict=True):
        [alone] = rule("mixture").answer([own], CachedReader(reader, keep=False))
        assert answer == alone
        if isinstance(answer, Answer):
            assert answer.joint is (len(own.prompts) > 1)
            assert [d.prompt_hash for d in answer.drafts] == list(own.keys)
            assert [d.passage_ids for d in answer.drafts] == list(own.passage_ids)


def test_a_mixture_that_says_nothing_is_no_answer():
    table = {(f"Q1/{k}", ""): [0.9, 0.05, 0.03, 0.02] for k in (0, 1)}
    found = rule("mixture").answer([case(1, 2)], CachedReader(Spelling(table), keep=False))
    assert found == [Failure(EMPTY)]


def test_decoding_stops_where_every_question_has_ended():
    table = {("x", ""): [0.9, 0.05, 0.03, 0.02], ("y", ""): [0.1, 0.7, 0.1, 0.1]}
    table |= {("y", "a"): [0.8, 0.1, 0.05, 0.05]}
    reader = Spelling(table)
    first, second = decode([(prompts("x"), [0.0]), (prompts("y"), [0.0])], reader)
    assert reader.rows == [["x", "y"], ["y"]]
    assert (first.text, first.tokens, second.text, second.tokens) == ("", 1, "a", 2)
    assert first.likelihoods == (pytest.approx(math.log(0.9)),)
    assert second.log_prob == pytest.approx(math.log(0.7 * 0.8))
    assert decode([], reader) == []


def test_a_question_that_failed_is_not_decoded_on():
    class Failing(Spelling):
        def next_token_logprobs(self, prompts, prefixes):
            made = super().next_token_logprobs(prompts, prefixes)
            return [
                Failure("gone", fatal=True)
                if p.text == "z"
                else Failure("too long")
                if p.text == "y" and prefix
                else row
                for p, prefix, row in zip(prompts, prefixes, made, strict=True)
            ]

    reader = Failing(seed=1)
    asked = [(prompts(names), [-math.log(2)] * 2) for names in ("xy", "yz", "xx")]
    found = decode(asked, reader)
    assert found[:2] == [Failure("too long"), Failure("gone", fatal=True)]
    assert found[2] == decode(asked[2:], Spelling(seed=1))[0]
    assert reader.rows[1] == ["x", "y", "x", "x"]
    assert all(rows == ["x", "x"] for rows in reader.rows[2:])


# --- thorough marginals


@pytest.mark.parametrize(
    ("failures", "expected"),
    [
        ({("Q1/0", "a"): Failure("one")}, Failure("one")),
        ({("Q1/1", "b"): Failure("one"), ("Q1/0", "b"): Failure("two")}, Failure("two")),
        (
            {("Q1/0", "a"): Failure("one"), ("Q1/1", "b"): Failure("all", fatal=True)},
            Failure("all", fatal=True),
        ),
    ],
)
def test_a_score_that_fails_costs_its_question(fresh_cache, failures, expected):
    class Scoring(Spelling):
        def generate(self, prompts):
            return [Generation("b" if p.text[-1] == "1" else "a", -1.0, 2) for p in prompts]

        def score(self, prompts, answers):
            self.asked = [(p.text, a) for p, a in zip(prompts, answers, strict=True)]
            return [failures.get(pair, -1.0) for pair in self.asked]

    reader = Scoring()
    tested = rule("marginal", marginal="thorough", passages=2)
    cases = [case(1, 2), case(2, 1), case(3, 2)]
    first, second, third = tested.answer(cases, CachedReader(reader, keep=False))
    assert first == expected
    assert (second.text, third.text) == ("a", "a")  # of equal ones the first
    names = [(f"Q{q}/{k}", text) for q in (1, 3) for text in "ab" for k in (0, 1)]
    assert reader.asked == names


def test_a_marginal_without_any_probability_is_not_answered(fresh_cache):
    class Mute(Spelling):
        def generate(self, prompts):
            return [Generation("a", None, 0) for _ in prompts]

    [found] = rule("marginal", passages=2).answer([case(1, 2)], CachedReader(Mute(), keep=False))
    assert found == Failure("the reader returned a generation without its log-probability")


# --- prompts that fit


class Counting(Reader):
    fingerprint = weights = "counting"
    max_new_tokens = 4

    def __init__(self, context, thinking=0):
        give(self, ("count",))
        self.context = context
        self.max_thinking_tokens = thinking
        self.counted = []

    def generate(self, prompts):
        raise AssertionError

    def count_tokens(self, prompts):
        self.counted.append([p.text for p in prompts])
        return [Failure("no") if "?" in p.text else len(p.text) for p in prompts]


def test_thinking_takes_room_and_what_cannot_be_counted_keeps_its_passages():
    groups = [["aa", "bb", "cc"], [], ["d?", "ee"], ["f"]]

    def render(place, group, pictures):
        assert not pictures
        return Prompt(f"{place}{''.join(group)}")

    reader = Counting(context=4 + 3 + 5, thinking=3)
    found = fit(groups, render, reader)
    assert [group for group, _ in found] == [["aa", "bb"], [], ["d?", "ee"], ["f"]]
    assert [p.text for _, p in found] == ["0aabb", "1", "2d?ee", "3f"]
    # What fits, or has nothing left to lose, is not counted again.
    assert reader.counted == [["0aabbcc", "2d?ee", "3f"], ["0aabb"]]
    assert groups[0] == ["aa", "bb", "cc"]  # as it was
    tight = Counting(context=4 + 1)
    assert [group for group, _ in fit(groups, render, tight)] == [[], [], ["d?", "ee"], []]


def test_pictures_are_dropped_before_passages_the_last_first():
    """A letter and a picture are a token each."""

    class Seeing(Counting):
        def count_tokens(self, prompts):
            return [len(p.text) + len(p.images) for p in prompts]

    def render(place, group, pictures):
        shown = tuple(name.encode() for name in group if name.isupper())
        return Prompt("".join(group), b"photo", pictures=shown[:pictures])

    def fitted(room, pictures):
        [(group, prompt)] = fit([["A", "b", "C"]], render, Seeing(context=4 + room), pictures)
        return group, prompt.images

    photo = (b"photo",)
    assert fitted(6, 2) == (["A", "b", "C"], (*photo, b"A", b"C"))
    assert fitted(6, 1) == (["A", "b", "C"], (*photo, b"A"))
    assert fitted(5, 2) == (["A", "b", "C"], (*photo, b"A"))
    assert fitted(4, 2) == (["A", "b", "C"], photo)
    assert fitted(2, 2) == (["A"], photo)
    assert fitted(0, 2) == ([], photo)


# --- the answerer


@pytest.fixture
def bare(tmp_path, fresh_cache):
    path = tmp_path / "bare.jinja"
    path.write_text("{{ question }}{% for p in passages %}[{{ p.text }}]{% endfor %}", "utf-8")
    return str(path)


def pairs(names):
    return [(Hit(n, 1.0, i), Passage(n, n)) for i, n in enumerate(names, 1)]


def test_an_answerer_is_refused_with_the_reason(bare, tmp_path):
    class Mute(Spelling):
        gives_log_probs = False
        streams = False

    with pytest.raises(UserError) as error:
        Answerer(answering_config({"prompt": bare, "passages": 2}), Mute())
    assert str(error.value) == (
        "answering.decision joint_max compares log-probabilities, which this reader does not "
        "give: choose concat, vote or mixture"
    )
    top = Answerer(answering_config({"prompt": bare, "decision": "top1"}), Mute())
    with pytest.raises(UserError) as error:
        top.stream(Question(1, "q"), [])
    assert str(error.value) == "the reader a table does not stream"
    (tmp_path / "shots.jinja").write_text("{{ examples }}", "utf-8")
    with pytest.raises(UserError) as error:
        load_template(AnsweringConfig(prompt=str(tmp_path / "shots.jinja")))
    assert str(error.value) == (
        "prompt shots.jinja shows examples: set answering.examples, for instance "
        "{dataset: okvqa, split: train, count: 4}"
    )
    with pytest.raises(UserError) as error:
        load_template(AnsweringConfig(prompt=bare, examples=ExamplesConfig()))
    assert str(error.value) == (
        "answering.examples is set, but prompt bare.jinja shows no examples"
    )


def test_only_rules_that_do_not_choose_can_stream(bare):
    class Streaming(Spelling):
        streams = True

        def stream(self, prompt):
            yield from ("Ko", "ala.")

    vote = answering_config({"prompt": bare, "decision": "vote", "passages": 2})
    with pytest.raises(UserError) as error:
        Answerer(vote, Streaming()).check_streams()
    assert str(error.value) == (
        "answering.decision vote needs the answers for all passages before it chooses: only top1, "
        "concat and none can stream"
    )
    tested = Answerer(answering_config({"prompt": bare, "decision": "concat"}), Streaming())
    tested.check_streams()
    stream = tested.stream(Question(1, "q"), pairs("ab"))
    assert stream.answer is None
    assert list(stream) == ["Ko", "ala."]
    assert (stream.answer.text, stream.answer.cut) == ("koala", 0)


def test_a_streams_answer_is_extracted_once_at_its_end():
    made = []

    def extract(text):
        made.append(text)
        return Answer(text, [], "top1")

    closed = []

    def pieces():
        try:
            yield "a "
            yield "b"
        finally:
            closed.append(True)

    stream = AnswerStream(pieces(), extract)
    assert (next(stream), stream.answer, made) == ("a ", None, [])
    assert list(stream) == ["b"]
    assert list(stream) == []
    assert made == ["a b"]
    assert stream.answer.text == "a b"
    stopped = AnswerStream(pieces(), extract)
    next(stopped)
    stopped.close()
    assert len(closed) == 2
    assert stopped.answer is None


def test_the_prompts_of_the_last_call_are_kept_by_their_hashes(bare):
    tested = Answerer(answering_config({"prompt": bare, "passages": 2}), Spelling())
    tested.answer([Question(1, "Q")], [pairs("x")])
    [answer] = tested.answer([Question(2, "R")], [pairs("yz")])
    assert tested.asked == {
        d.prompt_hash: text for d, text in zip(answer.drafts, ("R[y]", "R[z]"), strict=True)
    }


def test_a_template_that_fails_for_one_question_costs_it_alone(tmp_path, fresh_cache):
    path = tmp_path / "p.jinja"
    path.write_text("{{ question }}{{ passages[question | length - 1].text }}", "utf-8")
    tested = Answerer(answering_config({"prompt": str(path), "decision": "top1"}), Spelling())
    questions = [Question(i, "Q" * n) for i, n in enumerate((1, 2, 1, 3))]
    found = tested.answer(questions, [pairs("x")] * 4)
    assert [isinstance(outcome, Failure) for outcome in found] == [False, True, False, True]
    assert found[1].reason == "prompt p.jinja: list object has no element 1"
    assert found[3].reason == "prompt p.jinja: list object has no element 2"


def test_an_answerers_fingerprint_is_the_same_in_every_version(bare):
    """It changes with what can change an answer, and with the number of its form."""
    config = answering_config({"prompt": bare, "passages": 2})
    tested = Answerer(config, Spelling())
    # Settings that count only where they are used.
    later = {"passage_images", "article_images", "article_folder", "self_check"}
    settings = config.model_dump(exclude={"cache", "prompt", "examples", "batch_size", *later})
    source = "{{ question }}{% for p in passages %}[{{ p.text }}]{% endfor %}"
    assert tested.fingerprint == fingerprint("answerer/3", settings, source, "spelling/1")
    assert {"decision", "passages", "extract", "prior", "temperature"} <= settings.keys()


# --- examples


def pool(path, **options):
    defaults = {"dataset": "jsonl", "data": path, "split": None, "choose": "first", "count": 2}
    return ExamplePool(ExamplesConfig(**{**defaults, **options}))


@pytest.fixture
def own(tmp_path):
    path = tmp_path / "own.jsonl"
    rows = [{"question_id": i, "question": f"Q{i}?", "answers": ["a"]} for i in (2, 3, 4)]
    path.write_text("\n".join(map(json.dumps, rows)), "utf-8")
    return path


def test_too_few_examples_are_counted(own):
    tested = pool(own, count=4)
    with pytest.raises(UserError) as error:
        tested.choose([Question("3", "q")])  # 3 and "3" are one id
    assert str(error.value) == (
        f"answering.examples: count is 4, but {tested.label} has only 2 answered questions about "
        "images other than those asked about"
    )
    assert tested.label.startswith("own")
    assert [q.question_id for q in pool(own, count=3).choose([])] == [2, 3, 4]
    blank = [
        Question(i, "q", answers=answers) for i, answers in enumerate([(), (" ",), (" ", "a")])
    ]
    answered = pool(own, count=1)
    answered._questions = blank
    assert answered.choose([]) == blank[2:]


def test_examples_are_not_chosen_again_unless_one_is_asked(own, monkeypatch):
    tested = pool(own, count=1)
    first = tested.choose([])
    monkeypatch.setattr(ExamplePool, "_pick", lambda self: pytest.fail("chosen again"))
    assert tested.choose([Question(4, "q"), Question(9, "q")]) is first
    monkeypatch.undo()
    assert [q.question_id for q in tested.choose([Question(2, "q")])] == [3]


def test_images_that_cannot_be_read_are_the_same_as_none(own, tmp_path):
    tested = pool(own)
    asked = [Question(9, "q", image=tmp_path / "gone.jpg"), Question(10, "q", image=b"")]
    assert [q.question_id for q in tested.choose(asked)] == [2, 3]


# --- defaults, which decide results where nothing is set

RULES_OF_EXTRACTION = (
    "reasoning next_example marked markdown first_line sentence strip_end lower".split()
)
SHARED = {
    "choices": "named",
    "prompt": "short-answer",
    "passages": 1,
    "passage_images": 0,
    "article_images": None,
    "article_folder": None,
    "examples": None,
    "extract": dict.fromkeys(RULES_OF_EXTRACTION, True),
    "self_check": None,
    "cache": True,
}
WEIGHED = {"empty_passage": False, "prior": "scores", "temperature": 1.0}


@pytest.mark.parametrize(
    ("name", "own"),
    [
        ("none", {}),
        ("top1", {}),
        ("concat", {}),
        ("joint_max", WEIGHED),
        ("marginal", {**WEIGHED, "marginal": "fast", "merge": "vqa"}),
        ("vote", {"empty_passage": False, "merge": "vqa"}),
        ("likeliest_choice", WEIGHED),
        ("mixture", {**WEIGHED, "prune": None, "batch_size": 16}),
    ],
)
def test_the_defaults_of_each_rule(name, own):
    found = answering_config({"decision": name}).model_dump()
    assert found == {**SHARED, "decision": name, **own}
    assert answering_config({}).decision == "joint_max"


def test_the_defaults_of_examples():
    assert ExamplesConfig().model_dump() == {
        "dataset": "okvqa",
        "data": None,
        "split": "train",
        "options": {},
        "count": 4,
        "choose": "random",
        "seed": 0,
        "passages": 1,
    }


def test_each_question_has_its_passages(bare):
    tested = Answerer(answering_config({"prompt": bare}), Spelling())
    for questions, passages in ((1, 2), (2, 1)):
        with pytest.raises(ValueError, match="zip"):
            tested.answer([Question(i, "Q") for i in range(questions)], [[]] * passages)


@pytest.mark.parametrize("counts", [[5], [5, 5, 5]])
def test_a_reader_counts_every_prompt(counts):
    reader = Counting(context=100)
    reader.count_tokens = lambda prompts: counts
    with pytest.raises(ValueError, match="zip"):
        fit([["a"], ["b"]], lambda _, group, __: Prompt("".join(group)), reader)


def test_settings_are_named_where_nothing_else_is_said():
    with pytest.raises(UserError, match=r"^answering\.decision: no decision rule 'x': "):
        rule_class("x")
    with pytest.raises(UserError, match=r"^here: no decision rule 'x': "):
        rule_class("x", "here")
    for where, named in (("answering", ()), ("here", ("here",))):
        with pytest.raises(UserError, match=rf"^{where}: key 'decision': no decision rule 'x': "):
            rule_settings({"decision": "x"}, *named)
        with pytest.raises(UserError, match=rf"^{where}: key 'temperature': "):
            rule_settings({"decision": "vote", "temperature": -1}, *named)
        with pytest.raises(UserError, match=rf"^{where}: key 'passages': "):
            answering_config({"passages": 0}, *named)
    config, values = rule_settings({"decision": "vote", "temperature": 2, "merge": "exact"})
    assert config is rule_class("vote").Config
    assert values == {"decision": "vote", "merge": "exact"}
    assert rule_settings({}) == (rule_class("joint_max").Config, {})
