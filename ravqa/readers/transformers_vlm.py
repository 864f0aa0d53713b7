"""Multimodal models through transformers: chat models (LLaVA, Qwen-VL, InternVL, Gemma 3, SmolVLM,
Idefics, Mistral 3, ...) and models that complete a plain prompt (BLIP-2, InstructBLIP, PaliGemma,
Florence-2).

The images precede the text, the question's first. A prompt without an image is read by the language
model alone.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from itertools import chain
from operator import attrgetter
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, field_validator

from ravqa.core.checkpoints import load_config, load_processor
from ravqa.core.control_tokens import control_tokens
from ravqa.core.errors import MissingExtraError, PromptError, UserError
from ravqa.core.model_files import on_this_machine, resolve, settings_of
from ravqa.core.settings import Names
from ravqa.images.decode import image_prints, image_size, open_for_library
from ravqa.readers.base import Abilities, Prompt
from ravqa.readers.beginnings import keeps_everything
from ravqa.readers.chat import ChatConfig, chat_text
from ravqa.readers.families import Family, family_of
from ravqa.readers.loading import Placement
from ravqa.readers.local import LocalReader
from ravqa.readers.vision import ImageFeatures

_log = logging.getLogger(__name__)

_WHY = "the reader transformers-vlm"
_SIZE = (32, 32)  # of an image, in pixels, to see how many a prompt can have

_SENSES = "image|img|video|audio|vision"
_MARK_NAME = re.compile(rf"\w*(?:{_SENSES}|boi|eoi|boa|eoa)\w*_token(?:_id|_index)?$")
_MARK = re.compile(rf"[<\[].*(?:{_SENSES}).*[>\]]$", re.IGNORECASE | re.DOTALL)


# Model types whose processors have a video processor, which needs torchvision.
_WITH_VIDEOS = (
    "qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_5", "internvl", "llava_onevision", "gemma4",
    "smolvlm", "glm4v", "minicpmv", "molmo2",
)  # fmt: skip

# Others, such as trust_remote_code, can do more than change an image's size.
_SIZES = frozenset({"size", "crop_size", "min_pixels", "max_pixels", "longest_edge", "patch_size"})


def _only_sizes(options: Any) -> bool:
    return isinstance(options, dict) and all(
        key in _SIZES and _is_number(value) for key, value in options.items()
    )


def _is_number(value: Any) -> bool:
    inner = list(value.values()) if isinstance(value, dict) else [value]
    return all(isinstance(one, int | float) for one in inner)


ProcessorOptions = Annotated[dict[str, Any], Names("options of another program", _only_sizes)]


class TransformersVLM(LocalReader):
    """Answers a prompt about an image."""

    supports_images = True
    max_images = None

    class Config(ChatConfig):
        """Options, beyond those of chats.

        Attributes:
            max_new_tokens: longest generation; chat models stop by themselves.
            processor: arguments for loading the processor, such as the `size` of its images.
            keep_images_mib: memory for features of images, so that the vision tower looks at an
                image once for all prompts about it; 0 looks at it for every prompt, and reads every
                prompt from its beginning.
        """

        max_new_tokens: int = Field(default=32, ge=1)
        keep_images_mib: int = Field(default=1024, ge=0)
        processor: ProcessorOptions = Field(default_factory=dict)

        @field_validator("processor")
        @classmethod
        def _check_processor(cls, value: dict[str, Any]) -> dict[str, Any]:
            if "trust_remote_code" in value:
                raise ValueError("trust_remote_code is a setting of the reader itself")
            return value

        def problems(self) -> Sequence[str]:
            """Return also which packages the model's processor needs and are not here."""
            missing = [p for p in _wanted_by_processor(self.model) if find_spec(p) is None]
            return [*super().problems(), *(_not_installed(self.model, p) for p in missing)]

    def __init__(self, config: Config):
        """Load processor and model.

        Raises:
            MissingExtraError: a package is missing.
            UserError: the model cannot be loaded.
        """
        self.config = config
        placement = Placement(config, _WHY)
        with placement.loading():
            trusted = config.trust_remote_code
            settings = load_config(placement.path, trust_remote_code=trusted)
            auto = _loader(settings)
            self._family = family_of(settings.model_type)
            self._processor = self._load_processor(placement)
            model = placement.load(auto)
            tokenizer = self._processor.tokenizer
            others = getattr(self._processor, "chat_template", None)
            own = others or (others if tokenizer.chat_template is None else tokenizer.chat_template)
            self._template = config.template(own, _WHY)
            super().__init__(config, placement, model, tokenizer, _WHY)
            tokenizer.padding_side = "right" if self._encodes else "left"
            if tokenizer.pad_token is None:
                tokenizer.pad_token = tokenizer.convert_ids_to_tokens(self._pad)
            self._marks = image_marks(tokenizer, self._processor, model.config)
            self.control_tokens = control_tokens(tokenizer, self._template, self._marks)
        # Tokens added by images of these sizes: some models show several at a lower resolution.
        self._added: dict[tuple[tuple[int, int], ...], int] = {}
        self._features = ImageFeatures(model, config.keep_images_mib * 2**20)
        self._choose_what_is_kept()
        self.fingerprint = placement.fingerprint(
            "transformers-vlm/3", thinks=self._may_think, template=self._template
        )
        asked = Prompt("What is it?")
        self._check_template(asked, Prompt("Who is it?"))
        self._check_template(Prompt(asked.text, b""), asked)  # the image is not opened
        self._find_opening(Prompt("What is it?"))
        self._check_model()
        self.max_images = self._most_images()

    @classmethod
    def declared(cls, config: Config) -> Abilities:
        """Return that it takes one image if the model's family, as far as it is known, does."""
        return Abilities(max_images=_most_of(family_of(_model_type(config.model))))

    def _choose_what_is_kept(self) -> None:
        """Keep what can be computed once for several prompts, and say what cannot."""
        why = ""
        if not self._features.supported:
            why = "transformers takes no features of images in place of their pixels for it"
        elif not keeps_everything(self._decoder.config):
            why = "not all of its layers keep the keys and values of all tokens"
        elif self._family.answer_type:  # unlike an answer's, a prompt's tokens see what follows
            why = "its prompts are read in both directions"
        wanted = self.config.keep_images_mib > 0
        self._keeps_features = wanted and self._features.supported
        # A beam search would need the shared beginning once per beam.
        self._shares = wanted and not why and self.streams
        if wanted and why:
            _log.warning(
                "%s: %s: %s: it reads every prompt from its beginning", _WHY, self.weights, why
            )

    def save(self, folder: Path, weights: Mapping[str, Any] | None = None) -> None:
        """Write model and processor in transformers' format, as `model` can name them."""
        super().save(folder, weights)
        self._processor.save_pretrained(folder)

    def _load_processor(self, placement: Placement) -> Any:
        trusted = self.config.trust_remote_code
        try:
            processor = load_processor(
                placement.path, **self.config.processor, trust_remote_code=trusted
            )
        except Exception as e:
            missing = _missing(e)
            if missing is None:
                raise
            said = _not_installed(self.config.model, missing)
            raise MissingExtraError(f"{_WHY}: {said}") from None
        if getattr(processor, "image_processor", None) is None:
            raise UserError(f"{_WHY}: {self.config.model} has no image processor")
        return processor

    def _language_model(self, model: Any) -> Any:
        # Some families have a `generate` that prepares the image for that of an inner model.
        from transformers import GenerationMixin

        if type(model).generate is GenerationMixin.generate:
            return model
        inner = [m for m in model.modules() if isinstance(m, GenerationMixin) and m is not model]
        return inner[0] if len(inner) == 1 else model

    def _kind(self, prompt: Prompt) -> object:
        return len(prompt.images)

    def _text(self, prompt: Prompt) -> str:
        text = self._given(prompt)
        return text + self._family.ending if prompt.images else text

    def _given(self, prompt: Prompt) -> str:
        """Return the text given to the processor.

        Raises:
            PromptError: more images than the model takes.
        """
        if self.max_images is not None and len(prompt.images) > self.max_images:
            raise PromptError(
                f"{_WHY} takes {self.max_images} image in a prompt, but got {len(prompt.images)}"
            )
        # A mark of an image would stand for a missing one, even in the prompt's own template.
        text, _ = self.control_tokens.neutral(prompt.text, prompt.own.difference(self._marks))
        if self._template is None:
            # Not all processors have an image token, but those that need one here do.
            token = str(getattr(self._processor, "image_token", ""))
            marks = self._family.image.format(token=token) * len(prompt.images)
            return self._shown(prompt, marks + text)
        content = [{"type": "image"}] * len(prompt.images) + [{"type": "text", "text": text}]
        return self._shown(prompt, chat_text(self.config, self._processor, self._template, content))

    def _special(self, text: str) -> dict[str, bool]:
        """Return tokenizer options: a template may have written the beginning mark itself."""
        begin = self._tokenizer.bos_token
        return {"add_special_tokens": False} if begin and text.startswith(begin) else {}

    def _lengths(self, prompts: Sequence[Prompt]) -> list[int]:
        out = []
        images = dict.fromkeys(image for prompt in prompts for image in prompt.images)
        sizes = {image: image_size(image) for image in images}
        for prompt in prompts:
            text = self._given(prompt)
            length = len(self._tokenizer(text, **self._special(text))["input_ids"])
            length += self._image_tokens(tuple(sizes[image] for image in prompt.images))
            out.append(length)
        return out

    def _image_tokens(self, sizes: tuple[tuple[int, int], ...]) -> int:
        """Return how many tokens images add to a text in which they are marked.

        Args:
            sizes: of the images, which are all that matters.
        """
        if sizes and sizes not in self._added:
            from PIL import Image

            text = self._given(Prompt("a", pictures=(b"",) * len(sizes)))
            special = self._special(text)
            images = [Image.new("RGB", size) for size in sizes]
            options = {"return_tensors": "pt", **special}
            seen = self._processor(text=[text], images=[images], **options)["input_ids"][0]
            self._added[sizes] = len(seen) - len(self._tokenizer(text, **special)["input_ids"])
        return self._added[sizes] if sizes else 0

    def _most_images(self) -> int | None:
        """Return 1 if template or processor do not take two images in one prompt, else None."""
        if self._template is None and (most := _most_of(self._family)):
            return most
        texts = [self._given(Prompt("a", pictures=(b"",) * n)) for n in (1, 2)]
        try:
            self._image_tokens((_SIZE,) * 2)
        except Exception:  # processors raise errors of many types
            return 1
        return None if len(texts[1]) > len(texts[0]) else 1

    def _inputs(self, prompts: Sequence[Prompt]) -> dict[str, Any]:
        texts = [self._given(prompt) for prompt in prompts]
        options: dict[str, Any] = {"padding": True, "return_tensors": "pt"}
        options |= self._special(texts[0])
        sources = [prompt.images for prompt in prompts]
        if not any(sources):
            encoded = self._tokenizer(texts, **options).to(self._device)
            blind = {name: encoded[name] for name in ("input_ids", "attention_mask")}
            # Without it, some models mask a prompt in one way alone and in another with padding.
            if "token_type_ids" in self._processor.model_input_names:
                blind["token_type_ids"] = blind["input_ids"].new_zeros(blind["input_ids"].shape)
            return blind
        images = {s: open_for_library(s) for s in dict.fromkeys(chain.from_iterable(sources))}
        shown = [[images[source] for source in own] for own in sources]
        inputs = self._processor(text=texts, images=shown, **options)
        inputs = dict(inputs.to(self._device, dtype=self._model.dtype))
        inputs.pop("labels", None)  # of training
        for name, limit in self._family.limits.items():
            inputs[name] = inputs[name][:, : attrgetter(limit)(self._model.config)]
        return inputs

    def _group(self, prompt: Prompt) -> object:
        return prompt.images if self._shares and len(prompt.images) == 1 else None

    def _prepared(self, prompts: Sequence[Prompt]) -> dict[str, Any]:
        """Return the inputs of a batch, with features of images in place of their pixels."""
        if not any(prompt.images for prompt in prompts):
            return super()._prepared(prompts)
        inputs = self._inputs(prompts)
        if not self._keeps_features or not all(prompt.images for prompt in prompts):
            return inputs
        # Some models show several images of a prompt at a lower resolution than one, so that those
        # of a prompt are kept together.
        prints = ["/".join(image_prints(prompt.images)) for prompt in prompts]
        if missing := self._features.missing(prints):
            new = [prints.index(one) for one in missing]
            alone = inputs if len(new) == len(prompts) else self._inputs([prompts[i] for i in new])
            self._features.add(missing, alone)
        inputs = {name: v for name, v in inputs.items() if name not in self._features.pixels}
        unread = inputs["input_ids"] == self._features.image_token
        if self._shares and all(len(prompt.images) == 1 for prompt in prompts):
            self._share_images(inputs, prints, unread)
            if "past_key_values" in inputs:
                unread = unread[:, inputs["past_key_values"].get_seq_length() :]
        left = unread.sum(-1).tolist()
        if any(left):
            inputs["mm_encoder_outputs"] = {"image": self._features.output(prints, left)}
        self._features.shrink()
        return inputs

    def _share_images(self, inputs: dict[str, Any], prints: Sequence[str], places: Any) -> None:
        """Share beginnings with an image.

        Args:
            prints: a hash of each row's image.
            places: bool [rows, width], where there are tokens of images.
        """
        rows, width = places.shape
        # A beginning that ended within the image would lack what its last tokens see.
        ends = width - places.flip(-1).int().argmax(-1) - (inputs["attention_mask"] == 0).sum(-1)

        def more(row: int) -> dict[str, Any]:
            of_rows = [n for n, v in inputs.items() if getattr(v, "shape", ())[:1] == (rows,)]
            own = {name: inputs[name][row : row + 1] for name in of_rows}
            return own | {"mm_encoder_outputs": {"image": self._features.output([prints[row]])}}

        self._share(inputs, prints, ends.tolist(), more)

    def _free(self) -> None:
        super()._free()
        self._features.clear()

    def _generator(self, inputs: dict[str, Any]) -> Any:
        # Models that delegate to a language model require an image; the language model does not.
        return self._model if "pixel_values" in inputs else self._decoder


