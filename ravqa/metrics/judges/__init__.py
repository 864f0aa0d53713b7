"""Judges of answer equivalence: does a candidate answer mean the same as the reference?

`bem` runs a BERT checkpoint, `llm` asks a language model behind an OpenAI-compatible server.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ravqa.core.registry import Registry

if TYPE_CHECKING:
    from ravqa.metrics.judges.base import Judge

JUDGES: Registry[type[Judge]] = Registry(
    "judge",
    {
        "bem": (
            "ravqa.metrics.judges.bem:BEMJudge",
            "BERT classifier of answer equivalence (E-VQA)",
        ),
        "llm": (
            "ravqa.metrics.judges.llm:LLMJudge",
            "language model behind an OpenAI-compatible server",
        ),
    },
    contract="ravqa.metrics.judges.base:Judge",
)
