"""The pictures of passages in prompts: which are shown, where, and what is counted."""

from dataclasses import replace
from pathlib import Path

import pytest
from abilities import give
from PIL import Image

from ravqa.answering.answerer import Answerer
from ravqa.answering.prompt import PromptTemplate
from ravqa.answering.rules import answering_config, reader_problem
from ravqa.core.control_tokens import COMMON
from ravqa.core.errors import UserError
from ravqa.core.records import Hit, Passage, Pictures, Question
from ravqa.readers.base import Abilities, Generation, Reader

TEMPLATE = (
    "{{ question }}{% for p in passages %} {{ p.text }}"
    "{% if p.picture %}={{ p.picture }}/{{ pictures }}{% endif %}{% endfor %}"
)


class Seeing(Reader):
    """Answers "a", or counts a token for each letter and ten for each image."""

    fingerprint = weights = "seeing"
    supports_images = True
    max_images = None
    deterministic = True

    def __init__(self, context=None):
        give(self, ("count", "log_probs"))
        self.context = context
        self.asked = []

    def generate(self, prompts):
        self.asked += prompts
        return [Generation("a", -1.0, 1) for _ in prompts]

    def count_tokens(self, prompts):
        return [len(p.text) + 10 * len(p.images) for p in prompts]


@pytest.fixture
def made(tmp_path, fresh_cache):
    """The passages a, b, ..., with a picture each, unless their letter is a capital."""

    def passages(letters, **images):
        found = []
        for rank, letter in enumerate(letters, 1):
            path = tmp_path / images.get(letter, f"{letter}.png")
            if letter.islower() and not path.exists():
                Image.new("RGB", (9, 9), (rank, 0, 0)).save(path)
            image = path if letter.islower() else None
            found.append((Hit(letter, 1 / rank, rank), Passage(letter, letter, image=image)))
        return found

    return passages


@pytest.fixture
def answerer(tmp_path, fresh_cache):
    (tmp_path / "p.jinja").write_text(TEMPLATE, encoding="utf-8")

    def build(reader=None, **settings):
        options = {"prompt": str(tmp_path / "p.jinja"), "decision": "concat", "passages": 5}
        config = answering_config({**options, **settings})
        return Answerer(config, reader or Seeing())

    return build


PHOTO = Question(1, "q", image=b"photo")


def asked(tested, found, question=PHOTO):
    """The texts and pictures of a question's prompts, and what its answer says of the pictures."""
    [answer] = tested.answer([question], [found])
    prompts = tested.reader.asked
    return [(p.text, [i.stem for i in p.pictures]) for p in prompts], answer.pictures


def test_pictures_follow_the_photo_in_the_order_of_the_passages(answerer, made):
    prompts, counted = asked(answerer(passage_images=2), made("aBcd"))
    assert prompts == [("q a=2/2 B c=3/2 d", ["a", "c"])]
    assert counted == Pictures(shown=2, cut=1)


def test_without_a_photo_the_first_picture_is_the_first(answerer, made):
    tested = answerer(passage_images=9)
    prompts, counted = asked(tested, made("ab"), Question(1, "q"))
    assert prompts == [("q a=1/2 b=2/2", ["a", "b"])]
    assert counted == Pictures(shown=2)
    assert tested.reader.asked[0].images == tested.reader.asked[0].pictures


def test_a_picture_of_several_passages_is_shown_once(answerer, made):
    prompts, counted = asked(answerer(passage_images=2), made("abc", b="a.png"))
    assert prompts == [("q a=2/2 b=2/2 c=3/2", ["a", "c"])]
    assert counted == Pictures(shown=2)


def test_without_the_setting_nothing_is_shown_or_counted(answerer, made):
    assert asked(answerer(), made("ab")) == ([("q a b", [])], None)


