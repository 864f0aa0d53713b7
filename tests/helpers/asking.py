"""One request by a client of a server, sent at once."""

from ravqa.clients.transport import run


def now(client, body, read, stop=None, payer=None, form="chat"):
    """Send a request from this thread and return what is read from its reply."""
    return run(client.ask(form, body, read, stop, payer))
