"""Answering: prompts, and the decision over k passages, driving any reader."""
