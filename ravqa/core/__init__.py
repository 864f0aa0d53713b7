"""What every package builds on: records, errors, settings, registries, caches and files."""
