"""Describers, which put into text what an image shows, for retrieval and text-only readers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ravqa.core.registry import Registry

if TYPE_CHECKING:
    from ravqa.describers.base import Describer

DESCRIBERS: Registry[type[Describer]] = Registry(
    "describer",
    {
        "caption": (
            "ravqa.describers.caption:Captioner",
            "captions by a model that needs no prompt: BLIP, GIT, ViT-GPT2",
        ),
        "imagenet-tags": (
            "ravqa.describers.imagenet:ImageNetTagger",
            "ImageNet class names seen by EfficientNet-Lite0",
        ),
        "file": (
            "ravqa.describers.file:FileDescriber",
            "captions, tags, objects and texts of files: PICa's, VinVL's, RA-VQA's",
        ),
        "objects": (
            "ravqa.describers.objects:ObjectDetector",
            "objects found by a detection model: DETR, RT-DETR, Grounding DINO, OWLv2, ...",
        ),
        "ocr": ("ravqa.describers.ocr:OCRDescriber", "lines of text, read by RapidOCR"),
        "reader-caption": (
            "ravqa.describers.caption:ReaderCaptioner",
            "what a multimodal reader answers to a prompt, for the question or for all",
        ),
        "regions": (
            "ravqa.describers.regions:RegionDescriber",
            "the regions of a photo that FLMR sees beside the whole",
        ),
        "several": (
            "ravqa.describers.several:SeveralDescribers",
            "what several describers say, merged",
        ),
    },
    contract="ravqa.describers.base:Describer",
)
