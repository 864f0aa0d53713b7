"""The reader's own verdict on its answer: its prompt, its probability, and what fails."""

import math

import pytest
from test_answering import Scripted, found

from ravqa.answering.answerer import Answerer
from ravqa.answering.prompt import PromptTemplate
from ravqa.answering.rules import answering_config
from ravqa.core.errors import UserError
from ravqa.core.outcomes import Failure
from ravqa.core.records import Answer, Question
from ravqa.readers.base import Generation

LOGS = {"yes": 0.3, "Yes": 0.1, "no": 0.15, "No": 0.05}


class Checked(Scripted):
    """Says "leaves" or, without the koala, "stone"; scores words by a table."""

    def __init__(self, logs=None, **options):
        rule = lambda text: Generation("leaves" if "koala" in text else "stone", -1.0, 1)  # noqa: E731
        super().__init__(rule, abilities=("log_probs", "score"), **options)
        self.logs = LOGS if logs is None else logs
        self.asked = []

    def score(self, prompts, answers):
        self.asked += [prompt.text for prompt in prompts]
        return [
            self.logs[a] if isinstance(self.logs[a], Failure) else math.log(self.logs[a])
            for a in answers
        ]


@pytest.fixture
def prompts(tmp_path, fresh_cache):
    for name, source in {
        "answering": "{{ question }}{% for p in passages %}[{{ p.text }}]{% endfor %}",
        "check": "{{ question }}{% for p in passages %}[{{ p.text }}]{% endfor %}={{ answer }}?",
        "blind": "Is it right?",
    }.items():
        (tmp_path / f"{name}.jinja").write_text(source, "utf-8")
    return tmp_path


def answerer(reader, prompts, check="check", **settings):
    chosen = {"prompt": str(prompts / "answering.jinja"), "decision": "concat", "passages": 2}
    chosen |= {"self_check": str(prompts / f"{check}.jinja")} if check else {}
    return Answerer(answering_config(chosen | settings), reader)


QUESTIONS = [Question(1, "Eats?"), Question(2, "Made of?")]
FOUND = [found(("koala", 2.0), ("bear", 1.0), ("not read", 0.5)), found(("tower", 1.0))]


def test_the_verdict_is_yes_against_no_on_what_was_read(prompts):
    reader = Checked()
    answers = answerer(reader, prompts).answer(QUESTIONS, FOUND)
    assert [a.text for a in answers] == ["leaves", "stone"]
    assert [a.self_check for a in answers] == pytest.approx([0.4 / 0.6] * 2)
    assert list(dict.fromkeys(reader.asked)) == [
        "Eats?[koala][bear]=leaves?",
        "Made of?[tower]=stone?",
    ]
    plain = answerer(Checked(), prompts, check=None).answer(QUESTIONS, FOUND)
    assert [a.self_check for a in plain] == [None, None]


def test_an_answer_without_a_verdict_keeps_its_place_unless_the_reader_is_gone(prompts):
    lost = Checked({**LOGS, "no": Failure("filtered")})
    assert [a.text for a in answerer(lost, prompts).answer(QUESTIONS, FOUND)] == ["leaves", "stone"]
    gone = Checked({**LOGS, "no": Failure("it is down", fatal=True)}, fingerprint="gone")
    found_ = answerer(gone, prompts).answer(QUESTIONS, FOUND)
    assert [(type(f), f.reason) for f in found_] == [(Failure, "it is down")] * 2


def test_words_without_any_probability_tell_nothing(prompts):
    reader = Checked(dict.fromkeys(LOGS, 1e-300), fingerprint="even")
    [answer, _] = answerer(reader, prompts).answer(QUESTIONS, FOUND)
    assert isinstance(answer, Answer)
    assert answer.self_check == pytest.approx(0.5)


def test_a_prompt_that_does_not_show_the_answer_is_refused(prompts):
    with pytest.raises(UserError) as caught:
        answerer(Checked(), prompts, check="blind")
    assert str(caught.value) == (
        "answering.self_check: prompt blind.jinja does not show the answer"
    )


def test_a_reader_that_scores_nothing_is_refused(prompts):
    with pytest.raises(UserError) as caught:
        answerer(Scripted(), prompts)
    assert str(caught.value) == (
        "answering.self_check has the reader score yes and no, which this reader cannot: choose "
        "one that does, or leave it out"
    )


def test_the_fingerprint_follows_the_prompt_of_the_check_alone(prompts):
    plain = answerer(Checked(), prompts, check=None).fingerprint
    checked = answerer(Checked(), prompts).fingerprint
    assert plain != checked
    (prompts / "check.jinja").write_text("{{ answer }}?", "utf-8")
    assert answerer(Checked(), prompts).fingerprint not in (plain, checked)


def test_the_packaged_prompt_by_hand():
    template = PromptTemplate.load("self-check")
    prompt, _ = template.prompt(
        Question(1, "What does it eat?"),
        [passage for _, passage in found(("It eats leaves.", 1.0))],
        reader=Scripted(),
        answer="leaves",
    )
    assert prompt.text == (
        "These passages were found for the question. Some may be about something else.\n\n"
        "[1] It eats leaves.\n\nQuestion about the image: What does it eat?\n"
        "Proposed answer: leaves\n\nIs the proposed answer right? Answer with yes or no.\nAnswer:"
    )
