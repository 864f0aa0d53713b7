"""What readers can do, by short names: for readers that tests make up."""

ABILITIES = {
    "images": "supports_images",
    "log_probs": "gives_log_probs",
    "score": "scores_answers",
    "next_token": "gives_next_token_logprobs",
    "count": "counts_tokens",
    "stream": "streams",
}


def give(reader, names):
    """Let a reader have these abilities."""
    for name in names:
        setattr(reader, ABILITIES[name], True)


def abilities_of(reader):
    """The names of a reader's abilities."""
    return {name for name, attribute in ABILITIES.items() if getattr(reader, attribute)}
