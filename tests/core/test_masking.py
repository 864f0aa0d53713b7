"""Keys of servers in text: taken out in every form, and other text left as it is."""

import base64
import html
import json
from urllib.parse import quote, quote_plus

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scripted_server import chat, streamed

from ravqa.core.errors import PromptError, UserError
from ravqa.core.factory import part_config
from ravqa.core.masking import Mask, Pieces, secret_in
from ravqa.core.settings import Part, validate
from ravqa.readers import READERS
from ravqa.readers.base import Prompt
from ravqa.readers.openai import OpenAIReader
from ravqa.rerankers import RERANKERS

KEY = 'sk-a/b+c="d\\e&f<0123456789'
PRINTABLE = st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=8, max_size=60)


def forms(key):
    """The key as servers and libraries write it."""
    return {
        "as it is": key,
        "percent": quote(key, safe=""),
        "percent, lower case": "".join(f"%{ord(c):02x}" for c in key),
        "percent, path": quote(key),
        "form": quote_plus(key),
        "JSON": json.dumps(key),
        "JSON, slashes": json.dumps(key).replace("/", "\\/"),
        "JSON, all escaped": "".join(f"\\u{ord(c):04X}" for c in key),
        "HTML": html.escape(key),
        "HTML, numbers": "".join(f"&#{ord(c)};" for c in key),
        "Basic": base64.b64encode(key.encode()).decode(),
        "Basic, as user": base64.b64encode(f"{key}:".encode()).decode(),
        "Basic, as password": base64.b64encode(f"me:{key}".encode()).decode(),
        "Basic, longer name": base64.b64encode(f"user:{key}".encode()).decode(),
        "Basic, for addresses": base64.urlsafe_b64encode(f"u:{key}x".encode()).decode(),
    }


@pytest.mark.parametrize("form", forms(KEY))
def test_every_form_of_a_key_is_masked(form):
    said = f"no such key: {forms(KEY)[form]}, ask another"
    masked = Mask(KEY).text(said)
    assert "***" in masked
    for other in forms(KEY).values():
        assert other not in masked
    assert masked.startswith("no such key: ")
    assert masked.endswith(", ask another")
    if not form.startswith("Basic"):
        assert masked.strip('"').replace('"', "") == "no such key: ***, ask another"


