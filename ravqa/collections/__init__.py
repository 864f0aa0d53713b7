"""Collections: passages of one's own with settings and search structure, in one folder.

from ravqa.collections import Collection

collection = Collection.create("animals")
collection.add(passages)
for hit, passage in collection.search("What does this animal eat?", Path("photo.jpg")):
    ...
print(collection.ask("What does this animal eat?", Path("photo.jpg")).answer.text)
"""

from ravqa.collections.collection import Changes, Collection
from ravqa.collections.filters import Where

__all__ = ["Changes", "Collection", "Where"]
