"""The files of runs, studies and comparisons: every key, its type and what it means.

All that is written there is made as one of these types, and all that is read back is checked
against them by `parsed` and `validated`. `docs/results.md` is made from this file
(`ravqa.evaluation.schema_page`).
"""

from __future__ import annotations

import gzip
import math
import zlib
from collections.abc import Iterator, Mapping
from functools import cache, partial
from pathlib import Path
from typing import Annotated, Any, Literal, NotRequired, TypeVar, cast

from pydantic import (
    AfterValidator,
    ConfigDict,
    Field,
    Strict,
    TypeAdapter,
    ValidationError,
    with_config,
)
from typing_extensions import TypedDict  # pydantic needs this one before Python 3.12

from ravqa.core.errors import DataError
from ravqa.core.files import LONGEST_LINE, check_file
from ravqa.metrics.prrecall import Rule

T = TypeVar("T")

SCHEMA_VERSION = 2
"""Of `results.json` and `samples.jsonl`; it grows where their keys change their meaning."""
TABLE_VERSION = 1
"""Of `table.json`."""


def _log(value: float) -> float:
    if math.isnan(value) or value == math.inf:
        raise ValueError(f"{value} is not the logarithm of a probability")
    return value


Count = Annotated[int, Field(ge=0)]
"""A whole number, 0 or more."""
Rank = Annotated[int, Field(ge=1)]
"""A place in a ranking; the first is 1."""
# Sums of rounded numbers may pass the bounds by a little.
Share = Annotated[float, Field(ge=0, le=1 + 1e-9)]
"""A number from 0 to 1."""
Percent = Annotated[float, Field(ge=0, le=100 + 1e-9)]
"""A number from 0 to 100, to four decimals."""
Points = Annotated[float, Field(ge=-100 - 1e-9, le=100 + 1e-9)]
"""A difference of two percentages."""
Seconds = Annotated[float, Field(ge=0)]
"""A time in seconds."""
Amount = Annotated[int | float, Field(ge=0)]
"""A number, 0 or more; a question's share of common work may be a fraction."""
Log = Annotated[float, Field(allow_inf_nan=True), AfterValidator(_log)]
"""A score that decision rules compare, or the natural logarithm of a probability; `-Infinity` for a
probability of 0."""
Bounds = Annotated[list[float | None], Field(min_length=2, max_length=2)]
"""The two ends of a 95 % interval; both null without one (docs/metrics.md says when)."""
AtK = dict[str, Percent]
"""A percentage for each K; the keys are numbers as text."""
Scored = Annotated[tuple[str, float], Strict(False)]
"""A pair as a list: an id or a name, and its score."""

# Of types that are read by themselves; those inside of them follow. Datasets and metrics may add
# keys of their own.
_read_strictly = with_config(ConfigDict(strict=True, allow_inf_nan=False, extra="allow"))


# -- samples.jsonl ---------------------------------------------------------------------------------


class AnswerRanks(TypedDict):
    """Ranks of passages that contain a reference answer, under each rule of PRRecall."""

    flmr: list[Rank]
    """The text contains the answer, stripped; letter case is ignored."""
    ravqa: list[Rank]
    """The same, without stripping the answer."""
    word: list[Rank]
    """The text contains the answer as whole words."""
    nfkc: NotRequired[list[Rank]]
    """As `flmr`, with answer and text in Unicode's form NFKC; missing in older runs."""


class Marks(TypedDict):
    """The ranks of relevant passages."""

    answer_ranks: AnswerRanks | None
    """Ranks of passages that contain a reference answer; null without references."""
    id_ranks: list[Rank] | None
    """Ranks of the passages known to be relevant; null if none is known."""
    article_ranks: list[Rank] | None
    """Ranks of relevant articles, each article counted once; null if none is known."""


class Ranking(Marks):
    """The passages found for one question, best first."""

    hits: list[Scored]
    """Each passage's id and score."""


class StageRanking(Ranking):
    """The ranking after one stage of retrieval."""

    stage: str
    """`retrieved`, or the reranker's name."""


class Draft(TypedDict):
    """One generated answer."""

    text: str
    """The short answer extracted from `raw`."""
    raw: str
    """What the reader generated, up to 300 characters."""
    thinking: NotRequired[str]
    """What the reader's model thought before it answered, up to 300 characters; blank if it did
    not."""
    log_prob: Log | None
    """Sum of the generated tokens' log-probabilities; null if the reader gives none."""
    tokens: Count
    """Number of generated tokens that `log_prob` sums over."""
    passage_ids: list[str]
    """The passages in the prompt."""
    prompt_hash: str
    """Hash of the prompt, its key in `prompts.jsonl.gz`."""
    score: Log | None
    """The value that the decision rule compared; null if it compares nothing."""
    prior: Share | None
    """Probability of the passage before reading, p(z | x); null if the rule has none."""
    posterior: Share | None
    """Its probability given the chosen answer, p(z | x, y); null if the rule has none."""
    in_passages: bool
    """Whether one of the passages in the prompt contains the text."""


class Cached(TypedDict):
    """How much of a stage came from the cache."""

    share: Share
    """Share of the values looked up that were found."""


class Reused(TypedDict):
    """What came from this project's cache, without a request, and what it had cost when it was
    made."""

    results: Amount
    """Results from the cache."""
    prompt_tokens: Amount | None
    """Tokens of their prompts; null if it is not known for all."""
    completion_tokens: Amount | None
    """Tokens generated for them; null if it is not known for all."""
    unknown: NotRequired[Amount]
    """Results of which it is not known; absent if there are none."""
    money: NotRequired[Amount | None]
    """What they had cost, by the present prices; null if it is not known, absent without prices."""


