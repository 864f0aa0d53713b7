"""Answer and score a dataset: `python run_vqa.py --dataset okvqa` (see --help)."""

from ravqa.cli import run_main

if __name__ == "__main__":
    run_main()
