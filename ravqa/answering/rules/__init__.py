"""Decision rules, which turn the answers from k passages into one; one module per rule.

With x the question and its image, z_1..z_K the passages read, p(z_k | x) their prior (see
`ravqa.answering.priors`), y_k the reader's answer to the prompt with passage k alone, and |y| the
number of tokens of y, end mark included:

    none       y from x alone                                                  1 prompt
    top1       y from x and z_1                                                1 prompt
    concat     y from x and z_1..z_K together                                  1 prompt
    joint_max  the y_k with the largest log p(z_k|x) + log p(y_k|x,z_k)/|y_k|  K prompts
    marginal   the y with the largest sum_k p(z_k|x) p(y|x,z_k)                K, thorough: scores
    vote       the most frequent y_k                                           K prompts
    mixture    y decoded from sum_k p(z_k|x,y_<i) p(y_i|x,z_k,y_<i)            K prompts, in step
    likeliest_choice
               the choice c with the largest sum_k p(z_k|x) p(c|x,z_k)         K prompts: scores

Without retrieval, every rule has one prompt without passages. Rules are registered in
`ravqa.answering.RULES`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ravqa.answering import RULES
from ravqa.answering.config import DEFAULT_RULE, AnsweringConfig
from ravqa.answering.rules.base import DecisionRule
from ravqa.core.contracts import raised_by
from ravqa.core.errors import ContractError, UserError
from ravqa.core.settings import validate
from ravqa.readers.base import Abilities


def rule_class(name: str, where: str = "answering.decision") -> type[DecisionRule]:
    """Return the rule registered as `name`.

    Args:
        name: as in `answering.decision`.
        where: where the name is used, for messages.

    Raises:
        UserError: there is no such rule (similar names are listed), or it breaks its contract.
    """
    found = RULES.get(RULES.check(name, where))
    if not issubclass(found.Config, DecisionRule.Config):
        base = f"{DecisionRule.__module__}.{DecisionRule.__name__}"
        raise ContractError(
            f"the decision rule {name!r}: its Config is not derived from {base}.Config"
        )
    return found


def build_rule(config: DecisionRule.Config) -> DecisionRule:
    """Return the decision rule that its options name."""
    kind = rule_class(config.decision)
    with raised_by("decision rule", kind, "when built"):
        return kind(config)


def rule_settings(
    settings: Mapping[str, Any], where: str = "answering"
) -> tuple[type[DecisionRule.Config], dict[str, Any]]:
    """Return the chosen rule's options class, and the settings that apply to it.

    Options of other registered rules are checked and left out, so that a study can vary the rule
    alone.

    Args:
        settings: of `answering`, not validated.
        where: where they come from, for messages.

    Raises:
        UserError: an unknown rule, or an invalid value of another rule's option.
    """
    values = dict(settings)
    name = values.get("decision", DEFAULT_RULE)
    if not isinstance(name, str):
        validate(AnsweringConfig, {"decision": name}, where)
    config = rule_class(name, f"{where}: key 'decision'").Config
    for other, _ in RULES:
        if not values.keys() - config.model_fields.keys():
            break
        fields = rule_class(other).Config.model_fields
        idle = {
            k: values.pop(k) for k in values.keys() & fields.keys() - config.model_fields.keys()
        }
        if idle:
            validate(rule_class(other).Config, {"decision": other, **idle}, where)
    return config, values


def answering_config(settings: Mapping[str, Any], where: str = "answering") -> DecisionRule.Config:
    """Validate the settings of `answering` against the options of the chosen rule.

    Raises:
        UserError: an unknown rule or option, or an invalid value; the key's path is named.
    """
    config, values = rule_settings(settings, where)
    return validate(config, values, where)


def answering_with(
    settings: Mapping[str, Any], decision: str, passages: int
) -> DecisionRule.Config:
    """Return the options of answering by another rule, from at most so many passages.

    A rule that reads one passage alone gets one.

    Raises:
        UserError: as `answering_config`.
    """
    chosen = {**settings, "decision": decision}
    try:
        return answering_config({**chosen, "passages": passages})
    except UserError:
        if passages <= 1:
            raise
        return answering_config({**chosen, "passages": 1})


def fitting_rules(settings: Mapping[str, Any], reader: Abilities) -> list[str]:
    """Return the rules for open questions and retrieved passages that a reader can serve.

    Args:
        settings: of `answering`; the rule that they name comes first.
        reader: what the reader can do.
    """
    first = answering_config(settings).decision
    names = []
    for name, _ in RULES:
        rule = build_rule(answering_with(settings, name, 2))
        if rule.most_passages and not rule.needs_choices and not rule.problem(reader):
            names.append(name)
    return sorted(names, key=lambda name: name != first)


def reader_problem(config: DecisionRule.Config, reader: Abilities) -> str:
    """Return why the decision rule cannot use a reader, and what would help; blank if it can.

    Args:
        config: options of the decision rule that it names.
        reader: what the reader can do.
    """
    rule = build_rule(config)
    if found := _picture_problem(min(config.passage_images, rule.most_passages), config, reader):
        return found
    if config.self_check is not None and not reader.scores_answers:
        ways = [f"reader.{way}" for way in reader.ways_to(lambda able: able.scores_answers)]
        also = f"set {ways[0]} if the server can do that, or " if ways else ""
        return (
            "answering.self_check has the reader score yes and no, which this reader cannot: "
            f"{also}choose one that does, or leave it out"
        )
    why = rule.problem(reader)
    if not why:
        return ""
    fit = [name for name, _ in RULES if name != "none" and _fits(config, name, reader)]
    choose = " or ".join(filter(None, (", ".join(fit[:-1]), *fit[-1:])))
    ways = [f"reader.{way}" for way in reader.ways_to(lambda able: not rule.problem(able))]
    keep = f"set {' or '.join(ways)} if the server can do that, or " if ways else ""
    return (
        f"answering.decision {config.decision} {why}, which this reader does not give: "
        f"{keep}choose {choose}"
    )


def _picture_problem(pictures: int, config: DecisionRule.Config, reader: Abilities) -> str:
    """Return why a reader cannot be shown so many pictures beside the question's image, or ""."""
    if not pictures:
        return ""
    most = reader.max_images if reader.supports_images else 0
    if most is None or most > pictures:
        return ""
    asked = f"answering.passage_images is {config.passage_images}, but this reader takes"
    if most:
        only = "only one image" if most == 1 else f"at most {most} images"
        return (
            f"{asked} {only} in a prompt, the question's included: set it to {most - 1}"
            f"{'' if most == 1 else ' or less'}"
        )
    ways = [f"reader.{way}" for way in reader.ways_to(lambda able: able.supports_images)]
    also = f"set {ways[0]} if the server can do that, or " if ways else ""
    return f"{asked} no images: {also}choose one that does, or set it to 0"


def _fits(config: DecisionRule.Config, name: str, reader: Abilities) -> bool:
    settings = config.model_dump(exclude_unset=True) | {"decision": name}
    try:
        other = build_rule(answering_config(settings))
        return not other.needs_choices and not other.problem(reader)
    except UserError:  # one passage alone, for instance, is not what the settings say
        return False
