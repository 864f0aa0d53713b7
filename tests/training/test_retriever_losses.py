"""The retriever's losses and gradients: brute force, the original's numbers, other libraries'."""

import json
import math

import flmr_parity as parity
import pytest
import torch
import training_files
from cases import slow_but
from flmr_parity import one_thread  # noqa: F401 (a fixture)
from hypothesis import given
from hypothesis import strategies as st
from training_files import write_examples, write_rows

from ravqa.training.losses import contrastive, distilled, interaction


def task(folder, file=None, **changes):
    file = file or write_examples(folder, images=False)
    made = training_files.task(file, keep_text_mib=0, **changes)
    made.model.eval()  # without dropout
    return made


def gradients(made, batch, seed=1, weight=1.0):
    made.model.zero_grad(set_to_none=True)
    losses = made.backward(batch, weight, seed)
    return losses, {n: p.grad for n, p in made.model.named_parameters() if p.grad is not None}


def same(one, two, **within):
    assert one.keys() == two.keys()
    for name, value in one.items():
        torch.testing.assert_close(value, two[name], **within, msg=lambda m, n=name: f"{n}: {m}")


def vectors(queries=3, documents=5, dim=4, seed=0):
    make = torch.Generator().manual_seed(seed)
    q = torch.nn.functional.normalize(torch.randn(queries, 3, dim, generator=make), dim=-1)
    d = torch.nn.functional.normalize(torch.randn(documents, 6, dim, generator=make), dim=-1)
    mask = torch.rand(documents, 6, 1, generator=make) > 0.3
    mask[:, 0] = True
    return q, d, mask


def by_hand(q, d, mask):
    return [
        [
            sum(
                max(float(a @ b) for b, keep in zip(two, m.flatten(), strict=True) if keep)
                for a in one
            )
            for two, m in zip(d, mask, strict=True)
        ]
        for one in q
    ]


def test_the_contrastive_loss_is_the_one_of_its_definition():
    q, d, mask = vectors()
    model, _ = parity.load("preflmr")
    scores = interaction(model, q, d, mask)
    table = by_hand(q, d, mask)
    torch.testing.assert_close(scores, torch.tensor(table))
    labels, out, t = [0, 2, 4], [[1, 3], [], [4]], 0.7
    expected = 0.0
    for row, label, left_out in zip(table, labels, out, strict=True):
        kept = [j for j in range(5) if j == label or j not in left_out]
        expected -= math.log(math.exp(row[label] / t) / sum(math.exp(row[j] / t) for j in kept))
    excluded = torch.tensor([[j in left_out for j in range(5)] for left_out in out])
    loss = contrastive(scores, torch.tensor(labels), excluded, t)
    assert math.isclose(float(loss), expected / 3, rel_tol=1e-5)


def test_vectors_that_count_nothing_change_neither_scores_nor_gradients():
    q, d, mask = vectors()
    model, _ = parity.load("preflmr")
    longer_q = torch.cat([q[:, :1], torch.zeros(3, 2, 4), q[:, 1:]], 1).requires_grad_()
    longer_d = torch.cat([d[:, :2], torch.rand(5, 3, 4), d[:, 2:]], 1).requires_grad_()
    hidden = torch.cat([mask[:, :2], torch.zeros(5, 3, 1).bool(), mask[:, 2:]], 1)
    q.requires_grad_()
    d.requires_grad_()
    plain, found = interaction(model, q, d, mask), interaction(model, longer_q, longer_d, hidden)
    torch.testing.assert_close(found, plain)
    for scores in (plain, found):
        contrastive(scores, torch.tensor([0, 2, 4])).backward()
    torch.testing.assert_close(longer_q.grad[:, [0, 3, 4]], q.grad)
    torch.testing.assert_close(longer_d.grad[:, [0, 1, 5, 6, 7, 8]], d.grad)
    assert not longer_q.grad[:, 1:3].any()
    assert not longer_d.grad[:, 2:5].any()


