"""Time of k prompts about one image, with what they share read once and read k times, in one run.

The model has LLaVA's form with random weights: an image of 576 tokens (336 x 336 pixels in patches
of 14), the widths of a model of 1 or 7 billion parameters, and two layers in place of 16 to 32. So
answers mean nothing, but the shares of the time are those of a deep model. Its vision tower has two
of CLIP's 24 layers.
"""

import os
import random
import statistics
import tempfile
import time
from io import BytesIO
from pathlib import Path

import numpy as np
import torch
import transformers
from PIL import Image

from ravqa.answering.prompt import PromptTemplate
from ravqa.core.checkpoints import load_tokenizer
from ravqa.core.locations import SAMPLE
from ravqa.core.outcomes import succeeded
from ravqa.corpora.corpus import Corpus
from ravqa.datasets import okvqa
from ravqa.datasets.base import DatasetRequest
from ravqa.readers.base import Prompt
from ravqa.readers.transformers_vlm import TransformersVLM

SHARED, OWN = 600, 143  # tokens of the prompts of fixed length
STEPS = 8  # of decoding
# hidden size, intermediate size and heads of TinyLlama-1.1B and of Llama 2 7B
WIDTHS = {2048: (5632, 32), 4096: (11008, 32)}
CHAT = (
    "<|im_start|>user\n"
    "{% for c in messages[0]['content'] %}{% if c['type'] == 'image' %}<image>\n{% else %}"
    "{{ c['text'] }}{% endif %}{% endfor %}<|im_end|>\n<|im_start|>assistant\n"
)


def build(folder, tokenizer, width):
    """Save a model of two layers with a tokenizer in LLaVA's form."""
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    tokenizer.model_max_length = 4096
    wide, heads = WIDTHS[width]
    text = transformers.LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=wide,
        num_hidden_layers=2,
        num_attention_heads=heads,
        max_position_embeddings=4096,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    vision = transformers.CLIPVisionConfig(
        hidden_size=1024,
        intermediate_size=4096,
        num_hidden_layers=2,
        num_attention_heads=16,
        image_size=336,
        patch_size=14,
        projection_dim=768,
    )
    config = transformers.LlavaConfig(
        text_config=text,
        vision_config=vision,
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
    )
    processor = transformers.LlavaProcessor(
        image_processor=transformers.CLIPImageProcessor(
            size={"shortest_edge": 336}, crop_size={"height": 336, "width": 336}
        ),
        tokenizer=tokenizer,
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=CHAT,
    )
    torch.manual_seed(0)
    transformers.LlavaForConditionalGeneration(config).save_pretrained(folder)
    processor.save_pretrained(folder)


def photo(seed):
    pixels = np.random.default_rng(seed).integers(0, 255, (480, 640, 3), dtype=np.uint8)
    data = BytesIO()
    Image.fromarray(pixels).save(data, "PNG")
    return data.getvalue()


def fixed(reader, image, k):
    """Prompts of SHARED + OWN tokens: instructions, and a passage that begins with its number."""
    empty = succeeded(reader.count_tokens([Prompt("", image)])[0])

    def words(tokens, start=""):  # each is one token
        return start + " the" * tokens

    begin = reader._tokenizer("<|im_start|>user\n", add_special_tokens=False)["input_ids"]
    end = empty - 576 - len(begin) - 1  # of the template, behind the passage
    shared = words(SHARED - 576 - len(begin) - 1)
    numbers = " one two three four five six seven eight nine ten red green blue white black grey"
    numbers += " north south east west"
    return [
        Prompt(shared + words(OWN - end - 1, f" {number}"), image) for number in numbers.split()[:k]
    ]


def chats(image, k, name):
    """Prompts of the sample's first question with k passages, by a template."""
    question = next(iter(okvqa.load(DatasetRequest()).questions))
    corpus = list(Corpus.read(SAMPLE / "passages.jsonl").values())
    template = PromptTemplate.load(name)
    drawn = random.Random(0).sample(corpus, k)
    return [Prompt(template.render(question, [passage], image=True), image) for passage in drawn]


