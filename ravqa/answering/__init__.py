"""Answering with any reader: prompts, and the decision over k passages."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ravqa.core.registry import Registry

if TYPE_CHECKING:
    from ravqa.answering.rules.base import DecisionRule

RULES: Registry[type[DecisionRule]] = Registry(
    "decision rule",
    {
        "none": (
            "ravqa.answering.rules.one_prompt:NoPassage",
            "the question alone, without passages",
        ),
        "top1": ("ravqa.answering.rules.one_prompt:Top1", "the best passage alone"),
        "concat": ("ravqa.answering.rules.one_prompt:Concat", "all passages in one prompt"),
        "joint_max": (
            "ravqa.answering.rules.joint_max:JointMax",
            "most probable pair of a passage and its answer (RA-VQA)",
        ),
        "marginal": (
            "ravqa.answering.rules.marginal:Marginal",
            "most probable answer over all passages (RAG)",
        ),
        "vote": ("ravqa.answering.rules.vote:Vote", "the answer that most passages give"),
        "mixture": (
            "ravqa.answering.rules.mixture:Mixture",
            "one answer decoded from all passages at once (RAG, BERAG)",
        ),
        "likeliest_choice": (
            "ravqa.answering.rules.likeliest_choice:LikeliestChoice",
            "the most probable of the question's choices, over all passages",
        ),
    },
    contract="ravqa.answering.rules.base:DecisionRule",
)
