"""The answers of week 04 against independent ones: plain loops over Python floats, or torch's own losses."""

import itertools
import math
from functools import partial

import pytest
import torch
from torch.nn import functional as F

from course_utils.exercise import load_exercise


def reference(name):
    """The course's answer to an exercise, as plain function or class."""
    return load_exercise(name).reference


def normal(*shape, dtype=torch.float32, seed=0):
    """Normal numbers from a seed."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def whole(high, *shape, seed=0):
    """Whole numbers from 0 to high - 1 from a seed."""
    return torch.randint(high, shape, generator=torch.Generator().manual_seed(seed))


def gradient(function, x):
    """The gradient of a scalar function for x."""
    x = x.detach().clone().requires_grad_()
    function(x).backward()
    return x.grad


def log_softmax_of_floats(row):
    """Log-softmax of a list, in double precision, with the usual shift."""
    top = max(row)
    normalizer = math.log(math.fsum(math.exp(value - top) for value in row))
    return [value - top - normalizer for value in row]


def test_aligned_mse_equals_the_mean_over_pairs_in_every_layout():
    """A loop over pairs of Python numbers; refused shapes are all those that are no (N,) or (N, 1)."""
    aligned_mse = reference("aligned_mse")
    for n in (1, 4):
        pred, target = normal(n, seed=1), normal(n, seed=2)
        pairs = zip(pred.tolist(), target.tolist(), strict=True)
        expected = math.fsum((p - t) ** 2 for p, t in pairs) / n
        for p, t in itertools.product((pred, pred[:, None]), (target, target[:, None])):
            found = aligned_mse(p, t)
            assert found.shape == () and found.item() == pytest.approx(expected, rel=1e-5)
        slope = gradient(lambda p, target=target: aligned_mse(p[:, None], target), pred)
        torch.testing.assert_close(slope, 2 * (pred - target) / n)
    shapes = [(), (1,), (4,), (4, 1), (1, 4), (4, 2), (2, 2), (4, 1, 1), (1, 1, 4), (3,), (3, 1)]
    for a, b in itertools.product(shapes, shapes):
        right = all(len(s) == 1 or (len(s) == 2 and s[1] == 1) for s in (a, b)) and a[0] == b[0]
        if right:
            assert aligned_mse(torch.zeros(a), torch.zeros(b)).shape == ()
        else:
            with pytest.raises(ValueError):
                aligned_mse(torch.zeros(a), torch.zeros(b))


def test_stable_log_softmax_equals_torchs_along_every_dimension():
    """Values and gradients against torch.log_softmax, from tame logits to 10,000, with -inf and in three dtypes."""
    stable_log_softmax = reference("stable_log_softmax")
    for dtype, scale in itertools.product((torch.float32, torch.float64), (1.0, 300.0, 1e4)):
        x = scale * normal(3, 4, 5, dtype=dtype).permute(2, 0, 1)
        upstream = normal(5, 3, 4, dtype=dtype, seed=1)
        for dim in (0, 1, 2, -1, -3):
            torch.testing.assert_close(stable_log_softmax(x, dim), x.log_softmax(dim))
            slopes = [
                gradient(lambda x, f=f, dim=dim, upstream=upstream: (upstream * f(x, dim)).sum(), x)
                for f in (stable_log_softmax, torch.log_softmax)
            ]
            torch.testing.assert_close(*slopes)
    x = torch.tensor([[1.0, -math.inf, 2.0], [-math.inf, -math.inf, 5.0]])
    assert torch.equal(stable_log_softmax(x).isneginf(), x.isneginf())
    torch.testing.assert_close(stable_log_softmax(x), x.log_softmax(-1))
    half = (3 * normal(4, 5)).half()
    torch.testing.assert_close(stable_log_softmax(half), half.log_softmax(-1), rtol=1e-2, atol=1e-2)
    assert stable_log_softmax(torch.zeros(0, 3)).shape == (0, 3)


def test_cross_entropy_from_logits_equals_torchs():
    """Values and gradients against F.cross_entropy, for shapes, ignore values, reductions and sizes of logits."""
    mine = reference("cross_entropy_from_logits")
    shapes, ignored = [(6, 3), (2, 3, 3), (2, 4, 5, 3), (1, 3)], (-100, 0, 255)
    for shape, pad, scale in itertools.product(shapes, ignored, (1.0, 1e4)):
        x = scale * normal(*shape, dtype=torch.float64)
        target = whole(shape[1], shape[0], *shape[2:])
        target[..., -1:] = pad
        for reduction in ("none", "sum", "mean"):
            options = {"ignore_index": pad, "reduction": reduction}
            theirs = F.cross_entropy(x, target, **options)
            torch.testing.assert_close(mine(x, target, **options), theirs, equal_nan=True)
        options = {"target": target, "ignore_index": pad, "reduction": "sum"}
        slopes = [gradient(partial(f, **options), x) for f in (mine, F.cross_entropy)]
        torch.testing.assert_close(*slopes)
    nothing = torch.full((2, 3), 7)
    assert mine(normal(2, 4, 3), nothing, 7).isnan()
    assert mine(normal(2, 4, 3), nothing, 7, "sum") == 0


def test_classifier_head_equals_a_loop_over_samples():
    """Every method against loops over Python floats, for the weights that the head starts with."""
    head = reference("ClassifierHead")(3, 4).double()
    x, y = 200 * normal(5, 3, dtype=torch.float64), whole(4, 5)
    rows = [
        [math.fsum(a * b for a, b in zip(s, w, strict=True)) for w in head.linear.weight.tolist()] for s in x.tolist()
    ]
    rows = [[z + b for z, b in zip(row, head.linear.bias.tolist(), strict=True)] for row in rows]
    logs = [log_softmax_of_floats(row) for row in rows]
    loss = -math.fsum(log[label] for log, label in zip(logs, y.tolist(), strict=True)) / 5
    assert head(x).tolist() == [pytest.approx(row) for row in rows]
    assert head.loss(x, y).item() == pytest.approx(loss)
    assert head.predict_proba(x).tolist() == [pytest.approx([math.exp(v) for v in log]) for log in logs]
    assert not head.predict_proba(x).requires_grad
    assert head.predict(x).tolist() == [max(range(4), key=row.__getitem__) for row in rows]


def test_weighted_smoothed_ce_equals_torchs():
    """Values and gradients against F.cross_entropy with weight and label_smoothing."""
    mine = reference("weighted_smoothed_ce")
    for classes, n, eps, scale in itertools.product((2, 5), (1, 6), (0.0, 0.1, 1.0), (1.0, 1e4)):
        x = scale * normal(n, classes, dtype=torch.float64)
        target = whole(classes, n)
        weight = 0.5 + torch.arange(classes, dtype=torch.float64)
        options = {"target": target, "weight": weight, "label_smoothing": eps}
        both = [partial(f, **options) for f in (mine, F.cross_entropy)]
        torch.testing.assert_close(*(f(x) for f in both))
        torch.testing.assert_close(*(gradient(f, x) for f in both))
    silent = torch.tensor([0.0, 1.0])
    assert mine(normal(3, 2), torch.zeros(3, dtype=torch.long), silent).isnan()


def test_bce_from_logits_equals_torchs_and_its_gradient_is_sigmoid_minus_target():
    """Values against torch's loss; the gradient against σ(x) − y computed with Python's math."""
    mine = reference("bce_from_logits")
    places = [-1e4, -200.0, -100.0, -20.0, -1.0, 0.0, 0.5, 17.0, 20.0, 100.0, 200.0, 1e4]
    x = torch.tensor(places, dtype=torch.float64)
    for target in (torch.zeros(12), torch.ones(12), torch.rand(12, generator=torch.Generator().manual_seed(0))):
        for logits in (x, x.float()):
            theirs = F.binary_cross_entropy_with_logits(logits, target.to(logits.dtype))
            torch.testing.assert_close(mine(logits, target), theirs)
            slope = 12 * gradient(lambda x, target=target: mine(x, target), logits)
            exact = [
                (math.exp(min(v, 0)) / (1 + math.exp(-abs(v)))) - y
                for v, y in zip(places, target.tolist(), strict=True)
            ]
            assert slope.tolist() == pytest.approx(exact, abs=1e-6)
    scores, tags = normal(5, 3), whole(2, 5, 3)
    table = 1 + normal(5, 3, seed=1).square()
    for weight in (torch.tensor(4.0), torch.tensor([1.0, 4.0, 10.0]), table, table[:, :1]):
        theirs = F.binary_cross_entropy_with_logits(scores, tags.float(), pos_weight=weight)
        torch.testing.assert_close(mine(scores, tags, weight), theirs)
        torch.testing.assert_close(mine(scores, tags.bool(), weight), theirs)


def test_huber_from_scratch_equals_torchs():
    """Values and gradients against F.huber_loss, for all reductions and errors at, below and beyond delta."""
    mine = reference("huber_from_scratch")
    for delta, reduction in itertools.product((0.25, 0.3, 1.0, 2.0), ("none", "sum", "mean")):
        target = normal(3, 5)
        pred = target + torch.tensor([0.0, 0.1, -delta, delta, -1e4])
        options = {"delta": delta, "reduction": reduction}
        torch.testing.assert_close(mine(pred, target, **options), F.huber_loss(pred, target, **options))
        slopes = [gradient(partial(f, target=target, delta=delta, reduction="sum"), pred) for f in (mine, F.huber_loss)]
        torch.testing.assert_close(*slopes)
    for bad in ({"delta": 0.0}, {"delta": -1.0}, {"reduction": "avg"}):
        with pytest.raises(ValueError):
            mine(torch.zeros(3), torch.zeros(3), **bad)
    with pytest.raises(ValueError):
        mine(torch.zeros(3, 1), torch.zeros(3))


def test_corpus_perplexity_equals_a_loop_over_tokens():
    """A loop over all tokens with Python floats, for batches of several sizes and paddings."""
    corpus_perplexity = reference("corpus_perplexity")
    for pad in (-100, -1, 0):
        batches = []
        for seed, (rows, steps) in enumerate([(2, 3), (1, 9), (4, 5), (3, 1)]):
            target = whole(5, rows, steps, seed=seed)
            target[-1, steps // 2 :] = pad
            batches.append((3 * normal(rows, steps, 5, seed=seed), target))
        tokens = [
            -log_softmax_of_floats(row)[label]
            for logits, target in batches
            for row, label in zip(logits.flatten(0, 1).tolist(), target.flatten().tolist(), strict=True)
            if label != pad
        ]
        expected = math.exp(math.fsum(tokens) / len(tokens))
        assert corpus_perplexity(iter(batches), pad) == pytest.approx(expected, rel=1e-5)
    uniform = [(torch.zeros(2, 7, 50), whole(50, 2, 7))]
    assert corpus_perplexity(uniform) == pytest.approx(50)
    assert math.isnan(corpus_perplexity([]))
    assert math.isnan(corpus_perplexity([(torch.zeros(1, 2, 3), torch.full((1, 2), -100))]))
