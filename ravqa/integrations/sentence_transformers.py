"""FLMR and PreFLMR inside sentence-transformers' `MultiVectorEncoder`.

    model = MultiVectorEncoder(
        modules=[PreFLMRModule("LinWeizheDragon/PreFLMR_ViT-L")],
        prompts={"query": "Using the provided image, obtain documents that address the question:"},
    )
    queries = model.encode_query([{"text": "What is this building?", "image": "tower.jpg"}])
    documents = model.encode_document(["The Eiffel Tower is a lattice tower in Paris."])
    scores = model.similarity(queries, documents)

`model.save(folder)` writes a folder that is both a sentence-transformers model and a checkpoint of
the family: `PreFLMRModule(folder)` and `FLMRModelForRetrieval.from_pretrained(folder)` read it, and
so does `MultiVectorEncoder(folder, trust_remote_code=True)`, prompts included: without that option
the library loads only its own classes.
"""

# mypy: disallow-subclassing-any=False

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch

from ravqa.core.errors import import_extra
from ravqa.flmr import FLMRInputError, FLMRModelForRetrieval, FLMRProcessor

_INPUT_MODULE: Any = import_extra(
    "sentence_transformers.base.modules", "sentence-transformers", why=__name__
).InputModule
_MODEL_INPUTS = ("input_ids", "attention_mask", "pixel_values", "concat_output_from_vision_encoder")


class PreFLMRModule(_INPUT_MODULE):
    """A checkpoint of the FLMR family as the only module of a `MultiVectorEncoder`.

    Queries are texts, images (a Pillow image, path, bytes, or array [height, width, 3]), or both as
    {"text": ..., "image": ...}; documents are texts, and images too if the checkpoint supports
    them. A query's prompt is its instruction: it is put before the question with a ":" after it,
    and its own vectors are left out of the result if the checkpoint masks instructions.
    """

    forward_kwargs: ClassVar[set[str]] = {"task"}

    def __init__(
        self,
        model_name_or_path: str,
        *,
        model_kwargs: dict[str, Any] | None = None,
        processor_kwargs: dict[str, Any] | None = None,
        **hub: Any,
    ):
        """Load model, tokenizers and image preparation.

        Args:
            model_name_or_path: folder or hub name.
            model_kwargs: arguments of `FLMRModelForRetrieval.from_pretrained`.
            processor_kwargs: arguments of `FLMRProcessor.from_pretrained`: `query_maxlen`,
                `doc_maxlen`.
            hub: hub options for both: `revision`, `token`, `cache_dir`, `local_files_only`.

        Raises:
            UserError: the checkpoint cannot be loaded.
        """
        super().__init__()
        self.model: Any = FLMRModelForRetrieval.from_pretrained(
            model_name_or_path, **hub, **(model_kwargs or {})
        )
        self.processor = FLMRProcessor.from_pretrained(
            model_name_or_path, **hub, **(processor_kwargs or {})
        )

    @property
    def modalities(self) -> list[Any]:
        """Modalities of queries."""
        sees = self.model.uses_images and self.processor.image_processor is not None
        return ["text", "image", ("image", "text")] if sees else ["text"]

    @property
    def tokenizer(self) -> Any:
        """Tokenizer of queries."""
        return self.processor.query_tokenizer

    def get_embedding_dimension(self) -> int:
        """Return the dimension of the vectors."""
        return int(self.model.config.dim)

    def preprocess(
        self,
        inputs: Sequence[Any],
        prompt: str | None = None,
        task: str | None = None,
        **_options: Any,
    ) -> dict[str, Any]:
        """Return inputs for the model's `query` or `doc`.

        Args:
            inputs: texts, images, or dictionaries of both.
            prompt: for queries, the instruction; for documents, text that is put before them.
            task: "query" or "document".

        Raises:
            FLMRInputError: no task, or images for a checkpoint whose documents are text.
            DataError: an image that cannot be read.
        """
        parts = [_text_and_image(item) for item in inputs]
        texts = [text for text, _ in parts]
        images = [image for _, image in parts] if any(i is not None for _, i in parts) else None
        if task == "query":
            features = dict(self.processor(texts, images, prompt or None))
        elif task == "document":
            if images and not self.model.config.context_concat_output_from_vision_encoder:
                raise FLMRInputError("the documents of this checkpoint are text, without images")
            features = dict(self.processor.documents([(prompt or "") + t for t in texts], images))
        else:
            raise FLMRInputError(
                "queries and documents are encoded differently: call encode_query or "
                "encode_document (or give task='query' or 'document')"
            )
        if images is None:
            features["concat_output_from_vision_encoder"] = False
        return features

    def forward(
        self, features: dict[str, Any], task: str | None = None, **_options: Any
    ) -> dict[str, Any]:
        """Return `token_embeddings` [items, vectors, dim] and, as `attention_mask`, which count."""
        inputs = {name: features[name] for name in _MODEL_INPUTS if name in features}
        if task == "query":
            vectors = self.model.query(**inputs).late_interaction_output
            mask = (vectors != 0).any(-1)
        else:
            output = self.model.doc(**inputs)
            vectors, mask = output.late_interaction_output, output.context_mask[..., 0]
            if self.model.padding_counts:  # one row of padding suffices for any batch length
                tokens = inputs["attention_mask"]
                place = torch.arange(tokens.shape[1], device=tokens.device)
                mask = mask.clone()  # the model's own mask is needed for gradients
                mask[:, -tokens.shape[1] :] &= place <= tokens.sum(1, keepdim=True)
        return {**features, "token_embeddings": vectors, "attention_mask": mask}

    def save(self, output_path: str, *_args: Any, **_options: Any) -> None:
        """Write the checkpoint into a folder, in safetensors."""
        self.model.save_pretrained(output_path)
        self.processor.save_pretrained(output_path)

    @classmethod
    def load(
        cls,
        model_name_or_path: str,
        subfolder: str = "",
        token: bool | str | None = None,
        cache_folder: str | None = None,
        revision: str | None = None,
        local_files_only: bool = False,
        model_kwargs: dict[str, Any] | None = None,
        processor_kwargs: dict[str, Any] | None = None,
        **_options: Any,
    ) -> PreFLMRModule:
        """Load what `save` wrote; the library calls this for each entry of modules.json."""
        if subfolder:
            raise FLMRInputError(
                f"{model_name_or_path}: the checkpoint is expected in the root, not in {subfolder}"
            )
        return cls(
            model_name_or_path,
            model_kwargs=model_kwargs,
            processor_kwargs=processor_kwargs,
            token=token,
            cache_dir=cache_folder,
            revision=revision,
            local_files_only=local_files_only,
        )


def _text_and_image(item: Any) -> tuple[str, Any]:
    if isinstance(item, str):
        return item, None
    if isinstance(item, dict):
        return item.get("text", ""), item.get("image")
    return "", item
