"""Checkpoint loading: the only module that calls the loaders of transformers and related libraries.

Two rules hold for everything that is loaded here. Code that comes with a checkpoint runs only if
`trust_remote_code` is True; no library asks on the terminal instead. And every weight comes from
the checkpoint: the libraries would initialize missing ones at random and merely warn.
"""

from __future__ import annotations

import json
import logging
import re
import threading
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from ravqa.core.errors import UserError, first_line
from ravqa.core.quiet import quiet

_log = logging.getLogger(__name__)

_NUMBER = re.compile(r"(?<=\.)\d+(?=\.)")
_NAMED = 3  # weights that a message names
_LFS_POINTER = b"version https://git-lfs.github.com/spec/"
_REPORTING = ("transformers.modeling_utils", "transformers.integrations.peft")
_STATUSES = ("CONVERSION", "MISSING", "MISMATCH")  # in transformers' tables

_one_at_a_time = threading.RLock()  # loading patches the libraries globally


class WeightsError(Exception):
    """The weights of a checkpoint do not fit its model; the message names some.

    Attributes:
        missing: names of the weights that the checkpoint lacks.
    """

    def __init__(self, message: str, missing: frozenset[str] = frozenset()):
        super().__init__(message)
        self.missing = missing


@contextmanager
def loading(why: str, name: str, path: str, *, trusted: bool | None = None) -> Iterator[None]:
    """Turn any exception raised inside into a one-line error, and keep the rules of this module.

    Args:
        why, name, path, trusted: as for `reading`.

    Raises:
        UserError: anything inside fails.
    """
    with (
        reading(why, name, path, trusted=trusted),
        _one_at_a_time,
        _never_asked(),
        _Reports(),
        without_bars(),
    ):
        yield


@contextmanager
def reading(why: str, name: str, path: str, *, trusted: bool | None = None) -> Iterator[None]:
    """Turn any exception raised inside into a one-line error.

    Without transformers, this is enough: only its loaders can run code or leave weights out.

    Args:
        why: which part loads, for messages.
        name: the model as the user named it, for messages.
        path: folder, file or hub name that is loaded.
        trusted: the part's setting `trust_remote_code`; None if it has none.

    Raises:
        UserError: anything inside fails; every library involved has its own exception types.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as e:
        said = first_line(e)
        if "trust_remote_code" in str(e) and not trusted:
            mend = "which this part never runs"
            if trusted is not None:
                mend = "which runs only if you trust it and set trust_remote_code: true"
            which = f" ({said.partition(' Importing')[0]})" if "class" in said else ""
            raise UserError(f"{why}: {name} contains its own code, {mend}{which}") from None
        for pointer in lfs_pointers(Path(path)):
            said = f"{pointer} is a Git LFS pointer, not the file itself: run git lfs pull there"
            break
        if not Path(path).exists() and _unreachable(e):
            said = f"{said.rstrip('.')}: download it elsewhere, and set the model to its folder"
        raise UserError(f"{why}: {name} cannot be loaded: {said}") from None


def _unreachable(error: BaseException | None) -> bool:
    """Return whether a model is not here because the hub could not be asked for it."""
    from huggingface_hub.errors import LocalEntryNotFoundError, OfflineModeIsEnabled

    while error is not None:
        if isinstance(error, (LocalEntryNotFoundError, OfflineModeIsEnabled)):
            return True
        error = error.__cause__ or error.__context__
    return False


@contextmanager
def _never_asked() -> Iterator[None]:
    """Refuse remote code where a library leaves open whether it may run.

    transformers and sentence-transformers do not pass `trust_remote_code` on everywhere (the
    tokenizer of a processor that only config.json mentions, that of a WordEmbeddings module).
    transformers then asks on the terminal, unless its answer timeout is zero, as set here.
    """
    from transformers import dynamic_module_utils

    before = dynamic_module_utils.TIME_OUT_REMOTE_CODE
    dynamic_module_utils.TIME_OUT_REMOTE_CODE = 0
    try:
        yield
    finally:
        dynamic_module_utils.TIME_OUT_REMOTE_CODE = before


@contextmanager
def without_bars() -> Iterator[None]:
    """Show no progress bar of transformers while weights are loaded; downloads keep theirs."""
    import huggingface_hub.utils
    from transformers.utils import logging as bars

    hub: Any = huggingface_hub.utils  # which is not typed
    shown, downloads = bars.is_progress_bar_enabled(), not hub.are_progress_bars_disabled()
    bars.disable_progress_bar()  # and those of downloads
    if downloads:
        hub.enable_progress_bars()
    try:
        yield
    finally:
        if shown:
            bars.enable_progress_bar()
            if not downloads:
                hub.disable_progress_bars()


class _Reports(logging.Filter):
    """A filter that hides transformers' tables of missing weights; an error names them instead."""

    def __enter__(self) -> None:
        for name in _REPORTING:
            logging.getLogger(name).addFilter(self)

    def __exit__(self, *_: object) -> None:
        for name in _REPORTING:
            logging.getLogger(name).removeFilter(self)

    def filter(self, record: logging.LogRecord) -> bool:
        """Return whether a message is printed."""
        said = record.getMessage()
        if "LOAD REPORT" not in said:
            return True
        rows = [[cell.strip() for cell in line.split("|")] for line in said.splitlines()]
        found = {status: [row[0] for row in rows if status in row[1:2]] for status in _STATUSES}
        failed = found["CONVERSION"]
        if failed:
            # transformers' own error only refers to the table.
            raise WeightsError(f"its weights cannot be converted for the model: {_named(failed)}")
        return not (found["MISSING"] or found["MISMATCH"])


