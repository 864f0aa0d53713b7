"""Retrieval-augmented generation for knowledge-based visual question answering.

A question about an image is answered with knowledge that is not in the image: a
late-interaction retriever finds passages from image and question together, and a reader (a
language model, with or without eyes) answers from them.

Importing this package imports nothing heavy: torch and transformers are loaded by the parts that
need them, when they are built.
"""

__version__ = "0.1.0"

__all__ = ["__version__"]
