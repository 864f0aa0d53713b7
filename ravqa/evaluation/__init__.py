"""Scoring of samples."""
