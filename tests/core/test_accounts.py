"""Costs: sums, shares, prices and limits."""

from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ravqa.core.accounts import Account, Cost, Prices, Usage, shared_costs, tokens, total
from ravqa.core.errors import LimitError, UserError
from ravqa.core.settings import validate

PRICES = Prices(prompt=0.15, completion=0.6, cached=0.075, currency="USD")
COUNTS = st.integers(0, 10**9)


@settings(max_examples=50, deadline=None)
@given(COUNTS, COUNTS, COUNTS)
def test_money_is_the_sum_of_tokens_times_their_prices(prompt, completion, cached):
    cached = min(cached, prompt)
    exact = (
        (prompt - cached) * Fraction("0.15")
        + cached * Fraction("0.075")
        + completion * Fraction("0.6")
    ) / 10**6
    money = PRICES.money(Usage(prompt, completion, cached))
    assert money == pytest.approx(float(exact), rel=1e-12, abs=1e-12)


def test_tokens_from_the_servers_cache_cost_as_much_as_others_without_a_price_of_their_own():
    prices = Prices(prompt=2, completion=4, currency="EUR")
    assert prices.money(Usage(1_000_000, 0, 500_000)) == 2
    assert prices.money(Usage(1_000_000, 0)) == PRICES.money(Usage(0, 0)) + 2


@pytest.mark.parametrize(
    ("prices", "message"),
    [
        ({"prompt": 1, "completion": 1}, "x: key 'currency' is missing"),
        (
            {"prompt": -1, "completion": 1, "currency": "USD"},
            "x: key 'prompt': input should be greater than or equal to 0, got -1",
        ),
        (
            {"prompt": 1, "completion": 1, "currency": "dollars"},
            "x: key 'currency': string should match pattern '^[A-Z]{3}$', got 'dollars'",
        ),
    ],
)
def test_prices_without_a_currency_or_below_zero_are_refused(prices, message):
    with pytest.raises(UserError) as error:
        validate(Prices, prices, "x")
    assert str(error.value) == message


COSTS = st.builds(
    Cost,
    requests=st.integers(0, 50),
    retries=st.integers(0, 5),
    prompt_tokens=st.integers(0, 1000),
    completion_tokens=st.integers(0, 1000),
    cached_tokens=st.none() | st.integers(0, 1000),
    unknown=st.integers(0, 3),
    money=st.none() | st.integers(0, 100),
)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.sampled_from([None, 1, 2, "1", "gone"]), COSTS)))
def test_shares_of_all_questions_sum_to_what_was_charged(charges):
    account = Account()
    with account.booked() as costs:
        for payer, cost in charges:
            account.charge(cost, payer)
    shares = total(shared_costs(costs, [1, 2, "1"]))
    wanted = total(cost for _, cost in charges)
    for name in ("requests", "retries", "prompt_tokens", "completion_tokens", "unknown"):
        assert getattr(shares, name) == pytest.approx(getattr(wanted, name)), name
    for name in ("cached_tokens", "money"):
        one, other = getattr(shares, name), getattr(wanted, name)
        assert other is None or one == pytest.approx(other), name
        assert other is not None or one is None, name
    assert account.total == wanted


def test_work_of_other_threads_is_booked_where_it_was_ordered():
    account = Account()
    with ThreadPoolExecutor(4) as threads:

        def order(number):
            with account.booked() as costs:
                contexts = [copy_context() for _ in range(number)]
                list(threads.map(lambda c: c.run(account.charge, Cost(requests=1), "q"), contexts))
                with account.booked() as inner:
                    account.charge(Cost(requests=9), "r")
            return costs, inner

        with ThreadPoolExecutor(4) as orders:
            found = list(orders.map(order, range(1, 9)))
    account.charge(Cost(requests=100))
    assert found == [({"q": Cost(requests=n)}, {"r": Cost(requests=9)}) for n in range(1, 9)]
    assert account.total == Cost(requests=36 + 72 + 100)


def test_a_question_pays_its_own_and_a_share_of_what_is_for_none():
    costs = {1: Cost(requests=1, prompt_tokens=10), None: Cost(requests=3)}
    first, second = shared_costs(costs, [1, 2])
    assert first == Cost(requests=2.5, prompt_tokens=10)
    assert second == Cost(requests=1.5)


def test_unknown_tokens_stay_unknown_and_reused_ones_are_apart():
    known, unknown = Cost.of(Usage(10, 2, 4), PRICES), Cost.of(None, PRICES)
    both = known + unknown + Cost.of_reused(Usage(7, 1), PRICES) + Cost.of_kept(2)
    assert both.unknown == 1
    assert (both.prompt_tokens, both.completion_tokens, both.cached_tokens) == (10, 2, 4)
    assert both.reused == 3
    assert both.reused_unknown == 2
    assert (both.reused_prompt_tokens, both.reused_completion_tokens) == (7, 1)
    assert both.requests == 0
    assert Cost.of(None).money is None


def test_a_limit_of_money_needs_known_tokens():
    account = Account(max_cost=1)
    account.admit()
    account.charge(Cost.of(None))  # of a model without prices
    account.admit()
    account.charge(Cost.of(None, PRICES))
    with pytest.raises(LimitError) as error:
        account.admit()
    assert str(error.value) == (
        "--max-cost 1: a server does not say how many tokens it used, so that the cost is not "
        "known: use --max-requests"
    )


def test_a_closed_account_takes_nothing_and_refuses_nothing():
    account = Account(max_requests=1)
    account.admit()
    account.close()
    account.admit()
    account.charge(Cost(requests=5))
    assert account.total == Cost(requests=1)


def test_tokens_are_given_only_where_all_are_known():
    asked, kept = Cost.of(Usage(10, 2)), Cost.of_reused(Usage(5, 1))
    assert tokens(total([asked, kept])) == Usage(15, 3)
    for unknown in (Cost.of(None), Cost.of_reused(None), Cost.of_kept(1)):
        assert tokens(total([asked, unknown])) is None
    assert tokens(Cost()) is None
