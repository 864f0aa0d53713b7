"""Prompts, extraction, the decision over passages by hand, and the cache of generations."""

import math
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ravqa.answering.answerer import Answerer, AnsweringConfig, log_softmax
from ravqa.answering.extract import Extraction, short_answer
from ravqa.answering.prompt import PromptTemplate
from ravqa.config import validate
from ravqa.errors import UserError
from ravqa.paths import PROMPTS
from ravqa.readers.base import Generation
from ravqa.records import Description, Hit, Passage, Question, Tag

KOALA = Passage("k", "The koala eats leaves.", title="Koala")
TOWER = Passage("t", "A tower of stone.")
DESCRIPTION = Description(
    tags=(Tag(("koala", "koala bear"), 0.8), Tag(("tree",), 0.1)),
    caption="a koala in a tree",
    ocr=("ZOO", "EXIT"),
)
SEEN = Question(7, "What does it eat?", description=DESCRIPTION, instruction="Be brief.")
PLAIN = Question(8, "What does it eat?")


# --- prompt templates


def test_a_template_gets_what_is_documented():
    template = PromptTemplate(
        "{{ instruction }}|{{ question }}|{{ caption }}"
        "|{{ tags | join(',') }}|{{ ocr | join(',') }}"
        "{% for p in passages %}|{{ p.title }}/{{ p.text }}/{{ p.content }}{% endfor %}"
    )
    assert template.render(SEEN, [KOALA, TOWER]) == (
        "Be brief.|What does it eat?|a koala in a tree|koala,tree|ZOO,EXIT"
        "|Koala/The koala eats leaves./Koala: The koala eats leaves."
        "|None/A tower of stone./A tower of stone."
    )
    assert template.render(PLAIN, []) == "|What does it eat?|||"


def test_spaces_at_the_end_are_cut_and_nothing_is_escaped():
    template = PromptTemplate("  {{ question }} \n Answer: \n\n")
    assert template.render(Question(1, 'a < b & "c"?'), []) == '  a < b & "c"? \n Answer:'


def test_data_are_never_read_as_template():
    text = "{{ 7 * 7 }} {% for x in y %} {# #}"
    template = PromptTemplate("{{ question }}/{{ passages[0].content }}")
    rendered = template.render(Question(1, text), [Passage("p", text, title=text)])
    assert rendered == f"{text}/{text}: {text}"


@pytest.mark.parametrize(
    "source",
    [
        "{{ question.__class__ }}",
        "{{ question.__class__.__mro__[1].__subclasses__() }}",
        "{{ ''.__class__ }}",
        "{{ question['__class__'] }}",
        "{{ question | attr('__class__') }}",
        "{{ '{0.__class__}'.format(question) }}",
        "{{ '{x.__class__}'.format_map({'x': question}) }}",
        "{{ passages[0].__class__ }}",
        "{{ passages[0].text.__class__.__base__ }}",
        "{{ passages.__init__.__globals__ }}",
        "{{ lipsum.__globals__['os'].system('true') }}",
        "{{ cycler.__init__.__globals__ }}",
        "{{ self.__init__.__globals__ }}",
        "{{ self._TemplateReference__context }}",
        "{{ passages.append(1) }}",
        "{{ passages[0].clear() }}",
        "{{ passages[0].update({'text': 'x'}) }}",
        "{{ tags.clear() }}",
        "{{ passages[0].image.unlink() }}",
        "{{ passages[0].extra }}",
    ],
)
def test_the_sandbox_refuses_tricks_with_attributes(source, tmp_path):
    precious = tmp_path / "photo.jpg"
    precious.write_bytes(b"x")
    passage = Passage("p", "text", image=precious, extra={"key": "value"})
    with pytest.raises(UserError, match="prompt evil"):
        PromptTemplate(source, name="evil").render(SEEN, [passage])
    assert precious.read_bytes() == b"x"
    assert passage.extra == {"key": "value"}


