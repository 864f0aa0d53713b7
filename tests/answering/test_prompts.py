"""Prompt templates: the sandbox, what is checked when they are loaded, and the packaged ones."""

# ruff: noqa: RUF001 (Chinese punctuation)

import hashlib
import os

import pytest

from ravqa.answering.answerer import Answerer
from ravqa.answering.prompt import VARIABLES, Example, PromptTemplate
from ravqa.answering.rules import answering_config
from ravqa.cli import main
from ravqa.core.control_tokens import ControlTokens
from ravqa.core.errors import PromptError, UserError
from ravqa.core.locations import PROMPTS
from ravqa.core.records import Description, Hit, Passage, Question, Region, Tag
from ravqa.readers.base import Generation, Reader

KOALA = Passage("k", "The koala eats leaves.", title="Koala")
TOWER = Passage("t", "A tower of stone.")
DESCRIPTION = Description(
    tags=(Tag(("koala", "koala bear"), 0.8), Tag(("tree",), 0.1)),
    caption="a koala in a tree",
    ocr=("ZOO",),
    objects=(
        Region(
            "bear", (0, 0, 9, 9), (("big", 0.9), ("grey", 0.2), ("thin", 0.01)), ("EXIT", "ZOO")
        ),
        Region("bear", (5, 5, 6, 6)),
        Region("bear", (7, 7, 8, 8)),
    ),
)
SEEN = Question(7, "What does it eat?", description=DESCRIPTION, instruction="Be brief.")
PLAIN = Question(8, "What does it eat?")


def test_a_template_gets_what_is_documented():
    template = PromptTemplate(
        "{{ instruction }}|{{ question }}|{{ caption }}"
        "|{{ tags | join(',') }}|{{ objects | join(',') }}|{{ ocr | join(',') }}"
        "{% for p in passages %}|{{ p.title }}/{{ p.text }}/{{ p.content }}{% endfor %}"
    )
    assert template.render(SEEN, [KOALA, TOWER]) == (
        "Be brief.|What does it eat?|a koala in a tree|koala,tree|big grey bear,bear|ZOO,EXIT"
        "|Koala/The koala eats leaves./Koala: The koala eats leaves."
        "|None/A tower of stone./A tower of stone."
    )
    assert template.render(PLAIN, []) == "|What does it eat?||||"
    image = PromptTemplate("{{ image }}")
    assert [image.render(PLAIN, [], image=shown) for shown in (True, False)] == ["True", "False"]


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


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("{% for p in passages %}{{ p.txt }}{% endfor %}", "has no attribute 'txt'"),
        ("{% for e in examples %}{{ e.anser }}{% endfor %}", "has no attribute 'anser'"),
        ("{{ examples[0].passages[0].titel }}", "has no attribute 'titel'"),
        ("{{ question.text }}", "has no attribute 'text'"),
        ("{{ question.__class__ }}", "unsafe"),
    ],
)
def test_a_wrong_key_is_found_when_the_template_is_loaded(source, message):
    with pytest.raises(UserError, match=rf"prompt x: .*{message}"):
        PromptTemplate(source, name="x")


@pytest.mark.parametrize("name", VARIABLES)
def test_a_wrong_key_is_found_wherever_a_variable_is_filled(name):
    """When a template is tried, every variable has a value, and every list two items at least."""
    with pytest.raises(UserError, match=r"prompt x: .*has no attribute 'txt'"):
        PromptTemplate(f"{{% if {name} %}}{{{{ question.txt }}}}{{% endif %}}", name="x")
    if name in ("passages", "examples"):
        second = f"{{% if {name}[1] %}}{{{{ question.txt }}}}{{% endif %}}"
        with pytest.raises(UserError, match="has no attribute 'txt'"):
            PromptTemplate(second)


SEEN_KEYS = ("tags", "caption", "objects", "ocr")
PASSAGE_KEYS = ("text", "title", "content", "picture")


