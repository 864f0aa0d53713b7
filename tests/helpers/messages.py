"""The whole message of an error, where each of its words is promised."""

import pytest


def said(error, call, *arguments, **options):
    """The message of the error that a call raises; an iterator is read to its end."""

    def run():
        found = call(*arguments, **options)
        return list(found) if hasattr(found, "__next__") else found

    with pytest.raises(error) as raised:
        run()
    return str(raised.value)
