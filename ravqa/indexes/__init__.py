"""Late-interaction indexes behind one interface: see `ravqa.indexes.base.Index`."""
