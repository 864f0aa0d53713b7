"""Evaluation runs: planned, loaded, executed and reported."""