class CostRecord(TypedDict):
    """What some work cost, without what came from the cache."""

    requests: Amount
    """Requests sent to servers, each try counted; models on this machine take none."""
    retries: Amount
    """Those of them that repeated an earlier one."""
    prompt_tokens: Amount | None
    """Tokens that models read, images included; null if it is not known of all replies."""
    completion_tokens: Amount | None
    """Tokens that models generated, thinking included; null if it is not known of all replies."""
    cached_tokens: Amount | None
    """Prompt tokens that servers read from their own caches; null if no server said."""
    unknown: NotRequired[Amount]
    """Replies of which the server did not say the tokens; absent if there are none."""
    money: NotRequired[Amount | None]
    """The price of the tokens; null if it is not known, absent without prices."""
    reused: NotRequired[Reused]
    """What came from the cache; absent if nothing did."""


@_read_strictly
class Retrieved(TypedDict):
    """What `--retriever static:FILE` reads of a sample."""

    question_id: int | str
    """The id in the dataset."""
    hits: list[Scored]
    """Each passage's id and score, best first."""


@_read_strictly
class SamplePictures(TypedDict):
    """What became of the pictures of the passages that were read."""

    shown: Count
    """Pictures in the prompts, one that belongs to several passages counted once a prompt."""
    cut: Count
    """Passages whose picture was left out because it did not fit."""
    unread: list[str]
    """Passages whose picture cannot be read, each with the reason."""


@_read_strictly
class Predicted(Ranking):
    """What `ravqa score` reads of a sample, apart from its id."""

    answer: NotRequired[str | None]
    """The answer; null if the reader gave none, absent if none was asked for."""
    stages: NotRequired[list[StageRanking] | None]
    """The ranking as retrieved and after each reranker; absent without reranking."""
    read: NotRequired[Ranking | None]
    """The passages that were in a prompt, in the order of the hits."""
    raw: NotRequired[str | None]
    """The whole generation of the chosen answer; null for a question without an answer."""
    cut: NotRequired[Count]
    """Passages that did not fit into the reader's context and were left out."""
    neutralised: NotRequired[Count]
    """Control tokens of the reader's model in question and passages, which reached it as plain
    text; absent if there were none."""
    pictures: NotRequired[SamplePictures]
    """Pictures of the passages; absent if prompts show none (`answering.passage_images`)."""
    drafts: NotRequired[list[Draft]]
    """The answers that the decision rule chose from, one per prompt."""
    decision: NotRequired[str | None]
    """The decision rule's name; null for a question without an answer."""
    joint: NotRequired[bool]
    """Whether the answer was decoded from several prompts together, so that it belongs to no single
    passage; otherwise absent."""
    error: NotRequired[str]
    """Why the question has no answer, or no retrieval; otherwise absent."""


@_read_strictly
class Sample(Predicted):
    """A line of `samples.jsonl` (the run) or `samples.CONTROL.jsonl` (one of its controls)."""

    question_id: int | str
    """The id in the dataset; once per file."""
    question: str
    """The question as asked."""
    question_type: str | None
    """Its type, by which results are grouped."""
    image_id: int | str | None
    """Id of the image, which intervals and tests resample; null for a question without an image."""
    split: str | None
    """The part of the dataset that the question is from, if the metric distinguishes parts."""
    answers: list[str]
    """Reference answers."""
    answer_eval: NotRequired[list[Any]]
    """InfoSeek's evaluation forms of the answers: texts, or one object with `range`; absent if the
    question has none, and in older runs."""
    choices: NotRequired[list[str]]
    """The choices of a multiple-choice question; otherwise absent."""
    correct_choice: NotRequired[Count | None]
    """Position of the right one, from 0; null if it is not known, absent without choices."""
    tags: list[Scored]
    """What the describer saw in the image, each tag with its probability."""
    caption: str
    """The describer's caption; blank without one."""
    ocr: list[str]
    """Texts that were recognised in the image."""
    log_prob: NotRequired[Log | None]
    """Log-probability of the answer under the decision rule; null if it has none."""
    seconds: dict[str, Seconds]
    """By stage, the time that one question took in this run; together under way, they share it."""
    cached: dict[str, Cached]
    """By stage, how much came from the cache."""
    cost: NotRequired[dict[str, CostRecord]]
    """By stage that asked a model, what the question cost; a judge's requests are shared out evenly
    among the questions that were judged together. Absent if none was asked."""
    score: NotRequired[Share]
    """The answer's score by the dataset's metric; absent if nothing is scored."""
    raw_score: NotRequired[Share]
    """The score of the whole generation, as if no answer had been extracted from it."""
    unjudged: NotRequired[str]
    """Why the judge gave no verdict on the answer, which counts as wrong; otherwise absent."""
    not_attempted: NotRequired[bool]
    """Whether the judge says that the answer does not try to answer; absent if it does not."""
    raw_unjudged: NotRequired[str]
    """The same for the whole generation."""
    exact_match: NotRequired[bool]
    """Whether the answer is a reference, after the metric's own clean-up."""
    right: NotRequired[bool]
    """Whether the answer counts as right when counting what retrieval helped or hurt."""
    self_check: NotRequired[Share]
    """Probability by the reader itself that its answer is right (`answering.self_check`); absent if
    it gave none, or was not asked."""
    refused: NotRequired[bool]
    """Whether the answer says that there is none ("I don't know"); absent if it does not."""


# -- prompts.jsonl.gz ------------------------------------------------------------------------------


class Prompt(TypedDict):
    """A line of `prompts.jsonl.gz`: a prompt that the reader was given; each occurs once."""

    prompt_hash: str
    """Its hash, which drafts refer to."""
    prompt: str
    """Its text, without images."""


# -- results.json ----------------------------------------------------------------------------------


