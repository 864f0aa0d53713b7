"""A plugin for processes that serve collections: the encoder of hashes."""

from collection_files import register

register()
