"""Retrievers: questions to ranked passages."""
