"""What other libraries' callers pass by mistake: one line, or taken as it is meant."""

import base64
import os

import collection_files
import pytest
from PIL import Image

from ravqa.collections import Collection
from ravqa.core.errors import DataError, UserError
from ravqa.core.locations import SAMPLE
from ravqa.core.records import Passage

os.environ["HAYSTACK_TELEMETRY_ENABLED"] = "False"  # nothing is sent anywhere by tests
haystack = pytest.importorskip("haystack", reason="pip install 'ravqa[haystack]'")
documents = pytest.importorskip("langchain_core.documents", reason="pip install 'ravqa[langchain]'")
schema = pytest.importorskip("llama_index.core.schema", reason="pip install 'ravqa[llama-index]'")

from ravqa.integrations import haystack as on_haystack  # noqa: E402
from ravqa.integrations import langchain as on_langchain  # noqa: E402
from ravqa.integrations.llama_index import passage_of  # noqa: E402

PHOTO = SAMPLE / "val2014" / "COCO_val2014_000009000010.jpg"
BASE64 = base64.b64encode(PHOTO.read_bytes()).decode()
URI = f"data:image/jpeg;base64,{BASE64}"
IMAGES = [Image.new("RGB", (2, 2)), 5, 1.5, True, [], {"a": 1}, object()]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("odd")
    collection = Collection.create(folder / "made", collection_files.pipeline(folder))
    collection.add([Passage("koala", "koala eats leaves"), Passage("tower", "tower of iron")])
    return folder


@pytest.fixture(scope="module")
def searches(folder):
    """A search of each library, and of the collection itself."""
    one = on_haystack.PreFLMRRetriever(str(folder / "made"))
    two = on_langchain.PreFLMRRetriever.from_persist_dir(folder / "made")
    collection = Collection.open(folder / "made")
    return [
        lambda question, image=None, k=2: one.run(query=question, image=image, top_k=k),
        lambda question, image=None, k=2: two.invoke(question, image=image, k=k),
        lambda question, image=None, k=2: collection.search(question, image, k=k),
    ]


@pytest.fixture(scope="module")
def answers(folder):
    settings = str(folder / "hashed.yaml")
    one = on_haystack.RAVQAAnswerer(settings)
    two = on_langchain.RAVQAAnswerer.load(settings)
    return [
        lambda question, found: one.run(query=question, documents=found),
        lambda question, found: two.invoke({"question": question, "documents": found}),
    ]


def refused(call, message):
    with pytest.raises(UserError, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize("image", IMAGES, ids=lambda image: type(image).__name__)
def test_an_image_of_another_type_is_refused(searches, image):
    for search in searches:
        refused(lambda search=search: search("koala", image), f"an image as {type(image).__name__}")


@pytest.mark.parametrize("question", [None, 5, b"koala", ["koala"], {}])
def test_a_question_that_is_no_text_is_refused(searches, answers, question):
    for search in searches:
        refused(lambda search=search: search(question), "the question: a text is expected")
    for answer in answers:
        refused(lambda answer=answer: answer(question, []), "the question: a text is expected")


@pytest.mark.parametrize("k", [0, -1, 2.5, "2", True])
def test_a_number_of_passages_that_is_none_is_refused(searches, k):
    for search in searches:
        refused(lambda search=search: search("koala", k=k), "is expected, got")


@pytest.mark.parametrize("found", [None, 5, "koala", [None], ["koala"], [{"content": "koala"}]])
def test_documents_of_another_type_are_refused(answers, folder, found):
    for answer in answers:
        refused(lambda answer=answer: answer("koala", found), "a list of documents")
    create = on_langchain.PreFLMRRetriever.from_documents
    refused(lambda: create(found, folder / "new", str(folder / "hashed.yaml")), "a list of doc")


@pytest.mark.parametrize("asked", [None, 5, "koala", [], {}, {"documents": []}])
def test_what_is_no_question_is_refused(folder, asked):
    answerer = on_langchain.RAVQAAnswerer.load(str(folder / "hashed.yaml"))
    refused(lambda: answerer.invoke(asked), '{"question": ')


def taken(document):
    if isinstance(document, haystack.Document):
        return on_haystack.passage_of(document)
    return on_langchain.passage_of(document)


def both(image):
    yield haystack.Document(content="koala", meta={"image": image})
    yield documents.Document(page_content="koala", metadata={"image": image})


def test_a_picture_as_a_data_uri_is_kept_as_a_file(fresh_cache):
    for document in both(URI):
        image = taken(document).image
        assert image.read_bytes() == PHOTO.read_bytes()
        assert image.is_relative_to(fresh_cache)
    for document in both(PHOTO.as_uri()):
        assert taken(document).image == PHOTO
    for document in both(""):
        assert taken(document).image is None


@pytest.mark.parametrize(
    "image", [5, [], f"{URI[:3000]}!", "data:image/png", "https://example.org/a.png"]
)
def test_a_picture_that_is_none_is_refused_in_a_short_line(fresh_cache, image):
    for document in both(image):
        refused(lambda document=document: taken(document), "document ")


def test_a_document_that_nothing_can_find_is_refused(folder):
    found = [documents.Document(page_content="koala"), documents.Document(page_content=" \n")]
    create = on_langchain.PreFLMRRetriever.from_documents
    refused(
        lambda: create(found, folder / "blank", str(folder / "hashed.yaml")),
        "document 1 has neither text nor a picture",
    )


@pytest.mark.parametrize(
    "options",
    [
        {"image": URI},
        {"image": URI.replace("data:image/jpeg", "DATA:image/*")},
        {"image": "\n".join(BASE64[i : i + 76] for i in range(0, len(BASE64), 76))},
        {"image_url": URI, "text": "beside it"},
    ],
)
def test_a_nodes_picture_is_taken_in_every_form(fresh_cache, options):
    assert passage_of(schema.ImageNode(**options)).image.read_bytes() == PHOTO.read_bytes()


@pytest.mark.parametrize("image", ["!", "data:image/png;base64,!", "data:"])
def test_a_nodes_broken_picture_names_the_node(image):
    with pytest.raises(DataError, match="node n has broken image data"):
        passage_of(schema.ImageNode(id_="n", image=image))