def lfs_pointers(path: Path) -> Iterator[Path]:
    """Yield the files at or in `path` that are Git LFS pointers instead of their content."""
    for file in [path] if path.is_file() else sorted(path.rglob("*")):
        with suppress(OSError):
            if file.is_file() and file.stat().st_size < 1024:
                with file.open("rb") as source:
                    pointer = source.read(len(_LFS_POINTER)) == _LFS_POINTER
                if pointer:
                    yield file


def load_config(path: str, *, trust_remote_code: bool, **options: Any) -> Any:
    """Load the configuration of a checkpoint."""
    from transformers import AutoConfig

    return AutoConfig.from_pretrained(path, trust_remote_code=trust_remote_code, **options)


def load_tokenizer(path: str, *, trust_remote_code: bool, **options: Any) -> Any:
    """Load the tokenizer of a checkpoint."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(path, trust_remote_code=trust_remote_code, **options)


def load_processor(path: str, *, trust_remote_code: bool, **options: Any) -> Any:
    """Load the processor of a multimodal checkpoint."""
    from transformers import AutoProcessor

    return AutoProcessor.from_pretrained(path, trust_remote_code=trust_remote_code, **options)


def load_image_processor(path: str, *, trust_remote_code: bool, **options: Any) -> Any:
    """Load the image processor of a checkpoint."""
    from transformers import AutoImageProcessor

    return AutoImageProcessor.from_pretrained(path, trust_remote_code=trust_remote_code, **options)


def load_model(auto: Any, path: str, *, trust_remote_code: bool, **options: Any) -> Any:
    """Load the model of a checkpoint with all its weights.

    Args:
        auto: one of transformers' auto classes, such as AutoModelForCausalLM.
        path: folder or hub name.
        trust_remote_code: run code that comes with the checkpoint.
        options: passed to transformers' `from_pretrained`.

    Raises:
        UserError: it is a LoRA adapter, or has one next to its weights.
        WeightsError: weights are missing or have other sizes.
    """
    refuse_adapter(path)
    model, info = auto.from_pretrained(
        path,
        trust_remote_code=trust_remote_code,
        output_loading_info=True,
        ignore_mismatched_sizes=True,  # refused below, by name
        **options,
    )
    check_weights(model, info)
    return model


def refuse_adapter(path: str) -> None:
    """Refuse a folder that holds an adapter where a model is expected.

    transformers would load the base model that the adapter names, wherever that is, and report
    missing weights for the adapter alone.

    Raises:
        UserError: the folder holds an adapter.
    """
    if (Path(path) / "adapter_config.json").is_file():
        raise UserError(
            f"{path} holds a LoRA adapter (adapter_config.json): set model to its base model, in "
            "another folder, and adapter to the adapter's folder"
        )


def build_model(auto: Any, config: Any, **options: Any) -> Any:
    """Build a randomly initialized model of one of transformers' own classes."""
    return auto.from_config(config, trust_remote_code=False, **options)