class PairedTest(TypedDict):
    """A paired permutation test over images, on the same questions."""

    difference: Points
    """Mean of the first minus the second."""
    interval_95: Bounds
    """Its bootstrap interval."""
    p_value: Share
    """Two-sided p-value."""
    wins: Count
    """Questions on which the first scores higher."""
    losses: Count
    """Questions on which it scores lower."""
    ties: Count
    """Questions on which both score the same."""


class Comparison(PairedTest):
    """The run minus one of its controls."""

    hit_success_ratio: NotRequired[Percent]
    """Against `none` only: questions right in the run and wrong without retrieval."""
    free_success_ratio: NotRequired[Percent]
    """Against `none` only: questions right in the run and without retrieval."""


class Unjudged(TypedDict):
    """An answer that counts as wrong because the judge gave no verdict on it."""

    question_id: int | str
    """The id in the dataset."""
    reason: str
    """Why there is no verdict."""


class Means(TypedDict):
    """Scores of one kind of answer. A metric may add keys of its own."""

    score: Percent | None
    """The metric's score over all questions; null if it has none."""
    mean: NotRequired[Percent]
    """The mean, if the metric's score is something else; the interval is then that of the mean."""
    interval_95: Bounds
    """Interval of the score, or of `mean` if present."""
    unjudged: list[Unjudged]
    """Answers that got no verdict from the judge; empty if no judge was asked."""


class Group(TypedDict):
    """Scores of one question type."""

    mean: Percent
    """Mean score."""
    questions: Count
    """Questions of this type."""
    interval_95: Bounds
    """Interval of the mean."""


class Neutralised(TypedDict):
    """Control tokens of the reader's model found in texts of prompts, and read as plain text."""

    tokens: Count
    """Their number."""
    questions: Count
    """Questions with such a token."""


class UnreadPicture(TypedDict):
    """Pictures that the reader was not shown because they cannot be read."""

    question_id: int | str
    """The id of the question in the dataset."""
    reasons: list[str]
    """The passages, each with the reason."""


class PictureCounts(TypedDict):
    """What became of the pictures of the passages that were read."""

    shown: Count
    """Pictures in prompts."""
    questions: Count
    """Questions with such a picture."""
    cut: Count
    """Passages whose picture was left out because it did not fit."""
    unread: list[UnreadPicture]
    """Questions with pictures that cannot be read."""


class Cut(TypedDict):
    """What did not fit into the reader's context."""

    passages: Count
    """Passages that were left out."""
    questions: Count
    """Questions with such a passage."""


class Unanswered(TypedDict):
    """A question that the reader could not answer; it counts as wrong."""

    question_id: int | str
    """The id in the dataset."""
    reason: str
    """Why there is no answer."""


class HitTables(TypedDict):
    """RA-VQA's hit table: percentages of drafts by whether they are right and in the passage."""

    documents: dict[str, Percent]
    """Over all drafts."""
    selected: dict[str, Percent]
    """Over the chosen drafts."""


class AnswerScores(Means):
    """Answer quality of the run or of one control."""

    raw: Means | None
    """Scores of whole generations, without extracting an answer; null if unknown."""
    cut: Cut
    """Passages that did not fit into prompts."""
    neutralised: NotRequired[Neutralised]
    """Control tokens that became plain text; absent in results of earlier versions."""
    pictures: NotRequired[PictureCounts | None]
    """Pictures of passages; null if prompts show none (`answering.passage_images`), absent in
    results of earlier versions."""
    unanswered: list[Unanswered]
    """The questions without an answer."""
    empty: NotRequired[Count]
    """Answers without any word, for instance because extraction left nothing."""
    no_choice: NotRequired[Count]
    """Answers that are none of their question's choices."""
    exact_match: AtK
    """By n, percentage of questions with a reference among the n best different drafts."""
    hits: HitTables | None
    """Null unless every answer was read from a single passage."""
    groups: dict[str, Group]
    """By question type."""


class AnswerSection(TypedDict):
    """Answer quality."""

    metric: str
    """The metric's registered name."""
    label: str
    """The metric's name in tables."""
    right: str
    """When an answer counts as right."""
    rule: dict[str, Any]
    """How the metric was applied: its options, its judge."""
    questions: Count
    """Number of questions common to all conditions."""
    conditions: dict[str, AnswerScores]
    """`main` is the run itself, the others are its controls."""
    comparisons: dict[str, Comparison]
    """Key: `main - CONTROL`."""


class Estimated(TypedDict):
    """A percentage with its interval over images."""

    value: Percent
    """The estimate."""
    interval_95: Bounds
    """Its bootstrap interval."""


class Outcomes(TypedDict):
    """Numbers of questions by what became of them; each counts once, `refused_read` apart."""

    answered_right: Count
    """The answer is right."""
    answered_wrong: Count
    """The answer is wrong, and no refusal; an empty one is wrong."""
    refused_answerable: Count
    """Refused, although a retrieved passage contains a reference answer."""
    refused_read: Count
    """Those of them with such a passage in a prompt."""
    refused_rightly: Count
    """Refused, and no retrieved passage contains a reference answer."""
    refused_unknown: Count
    """Refused, and there are no references to look for in passages."""
    unanswered: Count
    """The reader could not answer, which is no refusal."""


class Truthfulness(TypedDict):
    """The mean of +1 for a right answer, 0 for none, and -1 for a wrong one, times 100."""

    value: Points
    """The mean over all questions."""
    interval_95: Bounds
    """Its bootstrap interval."""


class RiskAt(TypedDict):
    """A point of the risk-coverage curve."""

    coverage: Percent
    """The share of the questions that are answered is at least this, as little as possible."""
    risk: Percent
    """Mean loss of their answers."""
    interval_95: Bounds
    """Interval of the risk."""


