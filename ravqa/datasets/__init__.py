"""Datasets and corpora, read into records.

Each dataset is a function `load(request) -> Dataset`, registered by name in `ravqa.core.registry`.
"""