def lengths(reader, prompts):
    """Return the tokens that all prompts begin with, and those of each prompt."""
    whole = reader._inputs(prompts)
    ids = [
        row[kept.bool()].tolist()
        for row, kept in zip(whole["input_ids"], whole["attention_mask"], strict=True)
    ]
    return len(os.path.commonprefix(ids)), [len(row) for row in ids]  # noqa: RUF071


def timed(reader, prompts, once):
    """Return seconds of processor time of reading and of STEPS steps, and log-probabilities."""
    reader._keeps_features = reader._shares = once
    reader.forget()
    started = time.process_time()
    first = reader.next_token_logprobs(prompts, [[]] * len(prompts))
    read = time.process_time()
    rows, prefixes = first, [[] for _ in prompts]
    for _ in range(STEPS):
        prefixes = [[*p, int(row.argmax())] for p, row in zip(prefixes, rows, strict=True)]
        rows = reader.next_token_logprobs(prompts, prefixes)
    decoded = time.process_time()
    return read - started, decoded - read, np.stack(first), prefixes


def compare(name, reader, prompts, repeats):
    """Print a row of the table."""
    shared, counts = lengths(reader, prompts)
    spent = {once: [] for once in (False, True)}
    looks = {}
    found = {}
    tower = reader._model.model.vision_tower
    seen = []
    handle = tower.register_forward_hook(lambda module, given, out: seen.append(len(out[0])))
    for _ in range(repeats):
        for once, seconds in spent.items():  # alternate, so that a slow minute affects both
            seen.clear()
            *times, logs, written = timed(reader, prompts, once)
            found[once], looks[once] = (logs, written), sum(seen)
            seconds.append(times)
    handle.remove()
    (whole, steps), (part, others) = (
        [statistics.median(column) for column in zip(*spent[once], strict=True)]
        for once in (False, True)
    )
    k = len(prompts)
    tokens = sum(counts), shared + sum(counts) - k * shared
    gap = float(np.abs(found[True][0] - found[False][0]).max())
    same = sum(a == b for a, b in zip(found[True][1], found[False][1], strict=True))
    each = f"{min(counts)}" if len(set(counts)) == 1 else f"{min(counts)} to {max(counts)}"
    print(
        f"| {name} | {k} | {shared} of {each} | {looks[False]}, {looks[True]} | {whole:.2f}, "
        f"{part:.2f} | {whole / part:.2f} | {tokens[0] / tokens[1]:.2f} | "
        f"{steps / STEPS:.3f}, {others / STEPS:.3f} | {gap:.0e}, {same} of {k} |",
        flush=True,
    )


def main(width, repeats, ks=(5, 20)):
    """Print a table: processor seconds, each read k times and once."""
    torch.set_num_threads(1)
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    source = load_tokenizer_of_the_sample()
    with tempfile.TemporaryDirectory() as folder:
        build(folder, source, width)
        options = {"model": folder, "device": "cpu", "dtype": "float32"}
        reader = TransformersVLM(TransformersVLM.Config(**options))
    size = sum(p.numel() for p in reader._model.parameters()) / 1e6
    print(
        f"width {width}, 2 layers, {size:.0f} million parameters, float32, 1 thread; medians of "
        f"{repeats} repetitions, in seconds of processor time; batches of "
        f"{reader.settings.batch_size}\n"
    )
    columns = "prompts | k | shared tokens of each prompt | images seen | prefill | ratio | "
    columns += "ratio of tokens | decoding, a step | difference of log-probabilities, same texts"
    print(f"| {columns} |\n|{'---|' * (columns.count('|') + 1)}")
    image = photo(0)
    timed(reader, fixed(reader, image, 1), True)  # warm-up
    for k in ks:
        compare("fixed length", reader, fixed(reader, image, k), repeats)
    for name in ("chat-question-first", "chat"):
        for k in ks:
            compare(f"`{name}`", reader, chats(image, k, name), repeats)


def load_tokenizer_of_the_sample():
    """The tokenizer of SmolLM2-135M, the default reader."""
    from ravqa.core.settings import load_pipeline
    from ravqa.readers.gguf import dequantised
    from ravqa.readers.loading import LocalConfig, Placement

    settings, _ = load_pipeline("sample")
    placement = Placement(LocalConfig(model=settings["reader"]["model"]), "the benchmark")
    folder = dequantised(Path(placement.path), placement.content)
    return load_tokenizer(str(folder), trust_remote_code=False)