def image_marks(tokenizer: Any, *owners: Any) -> list[str]:
    """Return texts that stand for an image, a video or sound in a prompt, longest first.

    Depending on the model family they are known to the processor, its tokenizer, the model's
    configuration (attributes such as image_token, boi_token, vision_start_token_id), or only the
    tokenizer's list of special tokens.

    Args:
        owners: processor and configuration.
    """
    added = set(tokenizer.get_added_vocab())
    found = {token for token in added if _MARK.match(token)}
    owned = [getattr(tokenizer, "special_tokens_map", {})]
    owned += [{n: getattr(o, n, None) for n in dir(o) if _MARK_NAME.match(n)} for o in owners]
    for attributes in owned:
        for name, value in attributes.items():
            if isinstance(value, str) and _MARK_NAME.match(name):
                found.add(value)
            elif isinstance(value, int) and 0 <= value < len(tokenizer):
                # A configuration may have another family's ids, which are ordinary words here.
                found |= {tokenizer.convert_ids_to_tokens(value)} & added
    return sorted((mark for mark in found if mark.strip()), key=len, reverse=True)


def _wanted_by_processor(model: str) -> list[str]:
    """Return the packages that the processor of a model needs, judging by its files or name."""
    try:
        place = resolve(model, extra="sample", why=_WHY)
    except UserError:  # told by whoever looks for the model
        return []
    folder = on_this_machine(place)
    if folder is None:
        name = re.sub(r"[\W_]", "", model.lower())
        known = [kind for kind in _WITH_VIDEOS if kind.replace("_", "") in name]
        kind = known[0] if known else ""
    else:
        kind = str(settings_of(folder).get("model_type", ""))
        known = [kind] if kind.startswith(_WITH_VIDEOS) else []
    videos = folder is not None and (
        (folder / "video_preprocessor_config.json").is_file()
        or "video_processor" in settings_of(folder, "processor_config.json")
    )
    wanted = ["torchvision"] if known or videos else []
    return ["num2words", *wanted] if kind.startswith("smolvlm") else wanted