@pytest.mark.parametrize(
    "source",
    [
        "{{ 1 / 0 }}",
        "{{ tags + 1 }}",
        "{{ passages[5].text }}",
        "{{ passages[0].texts }}",
        "{{ question.index('no such text') }}",
        "{% include '/etc/passwd' %}",
        "{% import 'other.jinja' as other %}",
        "{{ range(10 ** 9) | list }}",
        "{% macro again() %}{{ again() }}{% endmacro %}{{ again() }}",
    ],
)
def test_a_template_that_fails_is_one_clear_error(source):
    with pytest.raises(UserError, match="prompt broken") as caught:
        PromptTemplate(source, name="broken").render(SEEN, [KOALA])
    assert "\n" not in str(caught.value)


def test_an_unknown_variable_is_found_when_the_template_is_loaded():
    with pytest.raises(UserError, match=r"unknown variable 'pasages': did you mean passages "):
        PromptTemplate("{% if tags %}{{ pasages }}{% endif %}", name="x")
    # names of the template's own, and Jinja's functions, are no unknown variables
    PromptTemplate("{% set a = 1 %}{% for i in range(2) %}{{ a + i + loop.index }}{% endfor %}")


def test_bad_syntax_is_named_with_its_line():
    with pytest.raises(UserError, match=r"prompt x, line 3: "):
        PromptTemplate("one\ntwo\n{% for %}\n", name="x")
    with pytest.raises(UserError, match=r"line 2: .*nosuchfilter"):
        PromptTemplate("one\n{{ question | nosuchfilter }}", name="x")


def test_templates_are_loaded_by_name_or_file(tmp_path):
    assert PromptTemplate.load("short-answer").source == (PROMPTS / "short-answer.jinja").read_text(
        encoding="utf-8"
    )
    own = tmp_path / "own.jinja"
    own.write_text("Q: {{ question }}", encoding="utf-8")
    assert PromptTemplate.load(str(own)).render(PLAIN, []) == "Q: What does it eat?"
    with pytest.raises(UserError, match=r"no prompt 'short-anser': did you mean short-answer\?"):
        PromptTemplate.load("short-anser")
    with pytest.raises(UserError, match="cannot be read"):
        PromptTemplate.load(str(tmp_path / "gone.jinja"))
    with pytest.raises(UserError, match="no prompt"):
        PromptTemplate.load("../pyproject")


EXAMPLES = [
    (
        "Tulip: The tulip is mainly grown in the Netherlands. "
        "Tulips are spring flowers that grow from bulbs.",
        "tulip",
        "Which country are these flowers mainly grown in?",
        "the Netherlands",
    ),
    (
        "High-speed train: The high-speed train reaches a speed of 300 kilometres an hour. "
        "In Japan it has run since 1964.",
        "bullet train",
        "How fast is this vehicle?",
        "300 kilometres an hour",
    ),
    (
        "Church bell: The main material of the church bell is bronze. "
        "It is cast in a mould of clay and rung with a rope.",
        "church bell",
        "What is the main material of this object?",
        "bronze",
    ),
]


def shots(passages, seen):
    """The three examples, with passages and seen objects only if the question has them."""
    return "".join(
        (f"Passage: {passage}\n" if passages else "")
        + f"Question: {question}{f' ({tag})' if seen else ''}\nAnswer: {answer}\n\n"
        for passage, tag, question, answer in EXAMPLES
    )


def test_the_short_answer_prompt_by_hand():
    template = PromptTemplate.load("short-answer")
    assert template.render(SEEN, [KOALA]) == shots(passages=True, seen=True) + (
        "Passage: Koala: The koala eats leaves.\nQuestion: What does it eat? (koala)\nAnswer:"
    )
    assert template.render(SEEN, [KOALA, TOWER]) == shots(passages=True, seen=True) + (
        "Passage: Koala: The koala eats leaves.\nPassage: A tower of stone.\n"
        "Question: What does it eat? (koala)\nAnswer:"
    )
    assert template.render(PLAIN, [TOWER]) == shots(passages=True, seen=False) + (
        "Passage: A tower of stone.\nQuestion: What does it eat?\nAnswer:"
    )
    assert template.render(SEEN, []) == shots(passages=False, seen=True) + (
        "Question: What does it eat? (koala)\nAnswer:"
    )
    assert template.render(PLAIN, []) == shots(passages=False, seen=False) + (
        "Question: What does it eat?\nAnswer:"
    )


