"""Late-interaction indexes behind one interface: see `ravqa.index.base.Index`."""