def _model_type(model: str) -> str:
    """Return the type of a model that is on this machine; "" if it is not."""
    try:
        folder = on_this_machine(resolve(model, extra="sample", why=_WHY))
    except UserError:  # told by whoever looks for the model
        return ""
    return "" if folder is None else str(settings_of(folder).get("model_type", ""))


def _most_of(family: Family) -> int | None:
    """Return 1 if the family's processor itself inserts the place of a prompt's image."""
    return None if "{token}" in family.image else 1


def _not_installed(model: str, package: str) -> str:
    return (
        f"the processor of {model} needs the package {package!r}, which is not installed: "
        "pip install 'ravqa[vision]'"
    )


def _missing(error: Exception) -> str | None:
    """Return the package of the extra `vision` whose absence made building a processor fail."""
    said = str(error).lower()
    if "num2words" in said and find_spec("num2words") is None:
        return "num2words"
    # Without torchvision, transformers names video classes that were not requested.
    if find_spec("torchvision") is None and ("torchvision" in said or "video" in said):
        return "torchvision"
    return None


def _loader(settings: Any) -> Any:
    """Return the auto class for a model's configuration.

    Raises:
        UserError: there is none: the model is not multimodal, or transformers is too old.
    """
    import transformers

    for name in ("AutoModelForImageTextToText", "AutoModelForMultimodalLM"):
        loader: Any = getattr(transformers, name, None)
        if loader is not None and type(settings) in loader._model_mapping:
            return loader
    raise UserError(
        f"{_WHY}: transformers {transformers.__version__} has no multimodal model of the type "
        f"{settings.model_type!r} that generates text"
    )
