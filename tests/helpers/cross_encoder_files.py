"""A tiny random BERT in a folder: it proves plumbing only."""

import torch
import transformers

WORDS = "what does this animal eat koala lion tree leaves meat iron tower : , ? . a of".split()
LIMIT = 24


def save(folder, model):
    specials = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    vocabulary = {word: i for i, word in enumerate([*specials, *WORDS])}
    tokenizer = transformers.BertTokenizer(vocab=vocabulary)
    with torch.no_grad():
        for p in model.parameters():  # sharper than the usual initialisation: scores differ
            p.normal_(std=0.3)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def config(**options):
    return transformers.BertConfig(
        vocab_size=len(WORDS) + 5,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=LIMIT,
        **options,
    )
