"""The log of prompts: read back as written, each line once, torn ends cut off."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ravqa.core.errors import DataError
from ravqa.runs.prompts import PromptLog, read_prompts

TEXTS = st.lists(st.text("ab\n\r\u2028\ud800\u00e9 ", max_size=12), max_size=6)


@given(TEXTS, TEXTS)
def test_prompts_read_back_as_they_were(tmp_path_factory, first, second):
    path = tmp_path_factory.mktemp("log") / "prompts.jsonl"
    batches = [{f"{i}:{text}": text for text in texts} for i, texts in enumerate((first, second))]
    for batch in batches:
        PromptLog(path).add(batch)  # a new object: as a resumed run does
    found = {name: "\n".join(lines) for name, lines in read_prompts(path).items()}
    assert found == {**batches[0], **batches[1]}


def test_each_line_and_each_prompt_is_written_once(tmp_path):
    path = tmp_path / "prompts.jsonl"
    log = PromptLog(path)
    log.add({"a": "one\ntwo", "b": "two\nthree\ntwo"})
    log.add({"a": "one\ntwo", "c": "three"})
    records = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert records == [
        {"prompt_hash": "a", "lines": ["one", "two"]},
        {"prompt_hash": "b", "lines": [1, "three", 1]},
        {"prompt_hash": "c", "lines": [2]},
    ]


def test_a_torn_end_is_cut_off_and_the_numbers_go_on(tmp_path):
    path = tmp_path / "prompts.jsonl"
    PromptLog(path).add({"a": "one", "b": "two"})
    data = path.read_bytes()
    for end in range(len(data)):
        path.write_bytes(data[:end])
        kept = set(read_prompts(path))
        PromptLog(path).add({"a": "one", "b": "two", "c": "two\none"})
        found = {name: "\n".join(lines) for name, lines in read_prompts(path).items()}
        assert found == {"a": "one", "b": "two", "c": "two\none"}
        assert kept <= {"a", "b"}


@pytest.mark.parametrize("line", ["[]", '{"prompt_hash": "a", "lines": [7]}', "{", '{"lines": []}'])
def test_broken_lines_are_named(tmp_path, line):
    path = tmp_path / "prompts.jsonl"
    path.write_text(f'{{"prompt_hash": "a", "lines": ["x"]}}\n{line}\n', encoding="utf-8")
    with pytest.raises(DataError, match=r"prompts\.jsonl, line 2: not a prompt"):
        read_prompts(path)
    with pytest.raises(DataError, match="line 2"):
        PromptLog(path)


def test_no_file_is_no_prompts(tmp_path):
    assert read_prompts(tmp_path / "prompts.jsonl") == {}
