"""A builder's own passages: one folder with corpus, encoder settings and index.

from ravqa.library import Library

library = Library.create("animals")
library.add(passages)
for hit, passage in library.search("What does this animal eat?", Path("photo.jpg")):
    ...
print(library.ask("What does this animal eat?", Path("photo.jpg")).answer.text)
"""

from ravqa.library.filters import Where
from ravqa.library.library import Changes, Library

__all__ = ["Changes", "Library", "Where"]