class ConfidenceScores(TypedDict):
    """How well a confidence tells right answers from wrong ones.

    Questions without an answer, and refusals that are not right, have the lowest confidence.
    """

    about: str
    """What the confidence is."""
    questions: Count
    """Questions that have it; the others are answered last."""
    AUROC: Estimated | None
    """Probability that a right answer has a higher confidence than a wrong one, 50 for a confidence
    that tells nothing; null if all answers are right, or none is."""
    AURC: Estimated
    """Area under the risk-coverage curve: the lower, the better."""
    coverage_at_risk: dict[str, Estimated]
    """By target risk in percent: the largest share of questions that can be answered at that
    risk, if the threshold is chosen on these very questions."""
    ECE: NotRequired[Estimated]
    """Expected calibration error; absent if the confidence is no probability."""
    Brier: NotRequired[Estimated]
    """Brier score, times 100; absent if the confidence is no probability."""
    curve: list[RiskAt]
    """The risk-coverage curve."""


class SelectiveSection(TypedDict):
    """Knowing when not to answer."""

    metric: str
    """Name of the metric by whose score the risk of an answer is 100 minus its score."""
    right: str
    """When an answer counts as right."""
    refusals: str
    """What counts as a refusal."""
    answerable: str
    """When a question counts as answerable from the retrieved passages."""
    truthfulness: str
    """How +1, 0 and -1 are given."""
    questions: Count
    """Number of questions common to all conditions."""
    outcomes: dict[str, Outcomes]
    """By condition."""
    scores: dict[str, Truthfulness]
    """By condition."""
    confidences: dict[str, ConfidenceScores]
    """By name of the confidence, those of the run itself that are on record."""


class RetrievalScores(TypedDict):
    """PRRecall of the run or of one control."""

    PRRecall: AtK
    """Percentage of questions with a reference answer in one of the first K passages."""
    interval_95: dict[str, Bounds]
    """Interval of PRRecall at each K."""
    PRPrecision: AtK
    """Percentage of the first K passages that contain a reference answer."""
    PRRecall_by_rule: dict[str, AtK]
    """PRRecall under each rule for what containing an answer means."""
    groups: dict[str, AtK]
    """PRRecall by question type."""


class IdScores(TypedDict):
    """Retrieval scored by the ids of passages known to be relevant."""

    Recall: AtK
    """Percentage of questions with a relevant passage among the first K."""
    interval_95: dict[str, Bounds]
    """Interval of the recall at each K."""
    Precision: AtK
    """Percentage of the first K passages that are relevant."""
    nDCG: AtK
    """Normalised discounted cumulative gain."""
    MRR: Percent
    """Mean reciprocal rank of the first relevant passage."""


class IdSection(TypedDict):
    """Retrieval by passage ids."""

    metric: str
    """`Recall`."""
    questions: Count
    """Questions with passages known to be relevant."""
    conditions: dict[str, IdScores]
    """The conditions that retrieved."""


class ArticleScores(TypedDict):
    """Retrieval scored by articles, K counting articles."""

    Recall: AtK
    """Percentage of questions with a relevant article among the first K."""
    interval_95: dict[str, Bounds]
    """Interval of the recall at each K."""


class ArticleSection(TypedDict):
    """Retrieval by articles."""

    metric: str
    """`Recall`."""
    questions: Count
    """Questions with articles known to be relevant."""
    conditions: dict[str, ArticleScores]
    """The conditions that retrieved."""


class StageScores(TypedDict):
    """Recall after one stage: after retrieval, after a reranker, or of what was in the prompts."""

    stage: str
    """`retrieved`, the reranker's name, or `read`."""
    passages: Annotated[float, Field(ge=0)]
    """Mean number of passages per question."""
    without_passages: Count
    """Questions without a passage after this stage."""
    PRRecall: NotRequired[AtK]
    """PRRecall at each K, and over `all` passages."""
    Recall: NotRequired[AtK]
    """Recall by passage ids."""
    ArticleRecall: NotRequired[AtK]
    """Recall by articles."""
    gain: NotRequired[dict[str, dict[str, PairedTest]]]
    """For a reranker: by kind of recall and K, the difference from what was retrieved."""


class Reported(TypedDict):
    """A number as the benchmark's own tables give it."""

    metric: str
    """`pseudo_recall_at_k`, `recall_at_k` or `article_recall_at_k`."""
    k: Rank
    """How many passages, or articles, count."""
    questions: Count
    """Number of questions that it is over."""
    conditions: dict[str, Percent]
    """By condition."""
    intervals_95: dict[str, Bounds]
    """By condition."""


class EncodingCounts(TypedDict):
    """What went into an encoder and what came out."""

    items: Count
    """Texts encoded."""
    truncated: Count
    """Texts longer than the encoder's limit, which were cut."""
    tokens: Count
    """Tokens that the model read, without padding."""
    vectors: Count
    """Vectors that it returned."""
    neutralised: NotRequired[Count]
    """Control tokens of the model in the texts, which it read as plain text; absent in results of
    earlier versions."""


class RetrievalSection(TypedDict):
    """Retrieval, after all reranking."""

    metric: str
    """`PRRecall`."""
    rule: Rule
    """The rule for what containing an answer means."""
    searched_text: str
    """The text of a passage that is searched for answers."""
    answers: str
    """The answers that are searched for."""
    ranking: str
    """Which ranking is scored."""
    questions: Count
    """Questions with reference answers."""
    conditions: dict[str, RetrievalScores]
    """The conditions that retrieved."""
    stages: dict[str, list[StageScores]]
    """By condition, the stages of retrieval in order."""
    by_ids: IdSection | None
    """Null if no relevant passage is known by its id."""
    by_articles: ArticleSection | None
    """Null if no relevant article is known."""
    reported: list[Reported]
    """The numbers of the benchmark's own tables."""
    passages: NotRequired[EncodingCounts]
    """Counts from encoding the passages, if known."""