@given(PRINTABLE, st.integers(0, 2))
def test_any_key_is_masked(key, offset):
    for form in (key, quote(key, safe=""), json.dumps(key)[1:-1]):
        assert Mask(key).text(f"<{form}>") == "<***>"
    code = base64.b64encode(b"x" * offset + key.encode() + b"y").decode()
    # No more than the characters at its ends remain, which hold no whole letter of the key.
    left = Mask(key).text(code).replace("***", "", 1)
    assert len(left) <= len(code) - (len(key) * 8 // 6 - 1)


@pytest.mark.parametrize("key", ["", "x", "EMPTY", "none", "1234567"])
def test_short_keys_spoil_no_text(key):
    text = "The text of an EMPTY box: none of 1234567 is x."
    assert Mask(key).text(text) == text
    if key:
        assert Mask(key).text(f"authorization: bearer {key}, {key}") == (
            f"authorization: bearer ***, {key}"
        )


def test_json_is_masked_in_names_and_values_and_stays_json():
    reply = {"a": [1, None, True, 0.5, f"x{KEY}y", {KEY: KEY}], "b": {"c": "d"}}
    masked = Mask(KEY).value(reply)
    assert masked == {"a": [1, None, True, 0.5, "x***y", {"***": "***"}], "b": {"c": "d"}}


@given(
    st.lists(st.sampled_from([KEY, "sk-", "s", "k", "a word", "\n", KEY[:9], KEY[9:]])), st.data()
)
def test_pieces_show_the_same_text_as_all_at_once(parts, data):
    text = "".join(parts)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=8)))
    found = []
    pieces = Pieces(Mask(KEY), lambda: found.append(1))
    shown = [pieces.next(text[i:j]) for i, j in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    assert "".join([*shown, pieces.rest()]) == Mask(KEY).text(text)
    assert bool(found) == (KEY in text)


def test_pieces_are_not_held_back_without_need():
    pieces = Pieces(Mask(KEY), lambda: None)
    assert [pieces.next(p) for p in ("A koala", " ate", " leaves s")] == [
        "A koala", " ate", " leaves ",
    ]  # fmt: skip
    assert pieces.next("o") == "so"


# --- what a server says


@pytest.fixture
def reader(serve, monkeypatch):
    monkeypatch.setenv("OUR_KEY", KEY)

    def made(reply, **options):
        server = serve(reply, key=KEY)
        options = {"model": "m", "api_key_env": "OUR_KEY", "retries": 0, **options}
        return OpenAIReader(OpenAIReader.Config(url=server.url, **options))

    return made


@pytest.mark.parametrize("form", forms(KEY))
@pytest.mark.parametrize("status", [400, 401, 404, 500])
def test_errors_do_not_show_the_key(reader, form, status, waits):
    said = forms(KEY)[form]
    [failure] = reader(
        lambda *_: (status, json.dumps({"error": {"message": f"no {said}"}}))
    ).generate([Prompt("x")])
    assert "***" in failure.reason
    assert not any(other in failure.reason for other in forms(KEY).values())


def test_a_list_of_models_and_broken_streams_do_not_show_the_key(serve, reader, monkeypatch):
    monkeypatch.setenv("OUR_KEY", KEY)
    server = serve(lambda *_: (404, "gone"), models=(f"model-{KEY}", "other"))
    asker = OpenAIReader(OpenAIReader.Config(url=server.url, model="m", api_key_env="OUR_KEY"))
    [failure] = asker.generate([Prompt("x")])
    assert failure.fatal
    assert "model-***" in failure.reason
    event = json.dumps({"error": {"message": f"by {KEY}"}})
    streaming = reader(
        lambda *_: (200, f"data: {event}\n\n", {"Content-Type": "text/event-stream"})
    )
    with pytest.raises(PromptError, match=r"by \*\*\*"):
        list(streaming.stream(Prompt("x")))


def test_an_answer_that_holds_the_key_is_masked_and_told_once(reader, caplog):
    echoing = reader(lambda *_: chat(f"it is {KEY}!"))
    assert [g.text for g in echoing.generate([Prompt("x"), Prompt("y")])] == ["it is ***!"] * 2
    assert caplog.text.count("a reply contains the key") == 1
    assert KEY not in caplog.text
    escaped = reader(
        lambda *_: (200, chat("KEY")[1].replace("KEY", forms(KEY)["JSON, all escaped"]))
    )
    assert escaped.generate([Prompt("x")])[0].text == "***"


def test_a_key_in_two_pieces_of_a_stream_is_masked(reader, caplog):
    streaming = reader(lambda *_: streamed("it is ", KEY[:5], KEY[5:12], KEY[12:] + "! s", "o s"))
    shown = list(streaming.stream(Prompt("x")))
    assert "".join(shown) == "it is ***! so s"
    assert not any(KEY[:5] in piece for piece in shown)
    assert "a reply contains the key" in caplog.text


def test_short_keys_leave_answers_as_they_are(serve, monkeypatch, caplog):
    monkeypatch.setenv("OUR_KEY", "EMPTY")
    server = serve(lambda *_: chat("an EMPTY box"))
    asker = OpenAIReader(OpenAIReader.Config(url=server.url, model="m", api_key_env="OUR_KEY"))
    assert asker.generate([Prompt("x")])[0].text == "an EMPTY box"
    assert not caplog.records


# --- settings, which are written into results


@pytest.mark.parametrize(
    "options",
    [
        {"url": "http://me:word-of-mine@host/v1"},
        {"url": "https:/me:word-of-mine@host/v1"},
        {"url": "me:word-of-mine@host/v1"},
        {"url": "http://host/v1?api_key=word-of-mine"},
        {"url": "http://host/v1#word-of-mine"},
        {"api_key_env": "word-of-mine"},
        {"extra_body": {"extra_headers": {"Authorization": "Bearer word-of-mine"}}},
        {"extra_body": {"api_key": "word-of-mine"}},
        {"extra_body": {"x": [{"X-API-Key": "word-of-mine"}]}},
        {"extra_body": {"x": "Basic word-of-mine"}},
    ],
    ids=str,
)
@pytest.mark.parametrize("inside", [False, True])
def test_keys_in_settings_are_refused_and_not_quoted(options, inside):
    part = {"name": "openai", "url": "http://host/v1", "model": "m", **options}
    registry = READERS
    if inside:
        part, registry = {"name": "vlm", "reader": part}, RERANKERS
    with pytest.raises(UserError, match="api_key_env") as caught:
        part_config(registry, Part(**part), "x.yaml: part")
    assert "word-of-mine" not in str(caught.value)


def test_values_of_addresses_are_not_quoted():
    with pytest.raises(UserError, match="url") as caught:
        validate(OpenAIReader.Config, {"url": ["word-of-mine"], "model": "m"}, "x")
    assert "word-of-mine" not in str(caught.value)


def test_free_settings_without_keys_are_taken():
    assert secret_in({"chat_template_kwargs": {"enable_thinking": False}, "min_tokens": 3}) is None
    assert secret_in({"api_key": None, "stop": ["Basic", "bearer "]}) is None
