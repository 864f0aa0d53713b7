"""What servers say that replies took, and what a client charges for requests."""

import json
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext

import pytest
from asking import now
from scripted_server import chat

from ravqa.clients.openai import ChatServerConfig, Client, NoAnswerError
from ravqa.clients.usage import usage_of
from ravqa.core.accounts import Account, Cost, Prices, Usage, charged_to
from ravqa.core.errors import LimitError, PromptError, UserError
from ravqa.core.outcomes import Failure

OPENAI = {"prompt_tokens": 100, "completion_tokens": 7, "total_tokens": 107}


@pytest.mark.parametrize(
    ("usage", "wanted"),
    [
        (OPENAI, Usage(100, 7)),
        ({**OPENAI, "prompt_tokens_details": {"cached_tokens": 64}}, Usage(100, 7, 64)),
        ({**OPENAI, "prompt_tokens_details": {"cached_tokens": 0}}, Usage(100, 7, 0)),
        ({**OPENAI, "prompt_tokens_details": None}, Usage(100, 7)),
        (
            {**OPENAI, "prompt_cache_hit_tokens": 40, "prompt_cache_miss_tokens": 60},
            Usage(100, 7, 40),
        ),
        ({**OPENAI, "cached_tokens": 10}, Usage(100, 7, 10)),
        # Thinking that only the total has.
        ({**OPENAI, "total_tokens": 207}, Usage(100, 107)),
        # A scored prompt.
        ({"prompt_tokens": 5, "total_tokens": 5}, Usage(5, 0)),
        # A server's cached tokens beyond the prompt's would make a negative price.
        ({**OPENAI, "cached_tokens": 1000}, Usage(100, 7, 100)),
        ({"prompt_tokens": 5}, None),
        ({"prompt_tokens": True, "completion_tokens": 1}, None),
        ({"prompt_tokens": -5, "completion_tokens": 1}, None),
        ({"prompt_tokens": "5", "completion_tokens": 1}, None),
        ({"prompt_tokens": 5, "total_tokens": 3}, None),
        ({"prompt_tokens": 10**30, "completion_tokens": 1}, None),
        ({}, None),
        (None, None),
        ([], None),
    ],
)
def test_all_known_forms_are_read_and_others_are_unknown(usage, wanted):
    assert usage_of({"choices": [], "usage": usage}) == wanted


def test_a_reply_without_usage_is_unknown():
    assert usage_of({"choices": []}) is None
    assert usage_of(iter([])) is None


def used(text="hi", usage=OPENAI):
    status, reply = chat(text)
    return status, json.dumps(json.loads(reply) | {"usage": usage})


def client(server, **options):
    config = ChatServerConfig(url=server.url, model="m", timeout=10, **options)
    return Client(config, why="the test")


def text_of(reply):
    return reply["choices"][0]["message"]["content"]


def ask(asker, payer=None, read=text_of):
    return now(asker, {"model": "m", "messages": []}, read, payer=payer)


def each(asker, number):
    def one(payer, stop):
        return asker.ask("chat", {"model": "m", "messages": []}, text_of, stop, payer)

    return dict(asker.each(one, range(number)))


def test_requests_tokens_and_money_are_charged_to_the_payer(serve):
    account = Account()
    prices = Prices(prompt=10, completion=100, currency="USD")
    asker = client(serve(lambda *_: used()), prices=prices)
    with charged_to(account), account.booked() as found:
        assert ask(asker, "q1") == ask(asker, "q1") == ask(asker, 2) == "hi"
    one = Cost(requests=1, prompt_tokens=100, completion_tokens=7, money=0.0017)
    assert found[2] == one
    assert found["q1"] == one + one


def test_every_try_is_a_request_and_only_replies_have_tokens(serve, waits):
    replies = [(503, "busy"), (200, "oops"), (200, json.dumps({"error": "no"})), used()]
    account = Account()
    with charged_to(account):
        ask(client(serve(lambda n, _: replies[n - 1])), 1)
    assert account.total == Cost(requests=4, retries=3, prompt_tokens=100, completion_tokens=7)


def test_a_reply_without_an_answer_costs_what_it_took(serve):
    def read(reply):
        raise NoAnswerError("refused")

    account = Account()
    with pytest.raises(PromptError), charged_to(account):
        ask(client(serve(lambda *_: used())), 1, read)
    assert account.total == Cost(requests=1, prompt_tokens=100, completion_tokens=7)


def test_without_usage_tokens_are_unknown(serve):
    account = Account()
    with charged_to(account):
        ask(client(serve(lambda *_: chat("hi"))))
    assert account.total == Cost(requests=1, unknown=1)


@pytest.mark.parametrize("workers", [1, 4])
def test_no_request_is_sent_beyond_their_limit(serve, workers):
    server = serve(lambda *_: used())
    asker = client(server, workers=workers)
    with charged_to(Account(max_requests=5)):
        found = each(asker, 12)
    assert len(server.requests) == 5
    answered = [value for value in found.values() if value == "hi"]
    assert len(answered) == 5
    reason = "--max-requests 5: as many requests have been sent"
    assert [v for v in found.values() if v != "hi"] == [Failure(reason, fatal=True)] * 7


def test_a_limit_of_money_is_passed_by_no_more_than_what_is_under_way(serve):
    workers = 3
    together = threading.Barrier(workers, timeout=5)

    def reply(*_):
        together.wait()
        return used()

    server = serve(reply)
    prices = Prices(prompt=0, completion=10**6 / 7, currency="USD")  # 1 for each request
    account = Account(max_cost=0.5)
    asker = client(server, workers=workers, prices=prices)
    with charged_to(account):
        found = each(asker, 12)
    assert len(server.requests) == workers
    assert sum(value == "hi" for value in found.values()) == workers
    assert account.total.money == pytest.approx(3)
    with pytest.raises(LimitError) as error, charged_to(account):
        ask(asker)
    assert str(error.value) == "--max-cost 0.5: 3 has been spent"


def test_two_that_ask_through_one_client_pay_for_their_own_requests(serve):
    asker = client(serve(lambda *_: used()), workers=4)
    accounts = [Account(), Account(max_requests=9)]
    together = threading.Barrier(2, timeout=5)

    def work(account, number):
        with charged_to(account):
            together.wait()
            return each(asker, number)

    with ThreadPoolExecutor(2) as threads:
        found = list(threads.map(work, accounts, [20, 12]))
    assert [account.total.requests for account in accounts] == [20, 9]
    assert [sum(v == "hi" for v in values.values()) for values in found] == [20, 9]


def test_that_the_server_is_gone_is_judged_by_each_runs_own_requests(serve, waits):
    """Else a run whose prompts the server cannot take would end another one."""
    asker = client(serve(lambda *_: (500, "no")), retries=0)
    reasons = []
    for account in [Account(), Account(), None]:
        with nullcontext() if account is None else charged_to(account):
            for _ in range(3):
                with pytest.raises(UserError) as error:
                    ask(asker)
                reasons.append("in a row" in str(error.value))
    assert reasons == [False, False, True] * 3