class Skipped(TypedDict):
    """A broken record of the dataset (`--on-error skip`)."""

    question_id: int | str | None
    """The id in the dataset; null if it could not be read."""
    where: str
    """File and line."""
    reason: str
    """What is wrong with it."""


class ScoredDataset(TypedDict):
    """The dataset. A dataset may add keys of its own."""

    name: str
    """The registered name."""
    label: str
    """The display name."""
    sample: bool
    """Whether it is the bundled sample, whose scores are not benchmark scores."""
    split: str | None
    """The split."""
    questions: Count
    """Questions that were asked."""
    images: Count
    """Number of different images."""


class RunDataset(ScoredDataset):
    """The dataset of a run."""

    limit: Count | None
    """`--limit`; null for all questions."""
    skipped: list[Skipped]
    """The broken records that were left out."""


class LeftOut(TypedDict):
    """Records of the passages' files (`--on-error skip`), or pictures, that cannot be used."""

    records: Count
    """How many there are."""
    first: list[str]
    """Where the first are, and why they cannot be used; at most 20."""


class CorpusSource(TypedDict):
    """The passages."""

    source: str
    """Where they come from."""
    passages: Count
    """How many there are."""
    left_out: LeftOut
    """What was left out."""


class LostWorker(TypedDict):
    """Work of a worker of a Ray cluster that was lost meanwhile: one call, of several at a time."""

    what: str
    """What it was: `the shard 3 of 4`, `the reader 1 of 2`."""
    reason: str
    """What Ray says of it."""


class RunProvenance(TypedDict):
    """Where the numbers of a run come from."""

    pipeline: str
    """The pipeline's name or file."""
    retriever: str
    """The name of the retriever that ran; tables call the run by it."""
    chosen_on: str | None
    """Which questions its settings were chosen on, as its file says."""
    overrides: list[str]
    """What the command line changed in the pipeline's file."""
    stand_ins: dict[str, str]
    """By part, what it stands in for."""
    weights: dict[str, str]
    """By part, the name of its weights."""
    switched_off: NotRequired[dict[str, str]]
    """What the reader did not do because a check of its model found it to be wrong, each with the
    reason: `batches`, `features`, `sharing`, `score` or `next_token_logprobs`, and `unchecked` if
    the model's context was too short for the check; absent where nothing was. For the reader of a
    reranker, the reranker's name stands before it (`vlm: batches`)."""
    answering: dict[str, Any] | None
    """The decision rule's settings, prompt and examples; null with `--retrieval-only`."""
    corpus: CorpusSource | None
    """Null for a run without passages."""
    pictures: NotRequired[LeftOut]
    """Pictures that the retriever `gallery` left out (`missing: skip`); absent if none were."""
    lost_workers: NotRequired[list[LostWorker]]
    """Repeated work of lost workers of a Ray cluster since the run was last resumed; absent
    if none was."""
    fingerprints: dict[str, str | None]
    """Content hashes of dataset, corpus, settings and parts."""
    seed: Count
    """`--seed`."""
    versions: dict[str, str]
    """Versions of ravqa, Python and packages."""
    platform: str
    """System, machine and device."""
    date: str
    """When the results were written (ISO 8601, UTC)."""


class Described(TypedDict):
    """What describing images cost."""

    seconds: Seconds
    """In this run."""
    cached: Cached
    """How much came from the cache."""


class ConditionCost(TypedDict):
    """What the run itself or one of its controls cost."""

    stages: dict[str, CostRecord]
    """By stage that asked a model."""
    total: CostRecord
    """Over all stages."""
    per_question: CostRecord
    """The mean of a question."""
    seconds: dict[str, Seconds]
    """By stage, mean seconds per question, in the parts of the run that answered them."""


class CostSection(TypedDict):
    """Requests, tokens and money. Resumed runs include what their finished questions had cost."""

    currency: str | None
    """Currency of the money; null without prices."""
    prepared: CostRecord
    """Describing images, and few-shot examples, since the run was last resumed."""
    conditions: dict[str, ConditionCost]
    """`main` is the run itself, the others are its controls."""
    total: CostRecord
    """All of these."""


class Timing(TypedDict):
    """What the run took."""

    seconds: Seconds
    """The whole run, including loading and scoring."""
    prompts_generated: Count
    """Prompts that the reader answered, not counting the cache."""
    answers_scored: Count
    """Answers that the reader scored, not counting the cache."""
    mixtures_decoded: Count
    """Answers that the reader decoded over a mixture of passages, not counting the cache."""
    describe: Described
    """Per question."""
    peak_memory_mb: Count
    """Peak memory of the process, in MiB."""
    stages: dict[str, Seconds]
    """By stage, mean seconds per question, without controls."""
    queries: NotRequired[EncodingCounts]
    """Counts from encoding the queries, if this run encoded any."""
    reranking: NotRequired[dict[str, dict[str, Count]]]
    """By reranker, how many pairs of question and passage it scored, how many it cut, and how many
    control tokens of its model became plain text in them."""


@_read_strictly
class RunResults(TypedDict):
    """`results.json` of a run."""

    schema_version: int
    """The version of the format: 2. Other versions are refused."""
    dataset: RunDataset
    """What was asked."""
    answers: AnswerSection | None
    """Null with `--retrieval-only` and `--predict-only`."""
    retrieval: RetrievalSection | None
    """Null with `--predict-only`."""
    selective: NotRequired[SelectiveSection]
    """Absent without scored answers, and in results of earlier versions."""
    provenance: RunProvenance
    """Where the numbers come from."""
    timing: Timing
    """What the run took."""
    cost: NotRequired[CostSection]
    """Requests, tokens and money; absent if no model was asked."""


