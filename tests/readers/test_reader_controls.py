"""Readers without a model: what they answer, by hand, and what they say they cannot do."""

import json
from collections import Counter
from dataclasses import replace

import pytest
from abilities import abilities_of

from ravqa.answering.prompt import PromptTemplate
from ravqa.core.errors import DataError, UserError
from ravqa.core.factory import build_part
from ravqa.core.locations import PROMPTS, SAMPLE
from ravqa.core.records import Description, Passage, Question, Tag
from ravqa.core.settings import Part
from ravqa.readers import READERS
from ravqa.readers.base import Generation, Prompt

KOALA = Passage("k", "The koala eats eucalyptus leaves in Australia.", title="Koala")
TOWER = Passage("t", "A tower, made of stone.")
SEEN = Description(tags=(Tag(("bear",), 0.9),), caption="a bear in a tree")
ASKED = Question(1, "What does the koala eat?", description=SEEN)


def control(name, **options):
    return build_part(READERS, Part(name=name, **options), "reader")


def answers(reader, *texts):
    made = reader.generate([Prompt(text) for text in texts])
    assert all(g == Generation(g.text) for g in made)  # no log-probabilities
    return [g.text for g in made]


@pytest.mark.parametrize("name", ["first-words", "best-span", "majority"])
def test_controls_state_what_they_are(name):
    reader = control(name, **({"answer": "yes"} if name == "majority" else {}))
    assert abilities_of(reader) == set()
    assert reader.deterministic
    assert reader.context is None
    assert reader.ends == frozenset()
    assert reader.generate([]) == []
    prompt = Prompt("x")
    for call in (
        lambda: reader.score([prompt], ["a"]),
        lambda: reader.next_token_logprobs([prompt], [[]]),
        lambda: reader.decode([1]),
        lambda: reader.count_tokens([prompt]),
    ):
        with pytest.raises(UserError, match=rf"^the reader {name} cannot .+: it has no model$"):
            call()


TEMPLATES = sorted(p.stem for p in PROMPTS.glob("*.jinja"))
OTHERS = ("rerank-", "gate-", "caption", "self-check")
ANSWERING = [name for name in TEMPLATES if not name.startswith(OTHERS)]


@pytest.mark.parametrize("template", ANSWERING)
def test_controls_find_passages_and_question_in_every_template(template):
    rendered = PromptTemplate.load(template)
    with_passages = rendered.render(ASKED, [KOALA, TOWER])
    without = rendered.render(ASKED, [])
    assert answers(control("first-words"), with_passages, without) == [
        "Koala: The koala",
        "unknown",
    ]
    assert answers(control("best-span"), with_passages, without) == [
        "eats eucalyptus leaves",
        "unknown",
    ]


@pytest.mark.parametrize("template", ANSWERING)
def test_every_line_of_a_passage_is_read(template):
    lines = replace(KOALA, text="It is grey.\n\nThe koala eats eucalyptus leaves.")
    rendered = PromptTemplate.load(template).render(ASKED, [lines, TOWER])
    assert answers(control("best-span"), rendered) == ["eats eucalyptus leaves"]


def test_examples_are_not_read():
    text = (
        "Passage: Tulips grow in the Netherlands.\nQuestion: Where?\nAnswer: the Netherlands\n\n"
        "Passage: Lions roar.\nQuestion: What do they do?\nAnswer:"
    )
    assert answers(control("first-words"), text) == ["Lions roar."]
    assert answers(control("first-words"), text.replace("Passage: Lions roar.\n", "")) == [
        "unknown"
    ]


@pytest.mark.parametrize(
    ("passage", "question", "words", "expected"),
    [
        # "lion" is two words away from "animal", 1/3; "roars loudly" one, 1/2
        ("The lion is an animal. It roars loudly.", "Which animal is it?", 3, "roars loudly"),
        ("Bells: these are made of bronze.", "What is it made of?", 3, "bronze"),
        ("Bells are made of bronze.", "What is it made of?", 3, "Bells"),  # a tie
        # both words count: "opened 1889" touches one, is 1 from the other
        (
            "The tower opened 1889 in Paris, France.",
            "When was the tower in Paris?",
            2,
            "opened 1889",
        ),
        # a run ends at punctuation, and is cut after so many words
        ("Red, green blue white paint", "paint?", 2, "green blue"),
        ("Red, green blue white paint", "paint?", 9, "green blue white"),
        # no word of the question occurs: the first run
        ("The quick fox", "Which colour?", 3, "quick fox"),
        # nothing but function words
        ("It is what it is.", "Which colour?", 3, "unknown"),
        ("3.5 metres high", "How high?", 3, "3.5 metres"),
        # case does not matter
        ("HIGH up 30 Metres", "how High?", 3, "up 30 Metres"),
    ],
)
def test_the_best_span_by_hand(passage, question, words, expected):
    text = f"Passage: {passage}\nQuestion: {question}\nAnswer:"
    assert answers(control("best-span", words=words), text) == [expected]


def test_the_best_of_all_passages_wins():
    text = "[1] Some tree.\n[2] Green leaves.\n[3] Bark.\nQuestion: Which leaves?\nWrite it."
    assert answers(control("best-span"), text) == ["Green"]


def test_the_majority_answer_of_the_bundled_training_questions():
    path = SAMPLE / "mscoco_train2014_annotations.json"
    annotations = json.loads(path.read_text(encoding="utf-8"))["annotations"]
    counts = Counter(a["answer"] for annotation in annotations for a in annotation["answers"])
    [(most, n), (_, second)] = counts.most_common(2)
    assert n >= second
    for name in (str(path), "package:ravqa/datasets/sample/mscoco_train2014_annotations.json"):
        assert answers(control("majority", answers=name), "a", "b") == [most, most]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.jsonl", '{"answer": ["Blue", "navy"]}\n\n{"answers": ["red", "blue "]}\n'),
        ("b.jsonl", '{"answer": "Blue"}\n{"answer": "red"}\n{"answer": "BLUE"}\n'),
        ("c.csv", 'question,answer\nx,red\ny,"blue"\nz,blue\n'),
        ("d.tsv", "answer\tn\nblue\t1\nblue\t2\nred\t3\n"),
        ("e.txt", "red\nblue\n\nBlue\n"),
        ("f.json", '{"annotations": [{"answers": [{"answer": "blue"}]}]}'),
        ("g.txt", "blue\nred\n"),  # a tie: the first
    ],
)
def test_training_answers_in_several_forms(tmp_path, name, text):
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    reader = control("majority", answers=str(path))
    assert answers(reader, "What?") == ["blue"]
    assert reader.fingerprint == control("majority", answer="blue").fingerprint
    assert reader.fingerprint != control("majority", answer="red").fingerprint


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.json", "{}"),
        ("b.json", "[1"),
        ("c.jsonl", '{"question": "x"}\n'),
        ("d.jsonl", "[1]\n"),
        ("e.csv", "question,x\na,b\n"),
        ("f.txt", "\n \n"),
        ("g.jsonl", '{"answer": [1]}\n'),
    ],
)
def test_a_file_without_training_answers_is_named(tmp_path, name, text):
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match=name.replace(".", r"\.")) as caught:
        control("majority", answers=str(path))
    assert "\n" not in str(caught.value)


def test_majority_needs_one_source():
    for options in ({}, {"answer": "a", "answers": "b.txt"}):
        with pytest.raises(
            UserError, match=r"the reader majority needs answers \(a file\) or answer \(a text\)$"
        ):
            control("majority", **options)
    with pytest.raises(UserError, match="no such model file or folder"):
        control("majority", answers="./gone.json")
