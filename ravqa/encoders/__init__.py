"""Encoders: text (and images) to token vectors, one array per item.

An encoder has `dim`, `fingerprint`, `weights` (a name for people) and

    encode_document(texts) -> list of float32 arrays [tokens, dim], L2-normalised rows
    encode_query(queries)  -> the same; a query is a text or weighted pieces of text
"""