class Agreement(TypedDict):
    """How often a rule says the same as the dataset's own: at least half a point, or less."""

    share: Percent
    """Share of the questions for which the rule has a score."""
    questions: Count
    """Their number."""
    interval_95: Bounds
    """Bootstrap interval of the share."""


class RuleScore(TypedDict):
    """What one rule gives for the answers."""

    rule: str
    """The registered name."""
    label: str
    """Its name in tables."""
    score: Percent
    """The score as the rule aggregates it."""
    interval_95: Bounds
    """Its bootstrap interval."""
    questions: Count
    """Questions in the aggregate; some rules leave questions out."""
    without_score: Count
    """Answers for which the rule gives no score: its code stops there, or has no verdict."""
    reason: NotRequired[str]
    """Why the first of them has none; absent if all have a score."""
    not_attempted: NotRequired[Count]
    """Of a judge with three labels: answers that do not try to answer, which count 0."""
    agreement: NotRequired[Agreement]
    """Of a rule that asks a judge: how often it says the same as the dataset's own rule."""


class RuleExample(TypedDict):
    """A question on which rules disagree; half a point or more counts as right."""

    question_id: int | str
    """The id in the dataset."""
    question: str
    """Its text."""
    answer: str | None
    """The answer; null if there is none."""
    references: list[str]
    """Reference answers."""
    disagree: Count
    """How many rules say otherwise than the dataset's own."""
    right: list[str]
    """The rules by which the answer is right."""
    wrong: list[str]
    """The rules by which it is wrong."""


class RulesSection(TypedDict):
    """The same answers under several rules."""

    own: str
    """The dataset's own rule."""
    questions: Count
    """Number of questions."""
    rules: list[RuleScore]
    """Each rule's score, the highest first."""
    left_out: dict[str, str]
    """By rule, why it was not asked."""
    disputed: Count
    """Questions on which a rule says otherwise than the dataset's own."""
    examples: list[RuleExample]
    """Some of them, most disagreement first."""


class PredictionsFile(TypedDict):
    """The file of predictions that was scored."""

    file: str
    """Its path."""
    sha256: str
    """Hash of its bytes."""
    given: Count
    """Number of its records."""
    missing: list[int | str]
    """Questions without a prediction, which count as wrong."""
    duplicates: list[int | str]
    """Questions with several predictions, of which the last counts."""
    unknown: list[str]
    """Ids that the dataset does not have."""
    marked: Count
    """Answers with thinking, special tokens or calls of tools, such as `koala</s>`."""
    marks_removed: bool
    """Whether these were taken off before the answers were scored (`--strip-marks`), which no
    official rule does."""


class ScoreProvenance(TypedDict):
    """Where the numbers of `ravqa score` and `ravqa selective` come from."""

    fingerprints: dict[str, str]
    """Content hash of the dataset."""
    seed: Count
    """`--seed`."""
    versions: dict[str, str]
    """Versions of ravqa and Python."""
    date: str
    """When the results were written (ISO 8601, UTC)."""


@_read_strictly
class ScoreResults(TypedDict):
    """What `ravqa score --output FILE` writes."""

    schema_version: int
    """The version of the format: 2."""
    dataset: ScoredDataset
    """What the predictions are for."""
    predictions: PredictionsFile
    """What was scored."""
    answers: AnswerSection | None
    """Null if the file has no answers; the only condition is `main`."""
    retrieval: RetrievalSection | None
    """Null if the file has no rankings."""
    rules: NotRequired[RulesSection]
    """With `--rules`: what each of these rules gives."""
    provenance: ScoreProvenance
    """Where the numbers come from."""


class ChosenWith(TypedDict):
    """What a threshold leaves on the questions it was chosen on."""

    coverage: Percent
    """Share of the questions that are answered."""
    risk: Percent | None
    """Mean loss of their answers; null if none is answered."""


class ThresholdScores(TypedDict):
    """A threshold of a confidence that was chosen on other questions."""

    confidence: str
    """Name of the confidence."""
    target_risk: Percent
    """`--target-risk`, in percent."""
    threshold: Log | None
    """Questions with at least this confidence are answered; null if no threshold keeps the risk on
    the questions it is chosen on, so that none is answered."""
    chosen_with: ChosenWith
    """Coverage and risk on the questions it was chosen on."""
    coverage: Estimated
    """Share of the questions of the run that are answered."""
    risk: Estimated | None
    """Mean loss of their answers; null if none is answered."""


@_read_strictly
class SelectiveResults(TypedDict):
    """What `ravqa selective --output FILE` writes."""

    schema_version: int
    """The version of the format: 2."""
    run: str
    """The run, or FOLDER:CONTROL."""
    calibrated_on: str | None
    """`--calibrate`; null if no threshold was chosen."""
    dataset: RunDataset
    """What the run asked."""
    selective: SelectiveSection
    """As in `results.json` of the run."""
    thresholds: list[ThresholdScores]
    """By confidence and target risk; empty without `--calibrate`."""
    provenance: ScoreProvenance
    """Where the numbers come from."""


# -- config.yaml -----------------------------------------------------------------------------------


class ConfigDataset(TypedDict):
    """The questions."""

    name: str
    """The registered name."""
    label: str
    """The display name."""
    data: str | None
    """`--data`."""
    split: str | None
    """The split."""
    options: list[str]
    """`--dataset-option`."""
    metric_options: list[str]
    """`--metric-option`."""
    limit: Count | None
    """`--limit`."""
    on_error: str
    """`--on-error`: `fail` or `skip`."""
    fingerprint: str
    """Hash of the questions and their references."""
    images: str | None
    """Hash of the images; null for a pipeline without image input."""


class ConfigCorpus(TypedDict):
    """The passages."""

    files: list[str]
    """`--corpus`."""
    options: NotRequired[list[str]]
    """`--corpus-option`; absent without any."""
    passages: Count
    """How many there are; 0 without passages."""
    fingerprint: str | None
    """Hash of the passages; null without passages."""


