"""Asks two questions about a photo, over three passages, and shows what each answer rests on.

python examples/ask_a_photo.py [PHOTO]

Without a photo of your own, with the koala of the bundled sample, it prints:

    In which country does this animal live?
      australia, from "Koala"
    How many hours a day does this animal sleep?
      20 hours, from "Koala"
"""

import sys
from pathlib import Path

from ravqa import Corpus, Passage, Pipeline
from ravqa.core.errors import UserError

KOALA = Path(__file__).parents[1] / "ravqa/datasets/sample/val2014/COCO_val2014_000009000010.jpg"
PASSAGES = [
    Passage("1", "The koala lives in Australia. It sleeps up to 20 hours a day.", title="Koala"),
    Passage("2", "The giant panda lives in China. It eats bamboo.", title="Giant panda"),
    Passage("3", "The lion lives in Africa and sleeps up to 21 hours a day.", title="Lion"),
]
QUESTIONS = [
    "In which country does this animal live?",
    "How many hours a day does this animal sleep?",
]


def main(photo):
    """Ask both questions, and print the answers."""
    pipeline = Pipeline.load("sample")
    pipeline.prepare(Corpus(PASSAGES))
    for question in QUESTIONS:
        response = pipeline.ask(question, photo)
        print(question)
        print(f'  {response.answer.text}, from "{response.passages[0].title}"')


if __name__ == "__main__":
    try:
        main(sys.argv[1] if len(sys.argv) > 1 else KOALA)
    except UserError as e:
        sys.exit(f"error: {e}")
