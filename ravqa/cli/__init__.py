"""The command line: `ravqa`, and `run_vqa.py`."""

from ravqa.cli.app import main, run_main

__all__ = ["main", "run_main"]
