"""The log of prompts: read back as written, each prompt once, torn ends cut off."""

import gzip
import json
import random
import subprocess

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ravqa.core.errors import DataError, UserError
from ravqa.runs.prompts import PROMPTS, PromptLog, read_prompts

TEXTS = st.lists(st.text("ab\n\r\u2028\ud800\u00e9 ", max_size=12), max_size=6)


def texts_in(path):
    return {name: "\n".join(lines) for name, lines in read_prompts(path).items()}


@given(TEXTS, TEXTS)
def test_prompts_read_back_as_they_were(tmp_path_factory, first, second):
    path = tmp_path_factory.mktemp("log") / PROMPTS
    batches = [{f"{i}:{text}": text for text in texts} for i, texts in enumerate((first, second))]
    for batch in batches:
        PromptLog(path).add(batch)  # a new object: as a resumed run does
    assert texts_in(path) == {**batches[0], **batches[1]}


def test_each_prompt_is_written_once_and_other_programs_can_read_it(tmp_path):
    path = tmp_path / PROMPTS
    log = PromptLog(path)
    log.add({"a": "one\ntwo", "b": "zwei \u00e4"})
    log.add({"a": "one\ntwo", "c": "three"})
    shown = subprocess.run(["gzip", "-dc", path], capture_output=True, check=True).stdout
    assert [json.loads(line) for line in shown.decode().splitlines()] == [
        {"prompt_hash": "a", "prompt": "one\ntwo"},
        {"prompt_hash": "b", "prompt": "zwei \u00e4"},
        {"prompt_hash": "c", "prompt": "three"},
    ]
    assert "zwei \u00e4" in shown.decode()


def test_a_torn_end_is_cut_off_and_the_log_grows_on(tmp_path):
    path = tmp_path / PROMPTS
    PromptLog(path).add({"a": "one"})
    first = path.stat().st_size
    PromptLog(path).add({"b": "two"})
    data = path.read_bytes()
    for end in range(len(data) + 1):
        path.write_bytes(data[:end])
        whole = {"a": "one"} if end >= first else {}
        whole |= {"b": "two"} if end == len(data) else {}
        assert texts_in(path) == whole
        PromptLog(path).add({"a": "one", "b": "two", "c": "two\none"})
        assert texts_in(path) == {"a": "one", "b": "two", "c": "two\none"}


def test_writes_longer_than_a_block_are_read(tmp_path):
    # Hexadecimal digits by chance hardly get shorter: members end all over the blocks.
    chance = random.Random(0)
    prompts = {str(i): chance.randbytes(40_000 + 7 * i).hex() for i in range(12)}
    for start in range(0, 12, 3):
        PromptLog(tmp_path / PROMPTS).add(dict(list(prompts.items())[start : start + 3]))
    assert (tmp_path / PROMPTS).stat().st_size > 5 * 2**16
    assert texts_in(tmp_path / PROMPTS) == prompts


@pytest.mark.parametrize(
    "line", ["[]", '{"prompt_hash": "a", "prompt": 7}', "{", '{"prompt": ""}', '{"lines": []}']
)
def test_broken_lines_are_named(tmp_path, line):
    path = tmp_path / PROMPTS
    good = gzip.compress(b'{"prompt_hash": "a", "prompt": "x"}\n')
    path.write_bytes(good + gzip.compress(line.encode()))
    with pytest.raises(DataError, match=r"prompts\.jsonl\.gz, line 2: not a prompt"):
        read_prompts(path)
    with pytest.raises(DataError, match="line 2"):
        PromptLog(path)
    path.write_bytes(good + b"no gzip")
    with pytest.raises(DataError, match=f"is damaged after byte {len(good)}"):
        read_prompts(path)
    assert path.stat().st_size == len(good) + 7


def test_no_file_is_no_prompts(tmp_path):
    assert read_prompts(tmp_path / PROMPTS) == {}


def test_the_log_of_an_earlier_version_is_refused(tmp_path):
    (tmp_path / "prompts.jsonl").write_text('{"prompt_hash": "a", "lines": ["x"]}\n')
    for read in (read_prompts, PromptLog):
        with pytest.raises(UserError, match=r"prompts\.jsonl was written by an earlier version"):
            read(tmp_path / PROMPTS)
