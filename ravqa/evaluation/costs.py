"""What questions cost, as records of samples and results."""

from __future__ import annotations

from collections.abc import Mapping

from ravqa.core.accounts import Cost, total
from ravqa.evaluation.schema import ConditionCost, CostRecord, CostSection, Reused, Sample


def cost_record(cost: Cost) -> CostRecord:
    """Return a cost as it is written: a sum in which something is not known is null."""
    record: CostRecord = {
        "requests": _number(cost.requests),
        "retries": _number(cost.retries),
        "prompt_tokens": None if cost.unknown else _number(cost.prompt_tokens),
        "completion_tokens": None if cost.unknown else _number(cost.completion_tokens),
        "cached_tokens": None if cost.cached_tokens is None else _number(cost.cached_tokens),
    }
    if cost.unknown:
        record["unknown"] = _number(cost.unknown)
    if cost.money is not None:
        record["money"] = None if cost.unknown else round(cost.money, 12)
    if cost.reused:
        unknown = bool(cost.reused_unknown)
        reused: Reused = {
            "results": _number(cost.reused),
            "prompt_tokens": None if unknown else _number(cost.reused_prompt_tokens),
            "completion_tokens": None if unknown else _number(cost.reused_completion_tokens),
        }
        if unknown:
            reused["unknown"] = _number(cost.reused_unknown)
        if cost.reused_money is not None:
            reused["money"] = None if unknown else round(cost.reused_money, 12)
        record["reused"] = reused
    return record


def cost_of(record: CostRecord) -> Cost:
    """Return the cost that was written as a record; sums of which a part is unknown are 0."""
    made = Cost(
        requests=record["requests"],
        retries=record["retries"],
        prompt_tokens=record["prompt_tokens"] or 0,
        completion_tokens=record["completion_tokens"] or 0,
        cached_tokens=record["cached_tokens"],
        unknown=record.get("unknown", 0),
        money=record["money"] or 0.0 if "money" in record else None,
    )
    if "reused" not in record:
        return made
    reused = record["reused"]
    return made + Cost(
        reused=reused["results"],
        reused_prompt_tokens=reused["prompt_tokens"] or 0,
        reused_completion_tokens=reused["completion_tokens"] or 0,
        reused_unknown=reused.get("unknown", 0),
        reused_money=reused["money"] or 0.0 if "money" in reused else None,
    )


def cost_section(
    samples: Mapping[str, Mapping[int | str, Sample]], prepared: Cost, currency: str | None
) -> CostSection | None:
    """Return what a run cost, by condition and stage; None if nothing was charged.

    Args:
        samples: of the run and of its controls, those of its earlier parts included.
        prepared: what describing images and few-shot examples cost in this part of the run.
        currency: of the money; None without prices.
    """
    conditions: dict[str, ConditionCost] = {}
    for name, own in samples.items():
        stages: dict[str, Cost] = {}
        for sample in own.values():
            for stage, record in sample.get("cost", {}).items():
                stages[stage] = stages.get(stage, Cost()) + cost_of(record)
        conditions[name] = {
            "stages": {stage: cost_record(cost) for stage, cost in stages.items()},
            "total": cost_record(whole := total(stages.values())),
            "per_question": cost_record(whole / max(1, len(own))),
            "seconds": stage_seconds(own),
        }
    every = total([prepared, *(cost_of(found["total"]) for found in conditions.values())])
    if not every:
        return None
    return {
        "currency": currency,
        "prepared": cost_record(prepared),
        "conditions": conditions,
        "total": cost_record(every),
    }


def stage_seconds(samples: Mapping[int | str, Sample]) -> dict[str, float]:
    """Return mean seconds per question of every stage, also of the earlier parts of a run."""
    seconds: dict[str, float] = {}
    for sample in samples.values():
        for stage, value in sample["seconds"].items():
            seconds[stage] = seconds.get(stage, 0.0) + value
    return {stage: round(value / len(samples), 4) for stage, value in seconds.items()}


def _number(value: float) -> int | float:
    """Return a count without the rounding errors of its shares."""
    value = round(value, 9)
    return int(value) if value == int(value) else value