@given(st.integers(0, 10_000), st.floats(0.2, 5))
def test_the_distilled_loss_is_the_divergence_of_those_with_scores(seed, t):
    make = torch.Generator().manual_seed(seed)
    scores, teacher = torch.randn(2, 4, 3, generator=make)
    teacher[torch.rand(4, 3, generator=make) < 0.3] = torch.nan
    expected, count = 0.0, 0
    for own, wanted in zip(scores.tolist(), teacher.tolist(), strict=True):
        known = [(s, r) for s, r in zip(own, wanted, strict=True) if not math.isnan(r)]
        if len(known) < 2:
            continue
        count += 1
        p = [math.exp(r / t) for _, r in known]
        s = [math.exp(s / 0.5) for s, _ in known]
        expected += sum(
            a / sum(p) * math.log((a / sum(p)) / (b / sum(s))) for a, b in zip(p, s, strict=True)
        )
    total, counted = distilled(scores, teacher, 0.5, t)
    assert counted == count
    assert math.isclose(float(total), expected, rel_tol=1e-4, abs_tol=1e-5)


def test_queries_without_scores_of_a_reranker_have_no_gradient():
    scores = torch.randn(2, 3, requires_grad=True)
    teacher = torch.tensor([[1.0, torch.nan, torch.nan], [torch.nan, 2.0, 3.0]])
    total, _ = distilled(scores, teacher)
    total.backward()
    assert not scores.grad[0].any()
    assert not scores.grad[1, 0]
    assert scores.grad[1, 1]


@pytest.mark.parametrize("name", parity.NAMES)
def test_without_exceptions_it_is_the_original_loss_and_its_gradient(name):
    model, _ = parity.load(name)
    given_ = parity.forward_inputs(name)
    out = model(**given_)
    expected = torch.autograd.grad(out.loss, list(model.parameters()), allow_unused=True)
    q = model.query(**parity.query_inputs(name), pixel_values=parity.pixels(name))
    d = model.doc(**parity.doc_inputs(name))
    scores = interaction(
        model, q.late_interaction_output, d.late_interaction_output, d.context_mask
    )
    each = len(d.context_mask) // len(scores)
    loss = contrastive(scores, each * torch.arange(len(scores)))
    truth = parity.golden(name)["in_batch_loss"]
    torch.testing.assert_close(loss, truth, rtol=0, atol=1e-5)
    found = torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)
    for mine, theirs in zip(found, expected, strict=True):
        assert (mine is None) == (theirs is None)
        if mine is not None:
            torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)


def test_loss_and_gradients_are_those_of_sentence_transformers():
    """Of its cached loss, on the same vectors as both of its passes."""
    losses = pytest.importorskip("sentence_transformers.multi_vector_encoder.losses")
    q, d, mask = vectors(queries=4, documents=12)

    class Same(torch.nn.Module):
        """Returns what it is given; the vectors are the parameters."""

        def forward(self, features, task):
            return {
                "token_embeddings": features["vectors"] * 1.0,
                "attention_mask": features["attention_mask"],
            }

    def given_():
        return q.clone().requires_grad_(), d.clone().requires_grad_()

    theirs_q, theirs_d = given_()
    columns = [{"vectors": theirs_q, "attention_mask": torch.ones(4, 3)}] + [
        {"vectors": theirs_d[i::3], "attention_mask": mask[i::3, :, 0].float()} for i in range(3)
    ]
    cached = losses.CachedMultiVectorMultipleNegativesRankingLoss(
        Same(), mini_batch_size=2, scale=1 / 0.7
    )
    loss = cached(columns)
    loss.backward()
    mine_q, mine_d = given_()
    model, _ = parity.load("preflmr")
    # Theirs are ordered by column: all first documents, then all second ones.
    order = [3 * i + j for i in range(4) for j in range(3)]
    scores = interaction(model, mine_q, mine_d[order], mask[order])
    mine = contrastive(scores, 3 * torch.arange(4), None, 0.7)
    mine.backward()
    torch.testing.assert_close(mine, loss)
    torch.testing.assert_close(mine_q.grad, theirs_q.grad)
    torch.testing.assert_close(mine_d.grad, theirs_d.grad)


