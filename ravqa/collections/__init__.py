"""Collections: your own passages with settings and search index, in one folder.

from ravqa import Collection

collection = Collection.open_or_create("animals")
collection.add_files("passages.jsonl")
for hit, passage in collection.search("What does this animal eat?", "photo.jpg"):
    ...
print(collection.ask("What does this animal eat?", "photo.jpg").answer.text)
"""

from ravqa.collections.changes import Changes
from ravqa.collections.collection import Collection
from ravqa.collections.filters import Where

__all__ = ["Changes", "Collection", "Where"]