@pytest.mark.parametrize(
    "place",
    [
        *(f"passages[1].{key}" for key in PASSAGE_KEYS),
        *(
            f"examples[1].{key}"
            for key in ("question", "choices", "answer", "passages", *SEEN_KEYS)
        ),
        *(f"examples[1].passages[1].{key}" for key in PASSAGE_KEYS),
    ],
)
def test_every_documented_key_may_be_used_and_no_other(place):
    # Used further, a value that is missing or of another type is found at once.
    used = f"{place} + 1" if place.endswith("picture") else f"{place}[0]"
    PromptTemplate(f"{{{{ {used} }}}}{{% if not {place} %}}{{{{ question.txt }}}}{{% endif %}}")
    with pytest.raises(UserError, match=r"has no attribute '[a-z]+x'"):
        PromptTemplate(f"{{{{ {place}x }}}}")


def test_the_texts_of_what_is_seen_are_texts_when_a_template_is_tried():
    for value in ("tags[0]", "objects[0]", "ocr[0]", "caption", "instruction", "question"):
        PromptTemplate(f"{{% if {value} is not string %}}{{{{ question.txt }}}}{{% endif %}}")
    PromptTemplate("{% if image is not true %}{{ question.txt }}{% endif %}")


def test_a_template_has_the_hash_of_its_source():
    source = "{{ question }} \u00e9"
    expected = hashlib.sha256(source.encode()).hexdigest()
    template = PromptTemplate(source)
    assert (template.sha256, template.name) == (expected, "template")
    assert PromptTemplate(source + " ").sha256 != expected


@pytest.mark.parametrize(
    ("score", "shown"), [(0.05, "bear"), (0.0501, "big bear"), (0.0499, "bear"), (1.0, "big bear")]
)
def test_an_object_has_the_attributes_that_are_probable(score, shown):
    region = Region("bear", (0, 0, 9, 9), (("big", score),))
    question = Question(1, "q", description=Description(objects=(region,)))
    assert PromptTemplate("{{ objects[0] }}").render(question, []) == shown
    words = tuple((word, 0.9) for word in ("a", "b", "c", "d"))
    region = Region("bear", (0, 0, 9, 9), (("no", 0.0), *words))
    question = Question(1, "q", description=Description(objects=(region,)))
    assert PromptTemplate("{{ objects[0] }}").render(question, []) == "a b c bear"


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("{{ pasages }}", "prompt x: unknown variable 'pasages': did you mean passages "),
        ("{{ b }}{{ a }}", "prompt x: unknown variable 'a': "),
        ("{% if %}", "prompt x, line 1: Expected an expression, got 'end of statement block'"),
        ("{{ question.txt }}", "prompt x: 'str object' has no attribute 'txt'"),
        ("{{ question.__class__ }}", "prompt x: access to attribute '__class__' of 'str' object"),
    ],
)
def test_what_is_wrong_with_a_template_is_said_with_its_name(source, said):
    with pytest.raises(UserError) as error:
        PromptTemplate(source, name="x")
    assert str(error.value).startswith(said)


def test_a_surrogate_in_a_prompt_is_its_questions_error():
    template = PromptTemplate("{{ '\\ud83d' if passages|length > 2 }}{{ question }}", name="p")
    assert template.render(PLAIN, [KOALA]) == PLAIN.question
    with pytest.raises(PromptError) as error:
        template.render(PLAIN, [KOALA] * 3)
    assert str(error.value) == "prompt p: half a character (a surrogate) is in its text"


def test_what_fails_on_some_values_alone_may_be_loaded():
    template = PromptTemplate("{{ passages[4].text }}|{{ 1 // (ocr | length - 1) }}")
    passages = [Passage(str(i), str(i)) for i in range(5)]
    assert template.render(SEEN, passages) == "4|1"
    with pytest.raises(PromptError, match="prompt template: list object has no element 4"):
        template.render(SEEN, [])


def test_a_template_says_which_variables_it_uses():
    assert PromptTemplate("{% if tags %}{{ question }}{% endif %}").uses == {"tags", "question"}
    assert "examples" not in PromptTemplate.load("short-answer").uses
    assert "examples" in PromptTemplate.load("few-shot").uses