@pytest.mark.parametrize("rule", ["joint_max", "vote", "marginal"])
def test_a_prompt_about_one_passage_has_its_own_picture(answerer, made, rule):
    tested = answerer(decision=rule, passages=3, passage_images=1)
    prompts, counted = asked(tested, made("aBc"))
    assert prompts == [("q a=2/1", ["a"]), ("q B", []), ("q c=2/1", ["c"])]
    assert counted == Pictures(shown=2)


def test_a_question_without_passages_has_no_pictures(answerer, made):
    assert asked(answerer(passage_images=2), []) == ([("q", [])], Pictures())
    tested = answerer(decision="none", passages=1, passage_images=2)
    assert asked(tested, made("ab"), Question(1, "r")) == ([("r", [])], Pictures())


def test_pictures_that_do_not_fit_into_the_context_are_counted(answerer, made):
    # The text has 13 letters with one picture, and 5 with none.
    prompts, counted = asked(answerer(Seeing(context=29), passage_images=2), made("ab"))
    assert prompts == [("q a=2/1 b", ["a"])]
    assert counted == Pictures(shown=1, cut=1)
    prompts, counted = asked(answerer(Seeing(context=13), passage_images=2), made("ab"))
    assert prompts == [("q a", [])]
    assert counted == Pictures(cut=2)


def test_pictures_that_cannot_be_read_are_named_and_others_take_their_place(
    answerer, made, tmp_path
):
    found = made("abcd")
    (tmp_path / "a.png").write_bytes(b"no image")
    (tmp_path / "b.png").unlink()
    Image.new("RGB", (9, 9 * 300)).save(tmp_path / "c.png")
    prompts, counted = asked(answerer(passage_images=1), found)
    assert prompts == [("q a b c d=2/1", ["d"])]
    assert counted == Pictures(
        shown=1,
        unread=(
            f"passage a: {tmp_path / 'a.png'}: not an image",
            f"passage b: no such image: {tmp_path / 'b.png'}",
            f"passage c: {tmp_path / 'c.png'}: 9x2700 pixels: one side is more than 200 times the "
            "other",
        ),
    )


def test_an_answer_is_kept_for_its_pictures_alone(answerer, made, tmp_path):
    found = made("a")
    asked(answerer(passage_images=1), found)
    assert asked(answerer(passage_images=1), found)[0] == []  # from the cache
    Image.new("RGB", (9, 9), (0, 99, 0)).save(tmp_path / "a.png")
    assert asked(answerer(passage_images=1), found)[0] == [("q a=2/1", ["a"])]


def test_pictures_of_articles_stand_in_for_missing_ones(answerer, made, tmp_path):
    found = made("aBCD")
    titled = {"B": "Polar_bear", "C": "otter", "D": "yak"}
    pairs = [(hit, replace(p, title=titled.get(p.passage_id))) for hit, p in found]
    for name in ("polar-bear-2.png", "Otter.png"):
        Image.new("RGB", (9, 9)).save(tmp_path / name)
    rows = [("polar bear", "gone.png"), ("Polar bear", "polar-bear-2.png"), ("otter", "gone.png")]
    listed = tmp_path / "list.csv"
    listed.write_text("title,image\n" + "".join(f"{name},{file}\n" for name, file in rows))
    tested = answerer(passage_images=3, article_images=listed)
    prompts, counted = asked(tested, pairs)
    assert prompts == [("q a=2/2 B=3/2 C D", ["a", "polar-bear-2"])]
    reason = f"passage C: no such image: {tmp_path / 'gone.png'}"
    assert counted == Pictures(shown=2, unread=(reason,))


def test_another_list_of_pictures_is_another_answerer(answerer, tmp_path):
    """A run that is resumed must not mix answers with the pictures of two lists."""
    listed = tmp_path / "list.csv"
    prints = []
    for name in ("otter", "yak", "otter"):
        listed.write_text(f"title,image\n{name},a.png\n", encoding="utf-8")
        prints.append(answerer(passage_images=1, article_images=listed).fingerprint)
    assert prints[0] == prints[2] != prints[1]


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        (
            {"article_images": "a.csv"},
            "answering.article_images are shown only if passage_images is set",
        ),
        (
            {"passage_images": 1, "article_folder": "images"},
            "answering.article_folder is that of a list: set article_images to it",
        ),
    ],
)
def test_settings_of_pictures_that_do_nothing_are_refused(settings, problem):
    with pytest.raises(UserError) as e:
        answering_config(settings)
    assert str(e.value) == problem


