"""Scoring rules that other projects released, as metrics: one file per source.

They show how much of a number is its rule; none is a dataset's own score (docs/scoring-rules.md).
"""

_RULES = {
    "berag": {
        "berag.evqa": ("Evqa", "BERAG's E-VQA score"),
        "berag.infoseek_bem": ("InfoSeekBem", "BERAG's InfoSeek score by a judge"),
    },
    "comem": {
        "comem.infoseek": ("ForInfoSeek", "CoMEM's InfoSeek score"),
        "comem.okvqa": ("ForOKVQA", "CoMEM's OK-VQA score"),
        "comem.aokvqa": ("ForAOKVQA", "CoMEM's A-OKVQA score"),
    },
    "evqa": {"evqa.official": ("Official", "E-VQA's official code, with all its means")},
    "flashrag": {
        "flashrag.em": ("ExactMatch", "FlashRAG's exact match"),
        "flashrag.acc": ("Accuracy", "FlashRAG's substring match"),
        "flashrag.f1": ("F1", "FlashRAG's F1 of words"),
        "flashrag.precision": ("Precision", "FlashRAG's precision of words"),
        "flashrag.recall": ("Recall", "FlashRAG's recall of words"),
    },
    "infoseek_eval": {
        "infoseek.official": ("Official", "InfoSeek's official toolkit, answered questions alone")
    },
    "lavis": {
        "lavis.vqa": ("Vqa", "LAVIS' VQA accuracy"),
        "lavis.vqa.without_answer_ids": ("WithoutAnswerIds", "the same without ids of answers"),
        "lavis.aok_vqa": ("AokVqa", "LAVIS' A-OKVQA accuracy"),
    },
    "lmms_eval": {
        "lmms_eval.ok_vqa": ("OkVqa", "lmms-eval's OK-VQA accuracy"),
        "lmms_eval.ok_vqa.reasoning_tags_none": ("OkVqaRaw", "the same with thinking kept"),
    },
    "mmsearch_r1": {
        "mmsearch_r1.em_check": ("EmCheck", "MMSearch-R1's exact match"),
        "mmsearch_r1.subem_check": ("SubEmCheck", "MMSearch-R1's substring match"),
        "mmsearch_r1.reward_em": ("RewardEm", "MMSearch-R1's reward by exact match"),
        "mmsearch_r1.reward_subem": ("RewardSubEm", "MMSearch-R1's reward by substring"),
    },
    "pixelrag": {
        "pixelrag.nq_exact": ("NqExact", "PixelRAG's exact match"),
        "pixelrag.judge": ("JudgeLabels", "PixelRAG's E-VQA score by a judge"),
    },
    "pmsr": {
        "pmsr.cem.rows_of_main": ("RowsOfMain", "PMSR's substring match"),
        "pmsr.cem.rows_range_dict": ("RowsRangeDict", "the same with ranges of numbers"),
        "pmsr.cem.rows_legacy": ("RowsLegacy", "the same for older rows"),
        "pmsr.cem.rows_of_main_list": ("RowsOfMainList", "PMSR's substring match for E-VQA"),
        "pmsr.cem.rows_of_main_raw_string": ("RowsOfMainRawString", "the same, column as it is"),
        "pmsr.bem.rows_of_main_list": ("BemList", "PMSR's E-VQA score by a judge"),
        "pmsr.bem.rows_of_main_raw_string": ("BemRawString", "the same, column as it is"),
        "pmsr.llm": ("Llm", "PMSR's score by a language model"),
    },
    "promsa": {
        "promsa.em_score": ("EmScore", "ProMSA's exact match in <answer>"),
        "promsa.llm_score": ("LlmScore", "ProMSA's score by a judge"),
        "promsa.llm_score_allow_no_answer_tag": (
            "LlmScoreAllowNoAnswerTag",
            "the same without <answer>",
        ),
    },
    "ra_vqa": {
        "ravqa.em": ("ExactMatch", "RA-VQA's exact match"),
        "ravqa.infoseek": ("ForInfoSeek", "RA-VQA's InfoSeek score, on a prefix"),
    },
    "reag": {
        "reag.first_128": ("First128", "ReAG's E-VQA score"),
        "reag.infoseek": ("ForInfoSeek", "ReAG's InfoSeek score"),
    },
    "ultrarag": {
        "ultrarag.acc": ("Accuracy", "UltraRAG's substring match"),
        "ultrarag.em": ("ExactMatch", "UltraRAG's exact match"),
        "ultrarag.stringem": ("StringEM", "UltraRAG's share of equal references"),
        "ultrarag.coverem": ("CoverEM", "UltraRAG's words covered"),
        "ultrarag.f1": ("F1", "UltraRAG's F1 of words"),
    },
    "vqa": {
        "vqa.official": ("Official", "VQA's official code, rounded"),
        "vqa.official.without_answer_ids": ("WithoutAnswerIds", "the same without ids of answers"),
    },
    "wikiprf": {
        "wikiprf.test": ("Test", "Wiki-PRF's InfoSeek score"),
        "wikiprf.reward": ("Reward", "Wiki-PRF's training reward for InfoSeek"),
    },
}

RELEASED: dict[str, tuple[str, str]] = {
    name: (f"ravqa.metrics.released.{module}:{target}", summary)
    for module, rules in _RULES.items()
    for name, (target, summary) in rules.items()
}
"""Import target and summary of each rule, by name."""
