"""The clean-up of texts in released scoring rules is that of the released code."""

import pytest
from released_rules import given

from ravqa.metrics import evqa, infoseek, vqa
from ravqa.metrics.released import comem, lmms_eval, pixelrag, promsa, tags, ultrarag


def numbers(text):
    found = infoseek.parse_numbers(text)
    return None if any(abs(n) == float("inf") for n in found) else found


CLEAN_UPS = {
    "infoseek.official normalize_answer": infoseek.normalise,
    "comem normalize_answer": comem.normalise,
    "comem extract_and_normalize_boxed_answer": comem.extracted,
    "wikiprf preprocess_answer then normalize_answer": lambda text: infoseek.normalise(
        evqa.normalise(text)
    ),
    "ultrarag normalize_text": ultrarag.normalise,
    "promsa normalize_answer": promsa.normalise,
    "vqa.official processPunctuation then processDigitArticle": vqa.normalise,
    "lmms_eval EvalAIAnswerProcessor": lmms_eval.normalise,
    "lmms_eval strip_reasoning_tags (default tags)": lmms_eval.without_thinking,
    "pixelrag strip_think": pixelrag.after_thinking,
    "mmsearch_r1 extract_solution": tags.last_answer,
    "promsa answer after the last closing think tag": lambda text: tags.last_answer(
        promsa.after_thinking(text)
    ),
    "infoseek.official process_numerical_answer": numbers,
    "wikiprf number words then process_numerical_answer": lambda text: numbers(
        evqa.with_digits(text)
    ),
}


@pytest.mark.parametrize("name", CLEAN_UPS)
def test_texts_are_cleaned_up_as_by_the_released_code(name):
    for row in given("text")["rows"]:
        text, wanted = row["text"], row[name]
        if "number" in name or "numerical" in name:
            wanted = [wanted] if isinstance(wanted, float) else wanted
        if name.startswith("vqa") and "\n" in text:
            continue  # the official code replaces line ends before this function is called
        assert CLEAN_UPS[name](text) == wanted, text