def check_weights(
    model: Any, info: Mapping[str, Any], unused: Collection[str] = frozenset()
) -> None:
    """Refuse a model unless all its weights come from the checkpoint and are numbers.

    transformers' report omits tied weights and those that the library expects to be missing.
    Weights of further layers, as after a change of config.json, are noted in the log.

    Args:
        model: the loaded model.
        info: transformers' loading report.
        unused: names of weights that have no effect and may be missing.

    Raises:
        WeightsError: weights are missing, have other sizes, or are infinite or not numbers.
    """
    if info["mismatched_keys"]:
        key, found, wanted = min(info["mismatched_keys"])
        others = len(info["mismatched_keys"]) - 1
        more = f", and {others} more" if others else ""
        raise WeightsError(
            f"its weights do not have the sizes in its config.json: {key} is {list(found)}, "
            f"{list(wanted)} is expected{more}"
        )
    if deeper := _beyond(model, info.get("unexpected_keys") or ()):
        _log.warning(
            "%s has weights for more layers than its config.json describes (%s): they are not used",
            getattr(model, "name_or_path", "") or type(model).__name__,
            _named(deeper),
        )
    missing = frozenset(info["missing_keys"]).difference(unused)
    if not missing:
        return check_finite(model)
    names = {name for name, _ in model.named_parameters()}.difference(unused)
    if names <= missing:
        raise WeightsError(
            f"it has none of the weights of a {type(model).__name__}, which its config.json "
            "describes: a checkpoint of another architecture",
            missing,
        )
    raise WeightsError(_missing(missing, f"the model's {len(names)}"), missing)


def check_finite(model: Any) -> None:
    """Refuse a model with weights that are infinite or not numbers.

    Raises:
        WeightsError: there are some; they are named.
    """
    import torch

    broken = []
    weights = model.named_parameters() if isinstance(model, torch.nn.Module) else ()
    for name, weight in weights:
        plain = weight.is_floating_point() and weight.element_size() > 1  # not quantised
        if plain and weight.numel() and not weight.is_meta:
            ends = torch.stack(torch.aminmax(weight.detach()))
            if not torch.isfinite(ends).all():
                broken.append(name)
    if broken:
        raise WeightsError(
            f"{len(broken)} of its weights have values that are infinite or not numbers "
            f"({_named(broken)}): download or copy it again; if its dtype is set, set float32"
        )


def _beyond(model: Any, unexpected: Collection[str]) -> list[str]:
    """Return the weights that differ from one of the model's only by a number, as of a layer."""
    own = {_NUMBER.sub("*", name) for name, _ in model.named_parameters()} if unexpected else set()
    return [name for name in unexpected if _NUMBER.sub("*", name) in own]


def _missing(names: Collection[str], of: str) -> str:
    return (
        f"it lacks {len(names)} of {of} weights ({_named(names)}): download or copy the whole "
        "checkpoint again"
    )


def _named(names: Collection[str]) -> str:
    """Return the first few names as text for a message."""
    return ", ".join(sorted(names)[:_NAMED]) + (", ..." if len(names) > _NAMED else "")


