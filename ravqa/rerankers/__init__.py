"""Between retrieval and reading: rerankers, passage filters, gates."""