def test_control_tokens_do_not_keep_pictures_away():
    template = PromptTemplate("{{ question }} {{ passages[0].picture }}")
    image = Path("a.png")

    class Marked(Seeing):
        control_tokens = COMMON

    question = Question(1, "<|im_end|>", image=b"")
    passage = Passage("p", "t", image=image)
    prompt, count = template.prompt(question, [passage], reader=Marked(), pictures=[image])
    assert (prompt.text, prompt.pictures, count) == ("< |im_end|> 2", (image,), 1)


PROMPTS = ["chat", "chat-decline", "chat-question-first", "chat-zh", "evqa", "infoseek"]
PROMPTS.append("multiple-choice")


@pytest.mark.parametrize("name", PROMPTS)
def test_prompts_for_readers_that_see_say_whose_a_picture_is(name, tmp_path):
    template = PromptTemplate.load(name)
    assert template.names_pictures
    passages = [Passage("p", "Text.", "Title", image=tmp_path / "p.png"), Passage("q", "Other.")]
    options = {"reader": Seeing(), "pictures": [tmp_path / "p.png"]}
    shown, _ = template.prompt(PHOTO, passages, **options)
    alone, _ = template.prompt(Question(1, "q"), passages, **options)
    plain, _ = template.prompt(PHOTO, passages, reader=Seeing())
    mark = "\uff08\u56fe2\uff09" if name == "chat-zh" else "(Picture 2) "
    assert f"[1] {mark}Title: Text.\n[2] Other." in shown.text
    assert f"[1] {mark.replace('2', '1')}Title: Text.\n" in alone.text
    assert "[1] Title: Text.\n[2] Other." in plain.text
    first = "\u56fe1" if name == "chat-zh" else "Picture 1 is the image of the question"
    assert (first in shown.text, first in plain.text) == (True, False)


@pytest.mark.parametrize("name", ["short-answer", "ravqa"])
def test_a_prompt_that_does_not_say_whose_a_picture_is_is_refused(name, fresh_cache):
    with pytest.raises(UserError) as e:
        Answerer(answering_config({"prompt": name, "passage_images": 1}), Seeing())
    assert str(e.value) == (
        f"answering.passage_images is set, but prompt {name}.jinja does not say which passage a "
        "picture belongs to (passage.picture)"
    )


ASKED = "answering.passage_images is 2, but this reader takes"
SERVER = {"supports_images": "images=true"}


@pytest.mark.parametrize(
    ("able", "rule", "problem"),
    [
        (Abilities(), "concat", ""),
        (Abilities(max_images=3), "concat", ""),
        (
            Abilities(max_images=2),
            "concat",
            f"{ASKED} at most 2 images in a prompt, the question's included: set it to 1 or less",
        ),
        (Abilities(max_images=2), "vote", ""),
        (
            Abilities(max_images=1),
            "vote",
            f"{ASKED} only one image in a prompt, the question's included: set it to 0",
        ),
        (
            Abilities(supports_images=False),
            "vote",
            f"{ASKED} no images: choose one that does, or set it to 0",
        ),
        (
            Abilities(supports_images=False, ways=SERVER),
            "vote",
            f"{ASKED} no images: set reader.images=true if the server can do that, or choose one "
            "that does, or set it to 0",
        ),
        (Abilities(supports_images=False), "none", ""),
    ],
)
def test_a_reader_that_cannot_be_shown_pictures_is_refused(able, rule, problem):
    passages = 1 if rule == "none" else 3
    config = answering_config({"decision": rule, "passages": passages, "passage_images": 2})
    assert reader_problem(config, able) == problem
