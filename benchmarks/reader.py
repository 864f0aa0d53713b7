"""Compare the framework's seconds per question with the bare `model.generate`, in one run.

The prompts are the bundled sample's questions, each with a random passage from its corpus, read by
SmolLM2-135M. The baseline tokenises the same prompts, pads the same batches on the left, calls
`model.generate` greedily and decodes. The framework renders the prompts, hashes them, forms the
batches, generates with log-probabilities, extracts the short answers and decides; nothing is
cached. It is timed twice: with the whole of every prompt run through the model, as in the baseline,
which measures the overhead; and in its default form, which runs the beginning that prompts share
once.

    python benchmarks/reader.py [--questions 16] [--batch-size 8] [--repeats 3]

With `--images`, a multimodal reader reads k prompts about one image: what they share once, and k
times (see `reader_images.py`).

    python benchmarks/reader.py --images [--width 2048] [--repeats 3]
"""

import argparse
import random
import statistics
import time

import reader_images
import torch

from ravqa.answering.answerer import Answerer
from ravqa.answering.config import AnsweringConfig
from ravqa.core.locations import SAMPLE
from ravqa.core.records import Hit
from ravqa.core.settings import load_pipeline
from ravqa.corpora.corpus import Corpus
from ravqa.datasets import okvqa
from ravqa.datasets.base import DatasetRequest
from ravqa.readers import beginnings
from ravqa.readers.base import Prompt
from ravqa.readers.transformers_llm import TransformersLLM

WHOLE = 10**9  # minimum shared tokens: more than any prompts have


def bare(model, tokenizer, texts, size, stops, longest):
    """Return the texts from `model.generate` alone, with prompts of similar length in a batch."""
    lengths = [len(ids) for ids in tokenizer(texts)["input_ids"]]
    order = sorted(range(len(texts)), key=lengths.__getitem__)
    out = [""] * len(texts)
    for start in range(0, len(order), size):
        rows = order[start : start + size]
        inputs = tokenizer([texts[i] for i in rows], padding=True, return_tensors="pt")
        with torch.inference_mode():
            written = model.generate(
                **inputs,
                max_new_tokens=longest,
                do_sample=False,
                eos_token_id=stops,
                return_dict_in_generate=False,
                output_logits=False,
            )
        new = written[:, inputs["input_ids"].shape[1] :]
        for i, text in zip(
            rows, tokenizer.batch_decode(new, skip_special_tokens=True), strict=True
        ):
            out[i] = text
    return out


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--questions", type=int, default=16)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--images", action="store_true", help="k prompts about one image")
    parser.add_argument("--width", type=int, default=2048, choices=sorted(reader_images.WIDTHS))
    given = parser.parse_args()
    if given.images:
        reader_images.main(given.width, given.repeats)
        return

    questions = list(okvqa.load(DatasetRequest()).questions)[: given.questions]
    corpus = list(Corpus.read(SAMPLE / "passages.jsonl").values())
    drawn = random.Random(0).choices(corpus, k=len(questions))
    retrieved = [[(Hit(p.passage_id, 1.0, 1), p)] for p in drawn]

    settings, _ = load_pipeline("sample")
    options = {k: v for k, v in settings["reader"].items() if k != "name"}
    options["batch_size"] = given.batch_size
    reader = TransformersLLM(TransformersLLM.Config(**options))
    config = AnsweringConfig(**settings["answering"] | {"cache": False})
    answerer = Answerer(config, reader)

    model, tokenizer = reader._model, reader._tokenizer
    tokenizer.padding_side = "left"
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    texts = [
        answerer.template.render(question, [passage])
        for question, passage in zip(questions, drawn, strict=True)
    ]
    counts = reader.count_tokens([Prompt(text) for text in texts])

    def baseline():
        return bare(
            model, tokenizer, texts, given.batch_size, sorted(reader.ends), reader.max_new_tokens
        )

    def framework(shared):
        def run():
            beginnings.MIN_SHARED = shared
            return [a.drafts[0].raw for a in answerer.answer(questions, retrieved)]

        return run

    runs = {
        "bare": baseline,
        "whole": framework(WHOLE),
        "shared": framework(beginnings.MIN_SHARED),
    }
    times = {name: [] for name in runs}
    cpu = {name: [] for name in runs}  # processor time, which excludes other processes
    answers = {}
    baseline()  # warm-up
    for _ in range(given.repeats):
        for name, run in runs.items():  # alternate, so that a slow minute affects all of them
            start, used = time.perf_counter(), time.process_time()
            answers[name] = run()
            times[name].append((time.perf_counter() - start) / len(questions))
            cpu[name].append((time.process_time() - used) / len(questions))
    best = {name: statistics.median(values) for name, values in times.items()}
    work = {name: statistics.median(values) for name, values in cpu.items()}

    print(
        f"{len(questions)} questions, prompts of {min(counts)} to {max(counts)} tokens, batches of "
        f"{given.batch_size}, {torch.get_num_threads()} threads, medians of {given.repeats}"
    )
    same = sum(
        a.startswith(b)  # the baseline keeps the line break that ended an answer
        for a, b in zip(answers["bare"], answers["whole"], strict=True)
    )
    print(f"same text as the baseline: {same} of {len(questions)}")
    print(f"bare model.generate:                   {best['bare']:.3f} s a question")
    for name, what in (("whole", "every prompt whole"), ("shared", "shared beginning run once")):
        ratio = best[name] / best["bare"]
        print(f"framework, {what + ':':27} {best[name]:.3f} s, {100 * (ratio - 1):+.1f} %")
    print(
        f"overhead: {best['whole'] / best['bare']:.3f}x, of processor time "
        f"{work['whole'] / work['bare']:.3f}x"
    )


if __name__ == "__main__":
    main()
