"""A builder's own passages: one folder with corpus, encoder settings and index.

from ravqa.collections import Library

library = Library.create("animals")
library.add(passages)
for hit, passage in library.search("What does this animal eat?", Path("photo.jpg")):
    ...
print(library.ask("What does this animal eat?", Path("photo.jpg")).answer.text)
"""

from ravqa.collections.collection import Changes, Library
from ravqa.collections.filters import Where

__all__ = ["Changes", "Library", "Where"]
