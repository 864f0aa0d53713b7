"""Readers: language models behind one small interface, with stated abilities."""
