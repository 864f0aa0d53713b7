"""What requests are read as, apart from the web: images in texts, chats, sources, tokens."""

import asyncio
import json

import pytest
from pydantic import ValidationError

from ravqa.core.errors import DataError, UserError
from ravqa.doors.service.chat import ChatForm, chat_pieces, chat_reply, cited, question_of
from ravqa.doors.service.forms import (
    AnswerReply,
    Found,
    SearchForm,
    SearchReply,
    Usage,
    decoded_image,
)
from ravqa.doors.service.gate import Gate

NAMES = ("animals", "as built")


def chat(*messages, **options):
    given = [{"role": role, "content": content} for role, content in messages]
    return ChatForm.model_validate({"model": "animals", "messages": given} | options)


def shown(*urls, text=None):
    images = [{"type": "image_url", "image_url": {"url": url}} for url in urls]
    return [*images, *([{"type": "text", "text": text}] if text else [])]


def reply(*found, answer="Australia"):
    passages = [Found(passage_id=i, text="t", title=title, url=url) for i, title, url in found]
    return AnswerReply(
        collection="animals",
        pipeline="as built",
        passages=passages,
        answer=answer,
        rule="top1",
        read=["a", "c"],
        seconds={},
    )


def test_images_are_base64_or_data_uris():
    for text in ("AAEC", "data:image/png;base64,AAEC", "data:image/svg+xml;base64,AAEC"):
        assert decoded_image(text) == b"\0\1\2"
    for text in ("AAE", "A A E C", "ä", "data:image/png,AAEC", "DATA:text/html;base64,AAEC"):
        with pytest.raises(DataError, match="image: "):
            decoded_image(text)


def test_a_chat_asks_its_last_question_about_the_image_shown_last():
    form = chat(
        ("system", "Be brief."),
        ("user", shown("data:1", text="What is it?")),
        ("assistant", "A koala."),
        ("user", "Where does it live?"),
    )
    asked = question_of(form, *NAMES)
    assert (asked.question, asked.image) == ("Where does it live?", "data:1")
    assert (asked.collection, asked.pipeline) == NAMES
    assert question_of(chat(("user", shown("data:2"))), *NAMES).question == ""


@pytest.mark.parametrize(
    ("form", "said"),
    [
        (lambda: chat(("system", "x")), "a question of the user"),
        (lambda: chat(("user", shown("a", "b"))), "about one image"),
        (lambda: chat(("user", "x" * 4001)), "at most 4000 letters"),
        (lambda: chat(("user", "x"), logprobs=True), "texts alone"),
        (lambda: chat(("user", "x"), response_format={"type": "json_object"}), "texts alone"),
        (lambda: chat(("user", "x"), tool_choice="required"), "no tools"),
    ],
)
def test_chats_that_cannot_be_served_as_asked_are_refused(form, said):
    with pytest.raises(UserError, match=said):
        question_of(form(), *NAMES)


def test_forms_are_bounded():
    for options in ({"n": 2}, {"stream": "yes"}, {"messages": []}):
        with pytest.raises(ValidationError):
            chat(("user", "x"), **options)
    for wrong in ({"k": 101}, {"k": 10**5000}, {"where": {"a": ["x"] * 101}}, {"other": 1}):
        with pytest.raises(ValidationError):
            SearchForm.model_validate(wrong)


def test_sources_are_those_that_were_read_and_annotations_point_at_them():
    given = reply(("a", "A\n b", "http://a"), ("b", "B", "http://b"), ("c", None, None))
    made = chat_reply("animals", given)["choices"][0]["message"]
    assert made["content"] == "Australia\n\nSources:\n[1] A b (a)\n[2] c"
    [note] = [one["url_citation"] for one in made["annotations"]]
    assert note["url"] == "http://a"
    assert made["content"][note["start_index"] : note["end_index"]] == "[1] A b (a)"
    assert cited(reply(), 0) == ("", [])


def test_tokens_are_given_where_they_are_known():
    used = Usage(prompt_tokens=12, completion_tokens=3, total_tokens=15)
    for usage in (None, used):
        given = reply(("a", "A", None)).model_copy(update={"usage": usage})

        async def events(given=given):
            yield given

        async def run(counted, events=events):
            return [one async for one in chat_pieces("animals", events(), counted)]

        streamed = asyncio.run(run(True))[3:]
        assert not any("usage" in one for one in asyncio.run(run(False)))
        made = chat_reply("animals", given)
        if usage is None:
            assert ("usage" in made, streamed) == (False, [])
        else:
            assert made["usage"] == used.model_dump()
            [last] = streamed
            assert (last["choices"], last["usage"]) == ([], used.model_dump())


@pytest.mark.parametrize("pieces", [[], ["Austr", "alia"]])
def test_a_streamed_chat_joins_to_the_reply(pieces):
    given = reply(("a", "A", "http://a"))

    async def events():
        found = given.model_dump(include=set(SearchReply.model_fields))
        for what in (SearchReply(**found), *pieces, given):
            yield what

    async def run():
        return [one["choices"][0] async for one in chat_pieces("animals", events())]

    found = asyncio.run(run())
    text = "".join(one["delta"].get("content", "") for one in found)
    assert text == chat_reply("animals", given)["choices"][0]["message"]["content"]
    assert [one["finish_reason"] for one in found if one["finish_reason"]] == ["stop"]


class Uncounted:
    """Metrics that count nothing."""

    def __getattr__(self, name):
        return self

    def __call__(self, *given):
        return self


@pytest.mark.parametrize(
    ("path", "headers", "status"),
    [
        ("/search", {}, 401),
        ("/search", {"authorization": "Bearer secre"}, 401),
        ("/search", {"authorization": "Basic secret"}, 401),
        ("/search", {"authorization": "Bearer \xff"}, 401),
        ("/search", {"authorization": "Bearer secret"}, 200),
        ("/health", {}, 200),
        ("/health", {"host": "evil.example"}, 403),
        ("/health", {"origin": "http://evil.example"}, 403),
        ("/health", {"content-length": "99999999999"}, 413),
    ],
)
def test_the_gate_lets_in_who_may(path, headers, status):
    sent = []

    async def app(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b'{"error": {"message": ""}}'})

    async def send(message):
        sent.append(message)

    async def receive():
        return {"type": "http.request", "body": b""}

    given = {"host": "localhost"} | headers
    scope = {
        "type": "http",
        "method": "POST",
        "path": path,
        "headers": [(k.encode(), v.encode("latin-1")) for k, v in given.items()],
    }
    gate = Gate(app, Uncounted(), token="secret", hosts={"localhost"})

    asyncio.run(gate(scope, receive, send))
    assert sent[0]["status"] == status
    assert "message" in json.loads(sent[1]["body"])["error"]
    assert b"x-request-id" in dict(sent[0]["headers"])
