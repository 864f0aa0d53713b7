"""A reader of four tokens, whose probabilities are known exactly: rules are checked against all of
its sequences."""

import itertools
import math
import random

import numpy as np

from ravqa.readers.base import Generation, Prompt, Reader

LETTERS = ("", "a", "b", "c")  # the first one ends a generation
LONGEST = 3


class Spelling(Reader):
    """A reader over four tokens; what it thinks of the next one is a table or drawn by lot."""

    gives_log_probs = True
    scores_answers = True
    gives_next_token_logprobs = True
    deterministic = True
    fingerprint = "spelling/1"
    weights = "a table"
    context = None
    max_new_tokens = LONGEST
    ends = frozenset({0})

    def __init__(self, table=None, seed=0):
        self.table = table
        self.seed = seed
        self.rows = []  # prompts of each call

    def chances(self, text, prefix):
        if self.table is not None:
            return self.table[text, "".join(LETTERS[t] for t in prefix)]
        lot = random.Random(f"{self.seed}/{text}/{tuple(prefix)}")
        weights = [lot.expovariate(1) ** 2 for _ in LETTERS]
        return [w / sum(weights) for w in weights]

    def next_token_logprobs(self, prompts, prefixes):
        self.rows.append([p.text for p in prompts])
        rows = [self.chances(p.text, t) for p, t in zip(prompts, prefixes, strict=True)]
        return list(np.log(np.array(rows)).astype(np.float32))

    def decode(self, tokens):
        return "".join(LETTERS[t] for t in tokens)

    def generate(self, prompts):
        out = []
        for prompt in prompts:
            tokens, log_prob = [], 0.0
            while len(tokens) < LONGEST and 0 not in tokens:
                chances = self.chances(prompt.text, tokens)
                log_prob += math.log(max(chances))
                tokens.append(chances.index(max(chances)))
            out.append(Generation(self.decode(tokens), log_prob, len(tokens)))
        return out

    def score(self, prompts, answers):
        out = []
        for prompt, answer in zip(prompts, answers, strict=True):
            tokens = [LETTERS.index(letter) for letter in answer]
            ended = tokens if len(tokens) == LONGEST else [*tokens, 0]
            out.append(math.log(chance(self, prompt.text, ended)))
        return out


def prompts(texts):
    return [Prompt(text) for text in texts]


def chance(reader, text, sequence):
    """p(sequence | text): the product over its tokens."""
    return math.prod(reader.chances(text, sequence[:i])[t] for i, t in enumerate(sequence))


def all_sequences():
    """Every generation: it ends with the end mark, or is as long as it may be."""
    for length in range(1, LONGEST + 1):
        for letters in itertools.product((1, 2, 3), repeat=length - 1):
            yield (*letters, 0)
    yield from itertools.product((1, 2, 3), repeat=LONGEST)