# --- extraction


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        (" Eucalyptus leaves.\nPassage: ...", "eucalyptus leaves"),
        ("\n\n  Paris\nRome", "paris"),
        ("Paris\r\nRome", "paris"),
        ("Answer: Paris", "paris"),
        ("short ANSWER : Paris!", "paris"),
        ("The answer is: 'Paris'.", "paris"),
        ("the answer is Paris, France;", "paris, france"),
        ("The answer isotope", "the answer isotope"),
        ("An answer: 5", "an answer: 5"),  # only at the beginning
        ("\u201cMona Lisa\u201d", "mona lisa"),
        ("St. Peter's", "st. peter's"),
        ("3.5 m.", "3.5 m"),
        ("20%", "20%"),
        ("", ""),
        (" \n ", ""),
        ("...", ""),
    ],
)
def test_extraction_with_all_rules(raw, expected):
    assert short_answer(raw, Extraction()) == expected


def test_each_extraction_rule_can_be_switched_off():
    raw = ' Answer: "Paris" \nRome. '
    assert short_answer(raw, Extraction(first_line=False)) == 'paris" \nrome'
    assert short_answer(raw, Extraction(strip_lead=False)) == 'answer: "paris'
    assert short_answer(raw, Extraction(strip_end=False)) == '"paris"'
    assert short_answer(raw, Extraction(lower=False)) == "Paris"
    off = Extraction(first_line=False, strip_lead=False, strip_end=False, lower=False)
    assert short_answer(raw, off) == raw.strip()


# --- log_softmax


def test_log_softmax_by_hand():
    assert log_softmax([0.0, math.log(3)]) == pytest.approx([math.log(0.25), math.log(0.75)])
    assert log_softmax([0.0, 2 * math.log(3)], 2.0) == pytest.approx(
        [math.log(0.25), math.log(0.75)]
    )
    assert log_softmax([5.0]) == [0.0]
    assert log_softmax([1.0] * 4) == pytest.approx([-math.log(4)] * 4)
    # a passage without vectors scores minus infinity: it gets no probability
    assert log_softmax([1.0, -math.inf]) == [0.0, -math.inf]


@given(
    st.lists(st.floats(-1e4, 1e4), min_size=1, max_size=30),
    st.floats(0.01, 100),
    st.floats(-1e4, 1e4),
)
def test_log_softmax_is_a_distribution_whatever_the_size_of_scores(scores, temperature, shift):
    values = log_softmax(scores, temperature)
    assert math.fsum(math.exp(v) for v in values) == pytest.approx(1)
    assert all(v <= 1e-12 for v in values)
    shifted = log_softmax([s + shift for s in scores], temperature)
    assert shifted == pytest.approx(values, rel=1e-6, abs=1e-6 / temperature)
    for i in range(1, len(scores)):
        difference = (scores[i] - scores[0]) / temperature
        assert values[i] - values[0] == pytest.approx(difference, rel=1e-6, abs=1e-6)


# --- the decision


class Scripted:
    """A reader that answers by rule and keeps what it was given."""

    weights = "a script"

    def __init__(self, rule=None, *, abilities=("log_probs",), fingerprint="script/1"):
        self.rule = rule or (lambda text: Generation(f" answer {len(text)}.", -1.0, 2))
        self.abilities = frozenset(abilities)
        self.fingerprint = fingerprint
        self.seen = []
        self.calls = 0

    def generate(self, prompts):
        self.calls += 1
        self.seen += prompts
        return [self.rule(p.text) for p in prompts]

    def score(self, prompts, answers):
        raise AssertionError("no decision rule here scores answers")