def test_bad_syntax_is_named_with_its_line():
    with pytest.raises(UserError, match=r"prompt x, line 3: "):
        PromptTemplate("one\ntwo\n{% for %}\n", name="x")
    with pytest.raises(UserError, match=r"line 2: .*nosuchfilter"):
        PromptTemplate("one\n{{ question | nosuchfilter }}", name="x")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("{{ question.ljust(10**9) }}", "prompt p: it builds more than 4194304 characters"),
        ("{% if 1 %}" * 3000 + "{% endif %}" * 3000, "prompt p: it is nested too deeply"),
        ("\ud83d {{ question }}", "prompt p: it contains half a character"),
    ],
)
def test_a_template_without_measure_is_one_line_that_names_it(source, message):
    with pytest.raises(UserError, match=message):
        PromptTemplate(source, name="p")


def test_a_pipe_or_a_huge_file_in_place_of_a_template_is_one_line(tmp_path):
    os.mkfifo(tmp_path / "pipe.jinja")
    with pytest.raises(UserError, match=r"pipe.jinja is a pipe, socket or device"):
        PromptTemplate.load(str(tmp_path / "pipe.jinja"))
    with (tmp_path / "huge.jinja").open("wb") as file:
        file.truncate(2**34)  # takes no room on the disk
    with pytest.raises(UserError, match=r"prompt huge.jinja: it is longer than 1048576 characters"):
        PromptTemplate.load(str(tmp_path / "huge.jinja"))


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("{{ 'x' * (10 ** question|length) }}", "prompt p: it builds more than"),
        ("{{ '\\ud83d' if question|length > 1 }}", "prompt p: half a character"),
    ],
)
def test_what_goes_beyond_a_limit_for_one_question_costs_that_question(source, message):
    template = PromptTemplate(source, name="p")
    with pytest.raises(PromptError, match=message):
        template.render(Question(1, "What is shown?"), [])


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

    # ruff: noqa: RUF001 (Chinese punctuation)
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


OTHERS = ("rerank-", "gate-", "caption")  # asked for one passage or none, or for a caption
PACKAGED = sorted(p.stem for p in PROMPTS.glob("*.jinja") if not p.stem.startswith(OTHERS))
ASKED = [
    Example(
        Question(
            3,
            "Where do tulips grow?",
            description=Description(tags=(Tag(("tulip",), 0.9),), caption="a field of tulips"),
        ),
        "the Netherlands",
        [Passage("n", "Tulips grow in the Netherlands.")],
    ),
    Example(Question(4, "How fast is it?"), "300 km/h", [Passage("s", "It is fast.")]),
]


@pytest.mark.parametrize("name", PACKAGED)
@pytest.mark.parametrize("image", [True, False])
def test_packaged_prompts_read_well_with_and_without_everything(name, image):
    template = PromptTemplate.load(name)
    for question in (SEEN, PLAIN):
        for passages in ([KOALA, TOWER], [KOALA], []):
            text = template.render(question, passages, ASKED, image=image)
            assert question.question in text
            assert text == text.strip()
            assert "\n\n\n" not in text
            assert "  " not in text
            for passage in (KOALA, TOWER):
                assert (passage.content in text) is (passage in passages)
            spoken = any(word in text for word in ("assage", "Knowledge", "section", "段落"))
            assert spoken is bool(passages)


@pytest.mark.parametrize(
    "name",
    [
        "chat",
        "chat-question-first",
        "chat-decline",
        "chat-zh",
        "infoseek",
        "evqa",
        "multiple-choice",
    ],
)
def test_a_reader_that_sees_is_not_told_what_a_classifier_sees(name):
    template = PromptTemplate.load(name)
    told = template.render(SEEN, [KOALA])
    assert "a koala in a tree" in told
    assert "big grey bear" in told
    seen = template.render(SEEN, [KOALA], image=True)
    assert seen == template.render(PLAIN, [KOALA])


def test_the_form_of_ravqa_by_hand():
    template = PromptTemplate.load("ravqa")
    assert template.render(SEEN, [KOALA]) == (
        "Question: What does it eat? Caption: a koala in a tree Objects: big grey bear, bear, ZOO, "
        "EXIT. Knowledge: Koala: The koala eats leaves. Answer:"
    )
    assert template.render(PLAIN, [TOWER]) == (
        "Question: What does it eat? Knowledge: A tower of stone. Answer:"
    )
    assert template.render(PLAIN, []) == "Question: What does it eat? Answer:"
    tagged = Question(1, "What?", description=Description(tags=(Tag(("koala",), 0.8),)))
    assert template.render(tagged, []) == "Question: What? Objects: koala. Answer:"