@pytest.mark.parametrize(
    ("chunk", "images"),
    slow_but([(4, True), (3, False)], [(n, seen) for n in (1, 3, 4) for seen in (False, True)]),
)
def test_in_chunks_loss_and_gradients_are_the_same(tmp_path, chunk, images):
    file = write_examples(tmp_path, images=images, negatives=1)
    batch = [(0, i) for i in (3, 1, 7, 0, 5, 2)]
    loss = {"negatives": 2, "distillation": 0.3}
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    for i, row in enumerate(rows[:5]):
        row["positive"]["score"] = 1.0 + i
        row["negatives"][0]["score"] = 0.5 - i
    write_rows(file, rows)
    whole, expected = gradients(task(tmp_path, file, loss=loss), batch)
    parts, found = gradients(task(tmp_path, file, loss={**loss, "chunk_size": chunk}), batch)
    assert set(whole) == {"loss", "contrastive", "distilled"}
    assert whole["distilled"] > 0
    for name, value in whole.items():
        assert math.isclose(parts[name], value, rel_tol=1e-5)
    same(found, expected, rtol=1e-3, atol=1e-5)


def test_in_chunks_dropout_is_the_same_in_both_passes(tmp_path):
    """If it were not, the gradients would not belong to the loss: a small step would miss it."""
    made = task(tmp_path, loss={"chunk_size": 2, "negatives": 1})
    batch = [(0, i) for i in range(6)]
    made.model.train()
    names = ("query_text_encoder_linear.weight", "context_text_encoder_linear.weight")
    losses, found = gradients(made, batch, seed=5)
    step = 1e-3
    parameters = dict(made.model.named_parameters())
    change = sum(float(found[n].square().sum()) for n in names) ** 0.5
    with torch.no_grad():
        for name in names:
            parameters[name] -= step * found[name] / change
    after, _ = gradients(made, batch, seed=5)
    assert math.isclose(after["loss"] - losses["loss"], -step * change, rel_tol=0.1)
    other, _ = gradients(made, batch, seed=6)
    assert other["loss"] != after["loss"]


def test_the_loss_of_a_batch_is_the_one_of_its_definition(tmp_path):
    made = task(tmp_path, loss={"negatives": 2})
    batch = [(0, i) for i in range(4)]
    rows = made.chosen(batch, seed=3)
    with torch.no_grad():
        q, d, mask = made._encoded(rows)
    table = by_hand(q, d, mask)
    ids = [i for row in rows for i in row.passages]
    expected = 0.0
    for i, (row, scores) in enumerate(zip(rows, table, strict=True)):
        # The same passage may be in the batch several times: it is no negative of its question.
        kept = [3 * i] + [j for j in range(12) if ids[j] != row.passages[0]]
        expected -= math.log(math.exp(scores[3 * i]) / sum(math.exp(scores[j]) for j in kept))
    losses, _ = gradients(made, batch, seed=3)
    assert math.isclose(losses["loss"], expected / 4, rel_tol=1e-4)


def test_without_in_batch_negatives_only_a_questions_own_passages_count(tmp_path):
    made = task(tmp_path, loss={"negatives": 2, "in_batch": False, "temperature": 2.0})
    batch = [(0, i) for i in range(3)]
    rows = made.chosen(batch, seed=3)
    with torch.no_grad():
        table = by_hand(*made._encoded(rows))
    expected = -sum(
        math.log(math.exp(s[3 * i] / 2) / sum(math.exp(x / 2) for x in s[3 * i : 3 * i + 3]))
        for i, s in enumerate(table)
    )
    losses, _ = gradients(made, batch, seed=3)
    assert math.isclose(losses["loss"], expected / 3, rel_tol=1e-4)


def test_the_weight_scales_gradients_alone(tmp_path):
    made = task(tmp_path)
    batch = [(0, i) for i in range(4)]
    one, expected = gradients(made, batch)
    half, found = gradients(made, batch, weight=0.5)
    assert one == half
    same({n: 2 * g for n, g in found.items()}, expected)
