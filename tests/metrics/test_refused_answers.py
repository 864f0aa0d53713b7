"""Refusals: phrases of several languages, and answers that only resemble them."""

# ruff: noqa: RUF001 (other scripts)

import json
from importlib.resources import files

import pytest

from ravqa.answering.extract import Extraction, short_answer
from ravqa.core.texts import is_wordless
from ravqa.metrics.refusals import is_refusal

LISTED = json.loads(files("ravqa.metrics").joinpath("refusals.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    "generation",
    [
        "I don't know.",
        "I don\u2019t know",
        "**I do not know**",
        "Answer: Unknown.",
        "The answer is unknown.",
        "Unanswerable",
        "N/A",
        "I'm sorry, but I cannot determine the country from the image.",
        "The passages do not mention the animal's weight.",
        "It cannot be determined from the image because it is too dark.",
        "There is not enough information to answer.",
        "<think>Is it a bear?</think>I'm not sure.",
        "我不知道。",
        "答案：无法确定",
        "根据图片无法确定它的重量。",
        "Das weiß ich nicht.",
        "Nicht bekannt.",
        "Je ne sais pas.",
        "L'image ne mentionne pas le pays.",
        "No lo sé.",
        "No se puede determinar.",
        "Non lo so.",
        "Não sei.",
        "Ik weet het niet.",
        "Я не знаю.",
        "わかりません。",
        "알 수 없습니다.",
    ],
)
def test_a_refusal_is_recognised_after_its_extraction_and_is_never_empty(generation):
    answer = short_answer(generation, Extraction(), "Which country is this animal from?")
    assert not is_wordless(answer)
    assert is_refusal(answer)


@pytest.mark.parametrize(
    "answer",
    [
        "",
        "...",
        "koala",
        "no",
        "none",
        "unknown soldier",
        "the great unknown",
        "clear",
        "not a bear",
        "an information desk",
        "knowledge",
        "sure",
        "don quixote",
        "i know",
        "nein",
        "知道",
        "明",
    ],
)
def test_other_answers_are_none(answer):
    assert not is_refusal(answer)


def test_what_a_prompt_asks_for_counts_as_a_whole_answer():
    assert is_refusal("No Answer Found!", ["no-answer found"])
    assert not is_refusal("no answer found here", ["no-answer found"])
    assert not is_refusal("koala", [""])


@pytest.mark.parametrize("kind", ["whole", "within"])
def test_every_language_has_its_phrases_each_once(kind):
    languages = LISTED[kind]
    assert list(languages) == ["en", "zh", "de", "fr", "es", "it", "pt", "nl", "ru", "ja", "ko"]
    for language, phrases in languages.items():
        assert len(set(phrases)) == len(phrases), language
        assert all(map(is_refusal, phrases))
