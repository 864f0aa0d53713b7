"""Conversion between passages and LlamaIndex's documents and nodes.

A node has its passage's id and text; its metadata is `Passage.extra` with title, section, entity
and url under their names, and its source document is the passage's article.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from llama_index.core.ingestion import run_transformations
from llama_index.core.node_parser import SentenceSplitter
from llama_index.core.schema import (
    BaseNode,
    Document,
    ImageNode,
    MetadataMode,
    Node,
    NodeRelationship,
    RelatedNodeInfo,
    TextNode,
    TransformComponent,
)

from ravqa.core.errors import DataError, UserError
from ravqa.core.records import Passage
from ravqa.corpora.corpus import Corpus
from ravqa.images.decode import image_bytes, kept_image
from ravqa.integrations import documents as plain
from ravqa.integrations.query_images import from_base64, query_image

CHUNK_TOKENS = 200
"""Default size of a document's parts: all encoders take them uncut, with a title."""
OVERLAP_TOKENS = 20


def node_of(passage: Passage) -> TextNode:
    """Convert a passage to a node: an `ImageNode` if it has a picture, else a `TextNode`."""
    options: dict[str, Any] = {
        "id_": passage.passage_id,
        "text": passage.text,
        "metadata": plain.metadata_of(passage),
    }
    if passage.article is not None:
        source = RelatedNodeInfo(node_id=passage.article)
        options["relationships"] = {NodeRelationship.SOURCE: source}
    if passage.image is None:
        return TextNode(**options)
    return ImageNode(**options, **_picture(passage.image))


def nodes_of(corpus: Corpus) -> list[TextNode]:
    """Convert all passages to nodes, in order, for other retrievers."""
    return [node_of(passage) for passage in corpus.values()]


def passage_of(node: BaseNode) -> Passage:
    """Convert a document or node to a passage.

    Its picture is kept: a path as it is, encoded bytes as a file of the cache folder. Web addresses
    are not fetched.

    Raises:
        DataError: the node has neither text nor picture, or broken image data.
    """
    text = node.get_content(metadata_mode=MetadataMode.NONE)
    image = _image_of(node)
    if image is None and not text.strip():
        raise DataError(f"node {node.node_id} has neither text nor a picture: nothing can find it")
    return plain.passage_of(node.node_id, text, node.metadata, image=image, article=node.ref_doc_id)


def read_of(node: BaseNode) -> Passage:
    """Return what a reader reads of a node: a passage without its picture."""
    text = node.get_content(metadata_mode=MetadataMode.NONE)
    return plain.passage_of(node.node_id, text, node.metadata)


def passages_of(
    documents: Iterable[BaseNode], transformations: Sequence[TransformComponent] | None = None
) -> list[Passage]:
    """Convert documents and nodes to passages.

    Args:
        transformations: LlamaIndex's transformations, such as node parsers; empty for none. By
            default documents (not nodes) are cut by sentences into parts of CHUNK_TOKENS; the parts
            of document "a" are "a:1", "a:2", ...

    Raises:
        DataError: as `passage_of`.
    """
    if transformations is not None:
        nodes = run_transformations(list(documents), transformations)
        return [passage_of(node) for node in nodes]
    splitter = SentenceSplitter(chunk_size=CHUNK_TOKENS, chunk_overlap=OVERLAP_TOKENS)
    return [
        passage
        for document in documents
        for passage in (
            _parts(document, splitter) if isinstance(document, Document) else [passage_of(document)]
        )
    ]


def _parts(document: Document, splitter: SentenceSplitter) -> Iterator[Passage]:
    whole = passage_of(document)
    texts = splitter.split_text(whole.text) or [whole.text]
    for number, text in enumerate(texts, 1):
        name = whole.passage_id if len(texts) == 1 else f"{whole.passage_id}:{number}"
        yield replace(whole, passage_id=name, text=text, article=document.node_id)


def _picture(path: Path) -> dict[str, str]:
    if not path.is_file():  # inside an archive, which other libraries cannot read
        try:
            return {"image": base64.b64encode(image_bytes(path)).decode("ascii")}
        except DataError:
            pass
    return {"image_path": str(path)}


def _image_of(node: BaseNode) -> Path | None:
    data: bytes | str | None = None
    path: Path | str | None = None
    url: object = None
    if isinstance(node, ImageNode):
        data, path, url = node.image, node.image_path, node.image_url
    elif isinstance(node, Node) and node.image_resource is not None:
        resource = node.image_resource
        data, path, url = resource.data, resource.path, resource.url
    if not data and not path and str(url or "").lower().startswith("data:"):
        data = str(url)
    if not data:
        return Path(path) if path else None
    text = data.decode("latin-1") if isinstance(data, bytes) else data
    try:
        found = query_image(text) if text.lower().startswith("data:") else from_base64(text)
    except UserError as e:
        raise DataError(f"node {node.node_id} has broken image data: {e}") from None
    return kept_image(found) if isinstance(found, bytes) else None
