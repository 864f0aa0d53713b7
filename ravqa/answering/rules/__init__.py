"""Decision rules: from the answers to k passages to one answer, one module a rule.

With x the question and its image, z_1..z_K the passages read, p(z_k | x) their prior (see
`ravqa.answering.priors`), y_k the reader's answer to the prompt with passage k alone, and |y| the
number of tokens of y, its end mark included:

    none       y read from x alone                                             1 prompt
    top1       y read from x, z_1                                              1 prompt
    concat     y read from x, z_1..z_K together                                1 prompt
    joint_max  the y_k with the largest log p(z_k|x) + log p(y_k|x,z_k)/|y_k|  K prompts
    marginal   the y with the largest sum_k p(z_k|x) p(y|x,z_k)                K, thorough: scores
    vote       the answer that most y_k are                                    K prompts
    mixture    y decoded from sum_k p(z_k|x,y_<i) p(y_i|x,z_k,y_<i)            K prompts, in step

Without passages (no retrieval) every rule is one prompt without passages.
"""

from __future__ import annotations

from ravqa.answering.config import Decision
from ravqa.answering.rules.base import Rule
from ravqa.answering.rules.joint_max import JointMax
from ravqa.answering.rules.marginal import Marginal
from ravqa.answering.rules.mixture import Mixture
from ravqa.answering.rules.one_prompt import Concat, NoPassage, Top1
from ravqa.answering.rules.vote import Vote

RULES: dict[Decision, type[Rule]] = {
    "none": NoPassage,
    "top1": Top1,
    "concat": Concat,
    "joint_max": JointMax,
    "marginal": Marginal,
    "vote": Vote,
    "mixture": Mixture,
}