class ConfigRun(TypedDict):
    """The options of the run."""

    retrieval_only: bool
    """`--retrieval-only`."""
    predict_only: bool
    """`--predict-only`."""
    controls: list[str]
    """`--controls`."""
    seed: Count
    """`--seed`."""


class PipelineSettings(TypedDict):
    """The settings of a pipeline, as in its file; it has more keys than those listed."""

    description: NotRequired[str]
    """What the pipeline is, apart from changes on the command line."""
    top_k: NotRequired[Rank]
    """Passages that are retrieved and scored; 20 if absent."""


@_read_strictly
class RunConfig(TypedDict):
    """`config.yaml` of a run: all that its samples depend on; a resumed run must match it."""

    schema_version: int
    """The same as in `results.json`."""
    ravqa: str
    """Version of ravqa."""
    dataset: ConfigDataset
    """The questions."""
    corpus: ConfigCorpus
    """The passages."""
    run: ConfigRun
    """The options of the run."""
    pipeline: PipelineSettings
    """The pipeline's settings, with what the command line changed."""
    fingerprints: dict[str, str]
    """Hashes of the parts: of weights and of every setting that can change results."""


# -- table.json ------------------------------------------------------------------------------------


class TableDifference(TypedDict):
    """A run's measure minus the reference's."""

    value: float
    """The difference."""
    interval_95: list[float | None]
    """The two ends of its interval, not corrected for the number of runs."""
    p_value: Share | None
    """From a paired permutation test over images."""
    p_holm: Share | None
    """The same, corrected by Holm's method for the runs compared."""
    questions: Count
    """Number of questions for which both runs have the measure."""


class TableCell(TypedDict):
    """One measure of one run."""

    value: float
    """The estimate: percent, seconds, requests, tokens or money."""
    interval_95: list[float | None]
    """The two ends of its interval."""
    questions: Count
    """Number of questions that it is over."""
    cached: NotRequired[Share]
    """For seconds: the largest share of a stage that came from the cache; absent if none did."""
    difference: NotRequired[TableDifference]
    """Absent for the reference, for seconds and for costs."""


class TableRow(TypedDict):
    """One run."""

    run: str
    """Its name."""
    reference: bool
    """Whether the others are compared with it."""
    levels: dict[str, str]
    """For a study: the run's level on each axis."""
    folder: str | None
    """Its folder, relative to this file's; null for a run that failed."""
    error: str | None
    """Why the run failed."""
    measures: dict[str, TableCell]
    """By the measure's name."""


class RunsTable(TypedDict):
    """Runs on one dataset."""

    title: str
    """Dataset and split."""
    questions: Count
    """Number of questions common to all runs."""
    images: Count
    """Number of different images."""
    measures: dict[str, str]
    """The columns: each measure's name, and its heading in tables."""
    rows: list[TableRow]
    """The runs."""
    notes: list[str]
    """What a reader of the numbers must know."""


@_read_strictly
class StudyTables(TypedDict):
    """`table.json` of a study."""

    schema_version: int
    """The version of the format: 1."""
    ravqa: str
    """Version of ravqa."""
    study: str
    """The study's title."""
    description: str
    """The description in the study's file."""
    reference: str
    """The run that the others are compared with."""
    seconds: Seconds
    """What the study took."""
    tables: list[RunsTable]
    """One per dataset."""


class OutcomeCounts(TypedDict):
    """Numbers of questions by which of two runs answered them right."""

    helped: Count
    """Right only in the second run."""
    hurt: Count
    """Right only in the first run."""
    both_right: Count
    """Right in both."""
    both_wrong: Count
    """Right in neither."""


class BreakdownTable(TypedDict):
    """On which questions one run helps or hurts, compared with another."""

    first: str
    """The run that is compared with."""
    second: str
    """The run that helps or hurts."""
    groups: dict[str, dict[str, OutcomeCounts]]
    """By kind of group (`all`, `question type`, `answer strings`) and by the group's name."""


class AURCDifference(TypedDict):
    """How much better the confidence of a run tells right answers from wrong ones."""

    confidence: str
    """Name of the confidence."""
    reference: str
    """The run that is compared with."""
    run: str
    """The other run."""
    AURC_of_reference: Percent
    """Area under the risk-coverage curve of the reference."""
    AURC: Percent
    """That of the run; lower is better."""
    difference: Points
    """That of the run minus that of the reference."""
    interval_95: Bounds
    """Paired bootstrap interval of the difference, over images."""


class RuleDifference(TypedDict):
    """Two runs under one scoring rule."""

    rule: str
    """Name of the rule."""
    reference: str
    """The run that is compared with."""
    run: str
    """The other run."""
    score_of_reference: Percent
    """Score of the reference, as the rule aggregates it."""
    score: Percent
    """Score of the run."""
    difference: Points
    """That of the run minus that of the reference."""
    interval_95: Bounds
    """Paired bootstrap interval of the difference, over images."""
    p_value: Share
    """Two-sided p-value."""


@_read_strictly
class ComparisonTables(TypedDict):
    """`table.json` of `ravqa compare --output FOLDER`."""

    schema_version: int
    """The version of the format: 1."""
    runs: list[str]
    """The runs as given on the command line."""
    seed: Count
    """`--seed`."""
    tables: list[RunsTable]
    """One table."""
    breakdowns: list[BreakdownTable]
    """Each run against its control, and against the first run."""
    rules: NotRequired[list[RuleDifference]]
    """With `--rules`: each run against the first one, rule by rule."""
    selective: NotRequired[list[AURCDifference]]
    """Each run against the first, by confidence; absent in tables of earlier versions."""


# -- reading ---------------------------------------------------------------------------------------


