"""Corpora: where passages come from and how they are stored."""