@pytest.fixture
def prompt_file(tmp_path, fresh_cache):
    path = tmp_path / "bare.jinja"
    path.write_text(
        "{{ question }}{% for p in passages %}[{{ p.text }}]{% endfor %}", encoding="utf-8"
    )
    return str(path)


def found(*pairs):
    """Retrieved passages: (text and id, score), best first."""
    return [
        (Hit(text, score, rank), Passage(text, text)) for rank, (text, score) in enumerate(pairs, 1)
    ]


def by_passage(**generations):
    """A reader whose answer depends on the one passage in the prompt."""

    def rule(text):
        [name] = [n for n in generations if f"[{n}]" in text]
        return Generation(*generations[name])

    return Scripted(rule)


def answerer(reader, prompt, **options):
    options.setdefault("decision", "joint_max")
    return Answerer(validate(AnsweringConfig, {"prompt": prompt, **options}, "answering"), reader)


def test_joint_max_by_hand(prompt_file):
    reader = by_passage(a=(" Apple.", -3.0, 3), b=(" Bread.", -0.2, 2), c=(" Cake", -9.0, 1))
    tested = answerer(reader, prompt_file, passages=3)
    [answer] = tested.answer([PLAIN], [found(("a", 2.0), ("b", 1.0), ("c", 0.0))])
    # log softmax(2, 1, 0) = 2, 1, 0 - log(e^2 + e + 1); plus -3/3, -.2/2, -9/1
    norm = math.log(math.e**2 + math.e + 1)
    assert [d.score for d in answer.drafts] == pytest.approx(
        [2 - norm - 1.0, 1 - norm - 0.1, 0 - norm - 9.0]
    )
    assert answer.text == "apple"
    assert answer.decision == "joint_max"
    assert [d.text for d in answer.drafts] == ["apple", "bread", "cake"]
    assert [d.raw for d in answer.drafts] == [" Apple.", " Bread.", " Cake"]
    assert [d.passage_ids for d in answer.drafts] == [("a",), ("b",), ("c",)]
    assert [(d.log_prob, d.tokens) for d in answer.drafts] == [(-3.0, 3), (-0.2, 2), (-9.0, 1)]


def test_a_high_temperature_makes_the_passages_equal(prompt_file):
    reader = by_passage(a=("apple", -3.0, 3), b=("bread", -0.2, 2))
    tested = answerer(reader, prompt_file, passages=2, temperature=10)
    [answer] = tested.answer([PLAIN], [found(("a", 2.0), ("b", 1.0))])
    # log softmax(.2, .1) = -.6444, -.7444: now the better generation wins
    assert [d.score for d in answer.drafts] == pytest.approx([-1.6444, -0.8444], abs=1e-4)
    assert answer.text == "bread"


def test_a_long_answer_is_not_punished_for_its_length(prompt_file):
    reader = by_passage(long=("a long answer", -2.0, 10), short=("short", -1.0, 1))
    tested = answerer(reader, prompt_file, passages=2)
    [answer] = tested.answer([PLAIN], [found(("short", 1.0), ("long", 1.0))])
    assert answer.text == "a long answer"


def test_equal_answers_are_not_added_up(prompt_file):
    reader = by_passage(a=("one", -0.5, 1), b=("two", -0.6, 1), c=("two", -0.6, 1))
    tested = answerer(reader, prompt_file, passages=3)
    [answer] = tested.answer([PLAIN], [found(("b", 0.0), ("c", 0.0), ("a", 0.0))])
    assert answer.text == "one"


def test_of_equal_scores_the_better_passage_wins(prompt_file):
    reader = by_passage(a=("one", -0.5, 1), b=("two", -0.5, 1))
    tested = answerer(reader, prompt_file, passages=2)
    [answer] = tested.answer([PLAIN], [found(("b", 0.3), ("a", 0.3))])
    assert answer.text == "two"