def parsed(kind: type[T], data: bytes | str, where: str) -> T:
    """Read JSON text as one of the types above.

    Args:
        where: what is read (a file, a line of it), for the message.

    Raises:
        DataError: it is not JSON, a key is missing, a value has another type or is not a number.
    """
    try:
        found: T = _adapter(cast(Any, kind)).validate_json(data)
    except ValidationError as e:
        raise DataError(f"{where}: {_mistake(kind, e)}") from None
    return found


def validated(kind: type[T], value: Any, where: str) -> T:
    """Check a value that was read by other means, and return it; see `parsed`.

    Raises:
        DataError: a key is missing, a value has another type or is not a number.
    """
    try:
        _adapter(cast(Any, kind)).validate_python(value)
    except ValidationError as e:
        raise DataError(f"{where}: {_mistake(kind, e)}") from None
    return cast(T, value)


def numbered_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    r"""Yield the lines of a file, unpacked if it ends in .gz, with their numbers from 1.

    Only "\n" ends a line, and a line keeps it. Blank lines are passed over.

    Raises:
        DataError: the file is missing or cannot be read, or a line is longer than `LONGEST_LINE`.
    """
    check_file(path)
    unpack = gzip.open if path.name.lower().endswith(".gz") else open
    try:
        with unpack(path, "rb") as lines:
            parts = iter(partial(lines.readline, LONGEST_LINE + 1), b"")
            for number, line in enumerate(parts, 1):
                if len(line) > LONGEST_LINE:
                    raise DataError(f"{path}, line {number}: longer than {LONGEST_LINE:,} bytes")
                if line.strip():
                    yield number, line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line
    except FileNotFoundError:
        raise DataError(f"no such file: {path}") from None
    except (OSError, EOFError, zlib.error) as e:
        raise DataError(f"{path} cannot be read: {e}") from None


_ANSWERED = ("read", "answer", "raw", "decision", "log_prob", "cut", "drafts")
_SCORED = ("score", "raw_score", "exact_match", "right")


def read_samples(path: Path) -> Iterator[tuple[int, Sample]]:
    """Yield the whole lines of a samples file with their numbers.

    A last line without its end, which a kill tore off, is passed over.

    Raises:
        DataError: the file cannot be read, or a line is not a sample (its number is named).
    """
    seen: dict[str, int] = {}  # 1 and "1" are one id
    for number, line in numbered_lines(path):
        if not line.endswith(b"\n"):
            return
        where = f"{path}, line {number}"
        sample = parsed(Sample, line, where)
        for keys in (_ANSWERED, _SCORED):
            lacking = [key for key in keys if key not in sample]
            if 0 < len(lacking) < len(keys):
                there = next(key for key in keys if key in sample)
                raise DataError(
                    f"{where}: not a sample of a run ({there!r} without {lacking[0]!r})"
                )
        if sample["seconds"].keys() != sample["cached"].keys():
            raise DataError(
                f"{where}: not a sample of a run ('seconds' and 'cached' have different stages)"
            )
        check_ranks(sample, where)
        if bool(sample["answers"]) != (sample["answer_ranks"] is not None):
            raise DataError(f"{where}: not a sample of a run ('answer_ranks' without 'answers')")
        name = str(sample["question_id"])
        if name in seen:
            raise DataError(f"{where}: question {name} is already in line {seen[name]}")
        seen[name] = number
        yield number, sample


_RANKS: tuple[Literal["answer_ranks"], Literal["id_ranks"], Literal["article_ranks"]]
_RANKS = ("answer_ranks", "id_ranks", "article_ranks")


def check_ranks(sample: Predicted, where: str) -> None:
    """Check that every rank of a sample is a place in its ranking, each once and in order.

    No passage occurs twice in a ranking, and all stages of a sample have the same kinds of ranks.

    Raises:
        DataError: one is not, so that the retrieval scores would be wrong.
    """
    known = [sample[key] is not None for key in _RANKS]
    for ranking in (sample, *(sample.get("stages") or ()), sample.get("read")):
        if ranking is None:
            continue
        if [ranking[key] is not None for key in _RANKS] != known:
            raise DataError(
                f"{where}: not a sample of a run (stages with different kinds of ranks)"
            )
        if len({passage for passage, _ in ranking["hits"]}) < len(ranking["hits"]):
            raise DataError(f"{where}: not a sample of a run (a passage occurs twice in 'hits')")
        answers: Mapping[str, Any] = ranking["answer_ranks"] or {}
        lists = {f"answer_ranks.{rule}": ranks for rule, ranks in answers.items()}
        lists |= {"id_ranks": ranking["id_ranks"], "article_ranks": ranking["article_ranks"]}
        for key, ranks in lists.items():
            if ranks and (ranks != sorted(set(ranks)) or ranks[-1] > len(ranking["hits"])):
                raise DataError(
                    f"{where}: not a sample of a run (key {key!r}: {ranks[:5]} are not the ranks "
                    f"of different passages among {len(ranking['hits'])} hits)"
                )


@cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


def _mistake(kind: Any, error: ValidationError) -> str:
    """The first mistake, with the path of its key."""
    first = error.errors(include_url=False, include_input=False)[0]
    path = ".".join(str(step) for step in first["loc"])
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "json_invalid":
        message = f"not JSON: {first['ctx']['error']}"
    elif first["type"] == "missing":
        message = f"key {path!r} is missing"
    elif path:
        message = f"key {path!r}: {message[:1].lower()}{message[1:]}"
    return f"{_NAMES[kind]} ({message})" if kind in _NAMES else message


_NAMES = {
    Sample: "not a sample of a run",
    Predicted: "not a sample of a run",
    Retrieved: "not a ranking of a run",
    RunResults: "not the results of a run",
    RunConfig: "not the settings of a run",
}
