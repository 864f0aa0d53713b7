"""The compressed index."""
