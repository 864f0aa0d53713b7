"""Progress on a console: lines in a file, bars on a terminal."""

import io

from rich.console import Console as RichConsole

from ravqa.runs.console import Console


def test_a_file_gets_lines_and_what_ended_is_said_again_by_the_next_run():
    file = io.StringIO()
    console = Console(err=RichConsole(file=file, width=60))
    for _ in range(2):
        with console.status("loading models"):
            console.progress("questions", 0, 2000)
        console.progress("questions", 1000, 2000)
        console.progress("questions", 2000, 2000)
        console.progress("questions", 2000, 2000)
        console.close()
    expected = ["loading models", "questions: 0/2,000", "questions: 2,000/2,000"]
    assert file.getvalue().splitlines() == expected * 2


def test_a_terminal_gets_bars_whose_total_may_change():
    file = io.StringIO()
    console = Console(err=RichConsole(file=file, width=100, force_terminal=True))
    console.progress("shards", 1, 2)
    console.progress("shards", 1, 4)
    [task] = console._bars.tasks
    assert (task.description, task.completed, task.total) == ("shards", 1, 4)
    console.close()
    assert "1/4" in file.getvalue()
