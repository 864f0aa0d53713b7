"""From what language models write to a short answer."""

# ruff: noqa: RUF001 (Chinese punctuation)

import time

import pytest

from ravqa.answering.extract import Extraction, short_answer
from ravqa.answering.rules import answering_config, rule_class
from ravqa.answering.rules.base import Case
from ravqa.core.records import Question
from ravqa.readers.base import Generation

EAT = "What does the koala mainly eat?"
GROW = "Which country are these flowers mainly grown in?"
END_TOKENS = (
    *("</s>", "<eos>", "<|im_end|>", "<|endoftext|>", "<|end_of_text|>", "<|eot_id|>", "<|end|>"),
    *("<end_of_turn>", "<end_of_utterance>", "<|END_OF_TURN_TOKEN|>", "[/INST]", "<|return|>"),
    "<｜end▁of▁sentence｜>",
)

CASES = {
    "plain language models": [
        (" Eucalyptus leaves.\nPassage: ...", "eucalyptus leaves"),
        ("\n\n  Paris\nRome", "paris"),
        ("Paris\r\nRome", "paris"),
        ("Paris\n\nQuestion: Who?\nAnswer: Rodin", "paris"),
        ("\u201cMona Lisa\u201d", "mona lisa"),
        ("St. Peter's", "st. peter's"),
        ("No. 5", "no. 5"),
        ("3.5 m.", "3.5 m"),
        ("-5", "-5"),
        ("20%", "20%"),
        ("5 * 3 * 2", "5 * 3 * 2"),
        ("Washington D.C. United", "washington d.c. united"),
        ("", ""),
        (" \n ", ""),
        ("...", ""),
        ("\u200bParis.\u200b", "paris"),
    ],
    "answers that are marked": [
        ("Answer: Paris", "paris"),
        ("short ANSWER : Paris!", "paris"),
        ("Answer:", ""),
        ("Paris\n\nAnswer:", "paris"),
        ("The answer is: 'Paris'.", "paris"),
        ("the answer is Paris, France;", "paris, france"),
        ("The answer isotope", "the answer isotope"),
        ("An answer: 5", "an answer: 5"),  # no mark: not at the beginning of the line
        ("Answer: The answer is Paris.", "paris"),
        ("Based on the second passage, the answer is Paris.", "paris"),
        ("The correct answer to the question is: Paris.", "paris"),
        ("Question: Which city?\nAnswer: Paris", "paris"),
        ("[ANSWER] Paris", "paris"),
        ("A: Paris", "paris"),
        ("Sure, here is the answer: Paris", "paris"),
        ("Sure! The short answer is Paris.", "paris"),
        ("Sure! Here's a short answer:\nParis", "paris"),
        ("Sure! Paris", "paris"),
        ("Sure!\n\nParis.", "paris"),
        ("Of course, Paris.", "paris"),
        ("Great question! Certainly: Paris", "paris"),
        ("Sure!", "sure"),
        ("Absolutely Fabulous", "absolutely fabulous"),
        ("Hello, Dolly!", "hello, dolly"),
        ("当然！巴黎。", "巴黎"),
        # special tokens that a server leaves in
        *((f"Paris{end}", "paris") for end in END_TOKENS),
        *((f"Paris {end}\nuser\nWhere?", "paris") for end in END_TOKENS),
        ("<s> Paris</s>", "paris"),
        ("<|im_start|>assistant\nParis<|im_end|>", "paris"),
        ("<|im_start|>assistant\n", ""),
        ("<|im_start|>assistant", ""),
        ("<|start_header_id|>assistant<|end_header_id|>\n\nParis<|eot_id|>", "paris"),
        ("<start_of_turn>model\nParis<end_of_turn>\n<start_of_turn>user", "paris"),
        ("model<end_of_turn>", "model"),
        ("<think>Rome?</think>The answer is Paris.<|im_end|>", "paris"),
        ("The answer is <|begin_of_box|>Paris<|end_of_box|>.", "paris"),
        ("<|begin_of_box|><|end_of_box|>", ""),
        ("<answer> </answer>", ""),
        ("a <b> c", "a <b> c"),
        ("assistant\n\nParis", "paris"),
        ("Assistant: Paris", "paris"),
        ("### Response:\nParis", "paris"),
        ("Assistant professor", "assistant professor"),
        ("assistant", "assistant"),
        ("model\nRome", "model"),  # may be an answer
        ("Answer\nParis", "paris"),
        ("Final answer\n\nParis", "paris"),
        ("Reasoning: it is of iron. Answer: Paris", "paris"),
        ("<final_answer>Paris</final_answer>", "paris"),
        ("The tower. <conclusion>Paris", "paris"),
        ("<output>Paris</output>", "paris"),
        ("Paris</answer>", "paris"),
        ("Paris<|im_e", "paris"),
        ('Paris<tool_call>{"name": "look"}</tool_call>', "paris"),
        ("Short answer: Paris\n\nExplanation: the answer is based on the tower.", "paris"),
        ("<answer> Paris </answer>", "paris"),
        ("<answer>Rome</answer> No: <answer>Paris", "paris"),
        (r"So it must be \boxed{\text{Paris}}.", "paris"),
        (r"\boxed{5}", "5"),
    ],
    "reasoning": [
        ("The image shows a tower of iron.\nIt stands in France.\n\nAnswer: Paris", "paris"),
        ("Let's see. The tower is by Eiffel. So the final answer is Paris.", "paris"),
        ("<think>Perhaps Rome. Answer: Rome</think>\n\nParis", "paris"),
        ("It is perhaps Rome. Answer: Rome</think>Paris", "paris"),  # opened by the chat template
        ("<think>\n\n</think>\n\nParis", "paris"),
        (
            "<SUMMARY>A tower.</SUMMARY>\n\n<CAPTION>It is of iron.</CAPTION>\n\n<REASONING>Rome?"
            "</REASONING>\n\n<CONCLUSION>Paris</CONCLUSION>",
            "paris",
        ),
        ("<SUMMARY>A tower.</SUMMARY>\n\n<CAPTION>It is of", ""),
        ("<analysis>Rome?</analysis>Paris", "paris"),
        ("[THINK]Rome?[/THINK]Paris", "paris"),
        ("<think>The tower is in", ""),  # cut short: no answer
        ("\u25c1think\u25b7Rome?\u25c1/think\u25b7Paris", "paris"),
        ("<seed:think>Rome?</seed:think>Paris", "paris"),
        ("<|channel>thought\nRome?<channel|>Paris", "paris"),
        ("<|START_THINKING|>Rome?<|END_THINKING|><|START_RESPONSE|>Paris", "paris"),
        ("<|channel|>analysis<|message|>Rome?<|end|><|channel|>final<|message|>Paris", "paris"),
        ("analysisRome?assistantfinalParis", "paris"),
    ],
    "markdown": [
        ("**Paris**", "paris"),
        ("**Answer:** Paris", "paris"),
        ("**Answer**: Paris", "paris"),
        ("Final answer: **Paris**", "paris"),
        ("**Answer**\nParis", "paris"),
        ("### Answer\n\nParis\n\n### Explanation\nThe tower ...", "paris"),
        ("The tower stands in **Paris**.", "paris"),
        ("**Note:** the tower is **iron**.", "iron"),
        ("- Paris", "paris"),
        ("1. Paris\n2. Rome", "paris"),
        ("1. FC Nuremberg", "1. fc nuremberg"),
        ("> *Paris*", "paris"),
        ("`Paris`", "paris"),
        ("```\nParis\n```", "paris"),
        ("[Paris](https://example.org/paris)", "paris"),
    ],
    "JSON and its like": [
        ('{"answer": "Paris"}', "paris"),
        ('```json\n{\n  "reason": "an answer",\n  "answer": "Paris"\n}\n```', "paris"),
        ("{'answer': 'Paris', 'confidence': 0.9}", "paris"),
        ('{"short_answer": "St. Peter\\u0027s"}', "st. peter's"),
        ('{"answer": ["red", "blue"]}', "red, blue"),
        ('{"answer": 5, "unit": "m"}', "5"),
        ('{"answer": "Par', "par"),  # cut short
        ('{"response": "Paris"}', "paris"),
        ('["red", "blue"]', "red, blue"),
        ("[sic]", "[sic]"),
    ],
    "Chinese": [
        ("答案：巴黎。", "巴黎"),
        ("**答案**：巴黎", "巴黎"),
        ("根据图片，答案是巴黎。", "巴黎"),
        ("图中的动物是考拉。", "考拉"),
        ("这是埃菲尔铁塔。它位于巴黎。", "埃菲尔铁塔"),
        ("「巴黎」", "巴黎"),
        ("桉树叶", "桉树叶"),
    ],
}