def test_the_chat_forms_by_hand():
    assert PromptTemplate.load("chat").render(SEEN, [KOALA, TOWER]) == (
        "These passages were found for the question. Some may be about something else.\n\n"
        "[1] Koala: The koala eats leaves.\n[2] A tower of stone.\n\n"
        "The image: a koala in a tree\nSeen in the image: big grey bear, bear\n"
        "Written in the image: ZOO | EXIT\nQuestion: What does it eat?\n"
        "Answer the question about the image with one word or a short phrase and nothing else."
    )
    assert PromptTemplate.load("chat-decline").render(SEEN, [KOALA, TOWER]) == (
        PromptTemplate.load("chat").render(SEEN, [KOALA, TOWER])
        + "\nIf you cannot tell the answer, do not guess, but write: I don't know"
    )
    asked = (
        "The image: a koala in a tree\nSeen in the image: big grey bear, bear\n"
        "Written in the image: ZOO | EXIT\nQuestion: What does it eat?\n"
        "Answer the question about the image with one word or a short phrase and nothing else."
    )
    first = PromptTemplate.load("chat-question-first")
    assert first.render(SEEN, []) == asked
    assert first.render(SEEN, [KOALA, TOWER]) == (
        f"{asked}\n\nThese passages were found for the question. Some may be about something else."
        "\n\n[1] Koala: The koala eats leaves.\n[2] A tower of stone."
    )
    assert PromptTemplate.load("chat-zh").render(Question(1, "它吃什么？"), [TOWER]) == (
        "以下是为这个问题检索到的段落，其中有些可能与图片无关。\n\n[1] A tower of stone.\n\n"
        "问题：它吃什么？\n请根据图片回答问题，只写答案，用一个词或一个短语，不要解释。"
    )


def test_a_template_says_what_it_asks_for_where_there_is_no_answer():
    assert PromptTemplate.load("chat-decline").declines == ("I don't know",)
    assert PromptTemplate.load("chat").declines == ()
    own = PromptTemplate("{% set decline = ['none of it', \"can't say\"] %}{{ decline[0] }}")
    assert own.declines == ("none of it", "can't say")
    assert own.render(PLAIN, []) == "none of it"
    assert PromptTemplate("{% set decline = question %}{{ decline }}").declines == ()


def test_the_few_shot_form_by_hand():
    template = PromptTemplate.load("few-shot")
    assert template.render(SEEN, [KOALA], ASKED) == (
        "Passage: Tulips grow in the Netherlands.\nImage: a field of tulips\n"
        "Question: Where do tulips grow? (tulip)\nAnswer: the Netherlands\n\n"
        "Passage: It is fast.\nQuestion: How fast is it?\nAnswer: 300 km/h\n\n"
        "Passage: Koala: The koala eats leaves.\nImage: a koala in a tree\n"
        "Question: What does it eat? (big grey bear, bear)\nAnswer:"
    )
    assert template.render(PLAIN, [], ASKED) == (
        "Question: Where do tulips grow?\nAnswer: the Netherlands\n\n"
        "Question: How fast is it?\nAnswer: 300 km/h\n\nQuestion: What does it eat?\nAnswer:"
    )


def test_the_forms_of_questions_with_choices_by_hand():
    asked = Question(1, "What does it eat?", choices=("fish", "leaves"), correct_choice=1)
    assert PromptTemplate.load("multiple-choice").render(asked, [TOWER]) == (
        "These passages were found for the question. Some may be about something else.\n\n"
        "[1] A tower of stone.\n\nQuestion: What does it eat?\nChoices:\n- fish\n- leaves\n"
        "Copy the choice that answers the question about the image, and write nothing else.\n"
        "Answer:"
    )
    example = Example(Question(2, "Where?", choices=("here", "there")), "here")
    assert PromptTemplate.load("few-shot").render(asked, [], [example]) == (
        "Question: Where?\nChoices:\n- here\n- there\nAnswer: here\n\n"
        "Question: What does it eat?\nChoices:\n- fish\n- leaves\nAnswer:"
    )