def test_questions_with_different_numbers_of_passages_are_kept_apart(prompt_file):
    reader = Scripted(lambda text: Generation(text, -1.0, 1))
    tested = answerer(reader, prompt_file, passages=2)
    questions = [Question(i, f"q{i}") for i in range(4)]
    retrieved = [
        found(("a", 1.0), ("b", 0.5), ("c", 0.4)),
        [],
        found(("d", 1.0)),
        found(("e", 0.0), ("f", 2.0)),
    ]
    answers = tested.answer(questions, retrieved)
    assert [[d.raw for d in a.drafts] for a in answers] == [
        ["q0[a]", "q0[b]"],
        ["q1"],
        ["q2[d]"],
        ["q3[e]", "q3[f]"],
    ]
    assert [a.text for a in answers] == ["q0[a]", "q1", "q2[d]", "q3[f]"]
    assert reader.calls == 1  # one batch


def test_top1_reads_the_best_passage_only_and_concat_all(prompt_file):
    retrieved = found(("a", 3.0), ("b", 2.0), ("c", 1.0))
    reader = Scripted(Generation, abilities=())
    [top] = answerer(reader, prompt_file, decision="top1").answer([PLAIN], [retrieved])
    assert [(d.raw, d.passage_ids) for d in top.drafts] == [("What does it eat?[a]", ("a",))]
    [both] = answerer(reader, prompt_file, decision="concat", passages=2).answer(
        [PLAIN], [retrieved]
    )
    assert [(d.raw, d.passage_ids) for d in both.drafts] == [
        ("What does it eat?[a][b]", ("a", "b"))
    ]
    assert (top.decision, both.decision) == ("top1", "concat")


def test_top1_with_more_passages_is_refused(prompt_file):
    with pytest.raises(UserError, match="top1 reads one: set the decision"):
        answerer(Scripted(), prompt_file, decision="top1", passages=2)


@pytest.mark.parametrize(("decision", "k"), [("top1", 1), ("concat", 3), ("joint_max", 3)])
def test_without_passages_every_rule_is_one_prompt(prompt_file, decision, k):
    tested = answerer(Scripted(), prompt_file, decision=decision, passages=k)
    [answer] = tested.answer([PLAIN], [[]])
    assert [d.passage_ids for d in answer.drafts] == [()]
    assert tested.reader.seen[0].text == "What does it eat?"


def test_joint_max_needs_log_probabilities_to_compare(prompt_file):
    mute = Scripted(lambda text: Generation("x"), abilities=())
    with pytest.raises(UserError, match="joint_max compares log-probabilities"):
        answerer(mute, prompt_file, passages=2)
    [answer] = answerer(mute, prompt_file, passages=1).answer([PLAIN], [found(("a", 1.0))])
    assert answer.text == "x"  # nothing to compare


def test_only_a_reader_that_can_see_gets_the_image(prompt_file):
    question = Question(1, "What is it?", image=b"image one")
    blind, seeing = Scripted(), Scripted(abilities=("log_probs", "images"), fingerprint="seeing")
    answerer(blind, prompt_file).answer([question], [[]])
    answerer(seeing, prompt_file).answer([question], [[]])
    assert blind.seen[0].image is None
    assert seeing.seen[0].image == b"image one"


# --- the cache of generations


def generated_texts(reader):
    return Counter(p.text for p in reader.seen)


def test_the_same_prompt_is_generated_once_across_answerers(prompt_file):
    retrieved = found(("a", 1.0), ("b", 0.5))
    first = Scripted(lambda text: Generation(f" Answer to {text} ", -1.25, 3))
    one = answerer(first, prompt_file, passages=2)
    before = one.answer([PLAIN, PLAIN], [retrieved, retrieved])
    assert set(generated_texts(first).values()) == {1}
    assert one.generated == 2
    assert one.answer([PLAIN], [retrieved]) == before[:1]

    silent = Scripted(lambda text: pytest.fail("generated again"))
    other = answerer(silent, prompt_file, passages=2)
    assert other.answer([PLAIN], [retrieved]) == before[:1]  # raw text, log_prob, tokens and all
    assert other.generated == 0
    # the same prompt from another question, with another rule: still the same generation
    top = answerer(silent, prompt_file, decision="top1", extract={"lower": False})
    [answer] = top.answer([Question(99, PLAIN.question)], [retrieved])
    assert answer.drafts[0].raw == " Answer to What does it eat?[a] "
    assert answer.text == "Answer to What does it eat?[a]"