@pytest.mark.parametrize(
    ("raw", "expected"),
    [pytest.param(*c, id=f"{n} {c[0]!r}") for n, cs in CASES.items() for c in cs],
)
def test_extraction_with_all_rules(raw, expected):
    assert short_answer(raw, Extraction()) == expected


@pytest.mark.parametrize(
    ("raw", "question", "expected"),
    [
        ("The koala mainly eats leaves.", EAT, "leaves"),
        ("Koalas mainly eat eucalyptus leaves.", EAT, "eucalyptus leaves"),
        ("These flowers are mainly grown in the Netherlands.", GROW, "netherlands"),
        ("In the image, the animal is a koala.", "Which animal is this?", "koala"),
        ("It is a koala.", "What is it?", "koala"),
        ("Sure! The animal is a koala.", "What animal is it?", "koala"),
        ("Sure, it's a koala.", "What animal is it?", "koala"),
        ("Certainly! It is a koala.</s>", "What animal is it?", "koala"),
        ("**Sure!** It is a koala.", "What animal is it?", "koala"),
        ("**Sure**! The animal is a **koala**.", "What animal is it?", "koala"),
        ("*Certainly,* it's a koala.", "What animal is it?", "koala"),
        ("Sure! **Koala**", "What animal is it?", "koala"),
        ("**Sure!**\n\n- Koala", "What animal is it?", "koala"),
        ("**Of course!** <answer>koala</answer>", "What animal is it?", "koala"),
        ("**Sure!**", "Is it?", "sure"),
        *(
            (text, "What animal is it?", "koala")
            for text in (
                *(
                    "`Sure!` It is a koala.",
                    "> Sure! It is a koala.",
                    "### Sure!\n\nIt is a koala.",
                ),
                *("\u200bSure! It is a koala.", "Sure!It is a koala", "No problem! It's a koala."),
                *("Sure! Of course, it is a koala.", '"Certainly!" It is a koala.'),
            )
        ),
        ("sure-footed", "How does it walk?", "sure-footed"),
        ("Of course-correction", "What is it?", "of course-correction"),
        ("**Absolutely Fabulous**", "Which series?", "absolutely fabulous"),
        ("It's located in Rome, Italy.", "Where is this?", "rome, italy"),
        ("They are used for music", "What are these used for?", "music"),
        ("It weighs about 5 kg.", "How much does it weigh?", "about 5 kg"),
        ("Yes, it is a mammal.", "Is it a mammal?", "yes"),
        ("Paris. The tower was built there.", "Which city is this?", "paris"),
        ("Built in 1889. It is old.", "When?", "built in 1889"),
        ("Paris, because the tower stands there.", "Which city is this?", "paris"),
        ("because it is cold", "Why do they wear coats?", "because it is cold"),
        # short answers that begin with words of the question, or with a verb, are no sentences
        ("animal farm", "What kind of animal place is this?", "animal farm"),
        ("church of St Paul", "Which church is this?", "church of st paul"),
        ("can opener", "What can this be used as?", "can opener"),
        ("the can opener", "What can it be?", "the can opener"),
        ("these flowers", GROW, "these flowers"),
        ("It is.", "Is it?", "it is"),
    ],
)
def test_the_answer_in_a_sentence(raw, question, expected):
    assert short_answer(raw, Extraction(), question) == expected