def load_adapter(model: Any, path: str) -> Any:
    """Return the model with a peft LoRA adapter and all its weights loaded into it.

    Raises:
        WeightsError: weights are missing, or belong to parts that the model does not have.
    """
    import peft

    library: Any = peft.PeftModel
    reports: list[Any] = []
    original = library.load_adapter

    def kept(*args: Any, **options: Any) -> Any:  # peft itself only warns, if at all
        reports.append(original(*args, **options))
        return reports[-1]

    with quiet(), _one_at_a_time:  # e.g. about how the two libraries call each other
        library.load_adapter = kept
        try:
            adapted: Any = library.from_pretrained(model, path)
        finally:
            library.load_adapter = original
    if adapted.active_peft_config.is_prompt_learning:
        return adapted  # no LoRA: the caller says so
    prefix = adapted.base_model.prefix
    own = [name for name, _ in adapted.named_parameters() if prefix in name]
    for report in reports:
        if report.missing_keys:
            missing = frozenset(report.missing_keys)
            raise WeightsError(_missing(missing, f"the adapter's {len(own)}"), missing)
        if report.unexpected_keys:
            raise WeightsError(
                f"{len(report.unexpected_keys)} of its weights do not belong to the model "
                f"({_named(report.unexpected_keys)}): an adapter for another model"
            )
    return adapted


def load_sentence_transformer(
    kind: Any, path: str, *, trust_remote_code: bool, **options: Any
) -> tuple[Any, WeightsError | None]:
    """Load a sentence-transformers model; also return what is wrong with its weights, if anything.

    Args:
        kind: the library's class: SentenceTransformer, MultiVectorEncoder or CrossEncoder.
        path: folder or hub name.
        trust_remote_code: run code that comes with the checkpoint.
        options: passed to the class.
    """
    if _is_cut_off(path):
        raise UserError(
            f"{path} has a config_sentence_transformers.json and no modules.json: download or copy "
            "the whole checkpoint again"
        )
    with _watched() as loaded:
        model = kind(
            path,
            trust_remote_code=trust_remote_code,
            local_files_only=Path(path).exists(),
            **options,
        )
    for inner, info in loaded:
        poolers = [name for name in info["missing_keys"] if "pooler." in name]
        try:
            check_weights(inner, info, [] if _reads_pooled(model, inner) else poolers)
        except WeightsError as e:
            return model, e
    return model, None


def _is_cut_off(path: str) -> bool:
    # Without modules.json the library would guess the modules after the transformer.
    folder = Path(path)
    own = folder / "config_sentence_transformers.json"
    if (folder / "modules.json").is_file() or not own.is_file():
        return False
    try:
        return isinstance(json.loads(own.read_text(encoding="utf-8")), dict)
    except ValueError:
        return False  # loading reports it


@contextmanager
def _watched() -> Iterator[list[tuple[Any, Mapping[str, Any]]]]:
    """Record every transformers model loaded inside, by any library, with its loading report."""
    from transformers import PreTrainedModel

    original = PreTrainedModel.__dict__["from_pretrained"]
    loaded: list[tuple[Any, Mapping[str, Any]]] = []

    def from_pretrained(cls: Any, name: Any, *args: Any, **options: Any) -> Any:
        wants_info = options.pop("output_loading_info", False)
        options |= {"output_loading_info": True, "ignore_mismatched_sizes": True}
        model, info = original.__func__(cls, name, *args, **options)
        loaded.append((model, info))
        if getattr(model, "_hf_peft_config_loaded", False):
            # The report covers the adapter alone; get one for its base model, without its values.
            for of_adapter in ("adapter_kwargs", "subfolder", "revision"):
                options.pop(of_adapter, None)
            options["device_map"] = "meta"
            _, info_of_base = original.__func__(cls, model.name_or_path, *args, **options)
            loaded.append((model, info_of_base))
        return (model, info) if wants_info else model

    PreTrainedModel.from_pretrained = classmethod(from_pretrained)
    try:
        yield loaded
    finally:
        PreTrainedModel.from_pretrained = original


def _reads_pooled(model: Any, inner: Any) -> bool:
    """Return whether a sentence-transformers model uses more of `inner` than token states.

    Only then does it need BERT's pooler, which many checkpoints leave out.
    """
    for module in model.modules():
        modalities = getattr(module, "modality_config", None)
        if modalities is not None and getattr(module, "model", None) is inner:
            return any(
                way.get("method") != "forward"
                or way.get("method_output_name") != "last_hidden_state"
                for way in modalities.values()
            )
    return True