def test_only_new_prompts_are_generated(prompt_file):
    reader = Scripted(lambda text: Generation(text.upper(), -1.0, 1))
    tested = answerer(reader, prompt_file)
    tested.answer([Question(1, "one"), Question(2, "two")], [[], []])
    answers = tested.answer(
        [Question(i, t) for i, t in enumerate(("two", "three", "one"))], [[]] * 3
    )
    assert [a.drafts[0].raw for a in answers] == ["TWO", "THREE", "ONE"]
    assert generated_texts(reader) == {"one": 1, "two": 1, "three": 1}
    assert tested.generated == 3


def test_another_reader_fingerprint_is_another_entry(prompt_file):
    for name in ("x", "y", "x"):
        reader = Scripted(lambda text, name=name: Generation(name), fingerprint=f"reader/{name}")
        [answer] = answerer(reader, prompt_file, decision="top1").answer([PLAIN], [[]])
        assert answer.text == name


def test_another_image_is_another_entry_for_a_reader_that_can_see(prompt_file, tmp_path):
    path = tmp_path / "same name.jpg"
    reader = Scripted(abilities=("images", "log_probs"))
    tested = answerer(reader, prompt_file)
    for content in (b"one", b"two", b"one"):
        path.write_bytes(content)
        tested.answer([Question(1, "What is it?", image=path)], [[]])
    assert tested.generated == 2
    tested.answer([Question(1, "What is it?", image=b"two")], [[]])  # content, not the path
    assert tested.generated == 2


def test_a_generation_without_log_probabilities_comes_back_the_same(prompt_file):
    reader = Scripted(lambda text: Generation("Füße \u4e2d \U0001f428"), abilities=())
    first = answerer(reader, prompt_file, decision="top1").answer([PLAIN], [[]])
    again = answerer(reader, prompt_file, decision="top1").answer([PLAIN], [[]])
    assert again == first
    assert first[0].drafts[0].log_prob is None
    assert reader.calls == 1


def test_the_cache_can_be_switched_off(prompt_file, fresh_cache):
    reader = Scripted()
    tested = answerer(reader, prompt_file, cache=False)
    tested.answer([PLAIN], [[]])
    tested.answer([PLAIN], [[]])
    assert reader.calls == 2
    assert not list(fresh_cache.rglob("*.sqlite"))


def test_a_reader_that_fails_leaves_nothing_in_the_cache(prompt_file):
    def fail(text):
        raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError):
        answerer(Scripted(fail), prompt_file).answer([PLAIN], [[]])
    reader = Scripted()
    answerer(reader, prompt_file).answer([PLAIN], [[]])
    assert reader.calls == 1


def test_the_fingerprint_follows_rule_prompt_and_reader_but_not_the_cache(prompt_file, tmp_path):
    base = answerer(Scripted(), prompt_file).fingerprint
    assert answerer(Scripted(), prompt_file, cache=False).fingerprint == base
    copy = tmp_path / "another name.jinja"
    copy.write_bytes(Path(prompt_file).read_bytes())
    assert answerer(Scripted(), str(copy)).fingerprint == base
    copy.write_text("{{ question }}", encoding="utf-8")
    others = {
        answerer(Scripted(), str(copy)).fingerprint,
        answerer(Scripted(fingerprint="other"), prompt_file).fingerprint,
        answerer(Scripted(), prompt_file, passages=2).fingerprint,
        answerer(Scripted(), prompt_file, decision="top1").fingerprint,
        answerer(Scripted(), prompt_file, temperature=2).fingerprint,
        answerer(Scripted(), prompt_file, extract={"lower": False}).fingerprint,
    }
    assert len({base, *others}) == 7
