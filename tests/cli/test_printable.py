"""Foreign text is shown, never obeyed: control characters, reordering marks, broken characters."""

import io
import json
import logging
import re
import sys
import warnings

import pytest
from rich.table import Table
from rich.text import Text

from ravqa.cli import app, main, shared
from ravqa.core.terminal import Terminal
from ravqa.core.texts import printable
from ravqa.runs.console import Console

EVIL = "a\x1b[31mred\x1b]0;title\x07\x9b2J\r\x08\x7f\u202e\u2066\u200fb\udc80\u061c"
OBEYED = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]")


def test_what_a_terminal_obeys_becomes_an_escape():
    shown = printable(EVIL)
    assert not OBEYED.search(shown)
    assert shown.startswith(r"a\u001b[31mred\u001b]0;title\u0007\u009b2J\u000d\u0008\u007f\u202e")
    assert shown.encode().decode() == shown
    kept = "Grüße, 日本語, \U0001f469\u200d\U0001f680, \u0645\u06cc\u200c\u062e\u0648:\t1\n2"
    assert printable(kept) == kept
    assert json.loads(printable(json.dumps([EVIL], ensure_ascii=False))) == [EVIL]
    for code in range(0x3000):
        character = chr(code)
        assert (printable(character) == character) == (not OBEYED.match(character))


@pytest.mark.parametrize("terminal", [True, False])
def test_the_console_shows_foreign_text_safely(terminal):
    out = io.StringIO()
    rich = Terminal(file=out, force_terminal=terminal, color_system=None, width=200)
    console = Console(rich, rich)
    console.note(EVIL)
    with console.status(EVIL):
        pass
    console.progress(EVIL, 1, 2)
    console.close()
    table = Table(title=EVIL)
    table.add_column(EVIL)
    table.add_row(Text(EVIL))
    table.add_row(EVIL)
    rich.print(table)
    rich.print(EVIL)
    shown = out.getvalue()
    assert shown.count(r"a\u001b[31mred\u001b]0;title") >= 4
    # A terminal's own codes, which draw the bars, move the cursor and nothing else.
    shown = re.sub(r"\x1b\[(\?25[hl]|\d*[AKG]|\d+m|[\d;]*m)", "", shown).replace("\r", "")
    assert not OBEYED.search(shown)
    assert "\udc80" not in shown


@pytest.mark.parametrize(
    "arguments",
    [
        ["report", EVIL.replace("\r", "")],
        ["run", "--dataset", EVIL],
        ["run", "--dataset", "okvqa", "--pipeline", EVIL],
        ["run", "--dataset", "okvqa", "--set", EVIL],
        ["study", EVIL],
        ["score", EVIL, "--dataset", "okvqa"],
        ["compare", EVIL],
        ["ls", EVIL],
        [EVIL],
    ],
)
def test_errors_are_one_safe_line(arguments, capsys):
    with pytest.raises(SystemExit) as end:
        main(arguments)
    assert end.value.code == 2
    [line] = [line for line in capsys.readouterr().err.splitlines() if "error: " in line]
    assert not OBEYED.search(line)
    assert r"\u001b[31mred\u001b]0;title\u0007" in line or r"\x1b[31mred" in line


def test_an_error_has_an_end(capsys):
    with pytest.raises(SystemExit):
        main(["study", "a" * 100_000])
    line = capsys.readouterr().err
    assert len(line) < 10_010
    assert line.startswith("error: ")


def test_messages_of_other_libraries_are_safe(capsys):
    app._show_all_safely()
    handler = logging.StreamHandler(sys.stderr)
    log = logging.getLogger("someone")
    log.addHandler(handler)
    try:
        log.warning("%s of %d", EVIL, 1)
    finally:
        log.removeHandler(handler)
    sys.stderr.write(warnings.formatwarning(EVIL, UserWarning, "f.py", 1))
    shown = capsys.readouterr().err
    assert shown.count(r"a\u001b[31mred\u001b]0;title\u0007") == 2
    assert not OBEYED.search(shown)


def test_what_the_terminal_cannot_encode_is_escaped(monkeypatch):
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="ascii"))
    with pytest.raises(SystemExit) as end:
        main(["ls", "studies"])
    sys.stdout.flush()
    assert end.value.code == 0
    assert raw.getvalue().isascii()
    app.say("koala \u2192 日本\udc80")
    sys.stdout.flush()
    assert rb"koala \u2192 \u65e5\u672c\udc80" in raw.getvalue()


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_json_for_scripts_is_json_on_every_terminal(monkeypatch, encoding):
    value = {"text": "a koala \U0001f428 eats\u2026 caf\u00e9 \x1b[31m\u202e", "n": [1, None]}
    out = io.TextIOWrapper(io.BytesIO(), encoding=encoding, errors="backslashreplace")
    monkeypatch.setattr(sys, "stdout", out)
    shared.say_json(value, indent=1)
    out.flush()
    written = out.buffer.getvalue().decode(encoding)
    assert json.loads(written) == value
    assert "\x1b" not in written
    assert ("\U0001f428" in written) == (encoding == "utf-8")
