"""Files of passages, as users write them."""

import json


def jsonl(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def written(path, text):
    path.write_bytes(text.encode())
    return path