def test_prompts_are_listed_with_what_they_are(capsys):
    with pytest.raises(SystemExit):
        main(["ls", "prompts"])
    listed = capsys.readouterr().out
    assert all(path.stem in listed for path in PROMPTS.glob("*.jinja"))
    assert "A short answer in Chinese" in listed


class Marked(Reader):
    """Reads <x> and <|end|> as control tokens."""

    fingerprint = weights = "marked"
    supports_images = True
    control_tokens = ControlTokens(["<x>", "<|end|>"])

    def generate(self, prompts):
        return [Generation(prompt.text) for prompt in prompts]


EVIL = Description(tags=(Tag(("<x>koala",), 0.8),), caption="<|end|>", ocr=("<x><x>",))


def test_control_tokens_in_values_become_plain_text_and_are_counted():
    template = PromptTemplate(
        "<x>{{ question }}|{{ caption }}|{{ tags[0] }}|{{ ocr[0] }}|{{ instruction }}"
        "{% for p in passages %}|{{ p.content }}{% endfor %}"
        "{% for e in examples %}|{{ e.question }}{{ e.answer }}{% endfor %}"
    )
    question = Question(1, "<|end|>?", image=b"x", description=EVIL, instruction="<X>")
    passages = [Passage("p", "a<x>", title="<|end|>t", section="<x>")]
    examples = [Example(Question(2, "<x>"), "<|END|>")]
    prompt, count = template.prompt(question, passages, examples, reader=Marked())
    assert prompt.text == (
        "<x>< |end|>?|< |end|>|< x>koala|< x>< x>|< X>|< |end|>t - < x>: a< x>|< x>< |END|>"
    )
    assert count == 1 + 1 + 1 + 2 + 1 + 3 + 2  # title, section and text once
    assert prompt.own == {"<x>"}
    assert prompt.image == b"x"
    assert Marked.control_tokens.neutral(prompt.text, prompt.own) == (prompt.text, 0)
    constant = PromptTemplate("{{ '<|end|>' }}{{ question }}")
    prompt, count = constant.prompt(question, [], reader=Marked())
    assert (prompt.text, prompt.own, count) == ("<|end|>< |end|>?", {"<|end|>"}, 1)
    # What the template does not use counts for nothing.
    bare = PromptTemplate("{{ question }}")
    assert bare.prompt(question, passages, examples, reader=Marked())[1] == 1


@pytest.mark.parametrize("text", ["plain", "<x>"])  # rendered once, and once more
def test_a_template_knows_whether_the_reader_is_given_the_image(text):
    class Blind(Marked):
        supports_images = False

    template = PromptTemplate("{{ 'seen' if image else 'unseen' }} {{ question }}")
    for reader, image, expected in (
        (Marked(), b"x", "seen"),
        (Marked(), None, "unseen"),
        (Blind(), b"x", "unseen"),
    ):
        prompt, count = template.prompt(Question(1, text, image=image), [], reader=reader)
        assert prompt.text == f"{expected} {text.replace('<', '< ')}"
        assert prompt.image == (image if expected == "seen" else None)
        assert count == (text == "<x>")


def test_answers_say_how_many_control_tokens_their_prompts_had(tmp_path, fresh_cache):
    (tmp_path / "p.jinja").write_text("{{ question }} {{ passages[0].text }}", encoding="utf-8")
    config = answering_config({"prompt": str(tmp_path / "p.jinja"), "decision": "vote"})
    config = config.model_copy(update={"passages": 2})
    pairs = [(Hit("p", 1.0, 1), Passage("p", "<x>")), (Hit("q", 0.5, 2), Passage("q", "y"))]
    asked = [Question(1, "<|end|>"), Question(2, "?")]
    found = Answerer(config, Marked()).answer(asked, [pairs, pairs])
    assert [answer.neutralised for answer in found] == [3, 1]