@pytest.mark.parametrize(
    ("rule", "raw", "kept"),
    [
        ("reasoning", "<think>a</think> b", "<think>a</think> b"),
        ("next_example", "Paris\nQuestion: Who?\nAnswer: Me", "me"),
        ("next_example", "Paris</s>", "paris</s>"),
        ("sentence", "Sure! Paris", "sure! paris"),
        ("marked", "Answer: Paris", "answer: paris"),
        ("markdown", "*Paris*", "*paris*"),
        ("first_line", "Paris\nRome.", "paris\nrome"),
        ("sentence", "It is Paris.", "it is paris"),
        ("strip_end", "'Paris'", "'paris'"),
        ("lower", "Paris", "Paris"),
    ],
)
def test_each_rule_can_be_switched_off(rule, raw, kept):
    assert short_answer(raw, Extraction(**{rule: False})) == kept
    assert short_answer(raw, Extraction()) != kept


def test_without_rules_the_generation_is_the_answer():
    raw = ' <think>x</think> **Answer:** "It is Paris" \nRome. '
    off = Extraction(**dict.fromkeys(Extraction.model_fields, False))
    assert short_answer(raw, off) == raw.strip()


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        ("。北京", "北京"),
        ("！ 北京。上海", "北京"),
        ("Answer: " * 1500 + "Paris", None),
        ("The answer is " * 1500 + "Paris", None),
        ('{"answer": ' + "[" * 5000, None),
        *((f"{text * 30_000} the answer is Paris", "paris") for text in ("\n", "__a ", "**")),
        *((text * 50_000, None) for text in ("[", "<think>", "(", "* ", "`", "-\n", "is ")),
    ],
)
def test_what_models_write_when_they_go_wrong_ends_no_run(raw, expected):
    found = short_answer(raw, Extraction())
    assert expected is None or found == expected


@pytest.mark.parametrize("text", ["\n", "\r\n", "\n ", "\u2028\n", "```\n", "- ", "[](", "\x1b["])
def test_long_texts_of_every_mark_take_no_time(text):
    began = time.process_time()
    short_answer(f"a{text * (200_000 // len(text))}z", Extraction())
    assert time.process_time() - began < 5  # of hours without a limit


def test_what_is_left_out_of_a_long_answer_is_said_once(caplog):
    rule = rule_class("top1")(answering_config({}))
    case = Case(Question(1, "What?"), (), ("k",), ((),), (0.0,))
    rule.draft(case, 0, Generation("<think>" + "a " * 9000 + "</think>b"))
    assert not caplog.records  # thinking is not shortened
    for _ in range(2):
        assert rule.draft(case, 0, Generation("a " * 9000)).raw == "a " * 9000
    [record] = caplog.records
    assert "a generation has 18000 characters: only its beginning and" in record.getMessage()
