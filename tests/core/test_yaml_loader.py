"""YAML is read strictly: duplicate keys and aliases that multiply are refused."""

import pytest
import yaml

from ravqa.core.errors import UserError
from ravqa.core.settings import apply_override, read_yaml
from ravqa.core.yaml_loader import DuplicateKeyError, load_yaml
from ravqa.datasets.base import parse_options


@pytest.mark.parametrize(
    ("text", "key", "line"),
    [
        ("a: 1\nb: 2\na: 3", "a", 3),
        ("1: a\n'1': b", "1", 2),
        ("x:\n  - {a: 1}\n  - {k: 1, k: 1}", "k", 3),
        ("x: &x {a: 1}\ny:\n  <<: *x\n  b: 1\n  b: 2", "b", 5),
    ],
)
def test_a_key_that_occurs_twice_is_refused_with_its_line(text, key, line, tmp_path):
    with pytest.raises(DuplicateKeyError, match=f"the key '{key}' occurs twice"):
        load_yaml(text)
    path = tmp_path / "p.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=rf"p\.yaml, line {line}: .*'{key}' occurs twice"):
        read_yaml(path)


@pytest.mark.parametrize(
    "text",
    [
        "a: &a [x, y]\nb: *a\nc: *a",
        "a: &a {k: 1, m: 2}\nb:\n  <<: *a\n  k: 3",
        "- {a: 1}\n- {a: 2}",
        "day: 2024-01-02\nn: 1e3",
    ],
)
def test_other_yaml_is_read_as_pyyaml_reads_it(text):
    assert load_yaml(text) == yaml.safe_load(text)


@pytest.mark.parametrize(
    "text",
    [
        "a0: &a0 [x, x]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]\n" for i in range(1, 60)),
        "a: &a [" + "x, " * 20_000 + "]\n" + "\n".join(f"b{i}: *a" for i in range(9)),
        f"a: &a {'s' * 50_000}\nb: [*a, *a, *a]",
        "a: &a [*a]",
        "a: &a {b: {c: *a}}",
    ],
)
def test_aliases_that_multiply_are_refused(text):
    with pytest.raises(yaml.YAMLError, match=r"the alias \*a\d* repeats too much"):
        load_yaml(text)


@pytest.mark.parametrize("text", ["0x" + "f" * 5000, "1:" * 3000 + "1", "0b" + "1" * 20_000])
def test_a_number_that_cannot_be_written_again_is_refused(text, tmp_path):
    (tmp_path / "p.yaml").write_text(f"a: 1\nb: {text}\n")
    with pytest.raises(UserError, match=r"p\.yaml, line 2: not YAML: a number has too many digits"):
        read_yaml(tmp_path / "p.yaml")
    assert load_yaml("[0xff, 0o7, -12, 1_000]") == yaml.safe_load("[0xff, 0o7, -12, 1_000]")


def test_options_on_the_command_line_are_read_strictly_too():
    with pytest.raises(UserError, match=r"not YAML \(the key 'a' occurs twice\)"):
        apply_override({}, "reader.extra={a: 1, a: 2}")
    with pytest.raises(UserError, match=r"not YAML \(the key 'a' occurs twice\)"):
        parse_options(["x={a: 1, a: 2}"])
