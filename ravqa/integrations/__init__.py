"""Adapters with which other libraries use parts of this one; nothing here imports them."""
