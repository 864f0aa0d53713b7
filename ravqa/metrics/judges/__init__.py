"""Judges of answer equivalence: does a candidate answer mean the same as the reference?

`bem` runs a BERT checkpoint, `llm` asks a language model behind an OpenAI-compatible server.
"""
