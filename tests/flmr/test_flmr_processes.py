"""The loss with the negatives of all processes: two threads stand for two processes."""

import threading

import flmr_parity as parity
import pytest
import torch
from flmr_parity import one_thread  # noqa: F401 (a fixture)


class Exchange:
    """Two threads as two processes: what each gives to a gathering, all get."""

    def __init__(self, monkeypatch):
        self._local = threading.local()
        self._all, self._given = threading.Barrier(2, timeout=60), [None, None]
        monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
        monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
        monkeypatch.setattr(torch.distributed, "get_rank", lambda: self._local.rank)
        monkeypatch.setattr(torch.distributed, "all_gather", self._copied)
        monkeypatch.setattr("torch.distributed.nn.functional.all_gather", self._gathered)

    def _gathered(self, tensor):
        self._given[self._local.rank] = tensor
        self._all.wait()
        found = list(self._given)
        self._all.wait()
        assert found[0].shape == found[1].shape  # as gloo and NCCL require
        assert found[0].dtype == found[1].dtype
        return found

    def _copied(self, out, tensor):
        for place, value in zip(out, self._gathered(tensor), strict=True):
            place.copy_(value)

    def run(self, work):
        results = [None, None]

        def one(rank):
            self._local.rank = rank
            results[rank] = work(rank)

        threads = [threading.Thread(target=one, args=(rank,)) for rank in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return results


@pytest.mark.parametrize("middle", [1, 2, 3])
@pytest.mark.parametrize("each", [1, 3])
def test_losses_of_two_processes_are_in_the_mean_the_loss_of_one(monkeypatch, middle, each):
    model, _ = parity.load("flmr")
    torch.manual_seed(0)
    q = torch.randn(4, 5, 8)
    d = torch.randn(4 * each, 7, 8, requires_grad=True)
    mask = torch.ones(4 * each, 7, 1, dtype=torch.bool)
    mask[:, 2] = False
    mask[: middle * each, 5:] = False  # the first process pads to its own longest
    whole = model._in_batch_loss(q, d, mask, True)
    [expected] = torch.autograd.grad(whole, d)
    ends = [(0, middle, 5), (middle, 4, 7)]

    def work(rank):
        first, last, length = ends[rank]
        rows = slice(first * each, last * each)
        return model._in_batch_loss(q[first:last], d[rows, :length], mask[rows, :length], True)

    losses = Exchange(monkeypatch).run(work)
    torch.testing.assert_close(sum(losses) / 2, whole)
    [found] = torch.autograd.grad(sum(losses) / 2, d)
    torch.testing.assert_close(found, expected)
