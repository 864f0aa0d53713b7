"""Indexes that grow by segments."""
