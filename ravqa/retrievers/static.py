"""Rankings from a file instead of a retriever: RA-VQA's static results, a TREC run, our samples."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from ravqa.core.cache import Store
from ravqa.core.errors import DataError, UserError
from ravqa.core.locations import file_digest
from ravqa.core.progress import Progress
from ravqa.core.records import Hit, Question
from ravqa.core.settings import LocalPath, Strict, fingerprint
from ravqa.corpora.corpus import Corpus
from ravqa.retrievers.base import Retriever, to_hits
from ravqa.retrievers.runs import Ranking, column, decoded, read_run


class StaticRetriever(Retriever):
    """A retriever that gives each question the ranking stored for its id in a file.

    Passages are looked up by id in the corpus, and every id must exist: RA-VQA reads an unknown
    one as an empty text, and gives blank passages to questions without results.
    """

    weights = ""
    stores: Sequence[Store] = ()
    thread_safe = True

    class Config(Strict):
        """Options.

        Attributes:
            file: RA-VQA's .json, a samples.jsonl of a run, or a TREC run.
            missing: how to treat a question without results: as an error, or without passages.
        """

        file: LocalPath
        missing: Literal["fail", "empty"] = "fail"

        def problems(self) -> Sequence[str]:
            """Return that the file is not there."""
            return () if self.file.is_file() else [f"no such file: {self.file}"]

    config: Config

    def __init__(self, config: Config):
        """Read the file.

        Raises:
            UserError: the file is missing or broken.
        """
        self.config = config
        self._rankings = read_run(config.file)
        self.fingerprint = fingerprint("static/1", file_digest(config.file), config.missing)

    def prepare(self, corpus: Corpus | None, progress: Progress | None = None) -> None:
        """Check that the corpus has every passage.

        Raises:
            UserError: the corpus is missing.
            DataError: passages are not in it; the message counts them and names some.
        """
        if corpus is None:
            raise UserError(
                "the retriever static needs the passages that its file names: add them with "
                f"--corpus (RA-VQA's results hold theirs: --corpus {self.config.file})"
            )
        known: dict[str, str] = {}
        unknown: dict[str, None] = {}
        for ranking in self._rankings.values():
            for place, passage_id in enumerate(ranking.ids):
                if passage_id not in known and passage_id not in unknown:
                    names = (passage_id, decoded(passage_id))
                    found = next((name for name in names if name in corpus), None)
                    if found is None:
                        unknown[passage_id] = None
                        continue
                    known[passage_id] = found
                ranking.ids[place] = known.get(passage_id, passage_id)
        if unknown:
            listed = ", ".join(list(unknown)[:5])
            raise DataError(
                f"{self.config.file}: {len(unknown)} of its passages are not in the corpus "
                f"{corpus.source}: {listed}{', ...' if len(unknown) > 5 else ''}"
            )

    def retrieve(self, questions: Sequence[Question], k: int) -> list[list[Hit]]:
        """Return the first k passages of each question's ranking, or all if there are fewer.

        Raises:
            DataError: a question has no results and `missing` does not allow that.
        """
        return [to_hits(self._ranking(question).pairs()[:k]) for question in questions]

    def _ranking(self, question: Question) -> Ranking:
        found = self._rankings.get(str(question.question_id))
        if found is None:  # TREC columns contain no white space
            found = self._rankings.get(column(question.question_id))
        if found is None and self.config.missing == "fail":
            raise DataError(
                f"{self.config.file} has no results for question {question.question_id} "
                "(--set retriever.missing=empty asks it without passages)"
            )
        return found or Ranking()
