"""The demonstrations of week 12, on two real ranks: what the lesson says they show, they show."""

import pytest
import torch

from course_utils import two_ranks
from course_utils.torchrun import RanksFailed


@pytest.fixture(scope="module")
def found():
    """What both ranks found in all demonstrations; one start for all tests."""
    return two_ranks.start(*two_ranks.DEMONSTRATIONS)


def test_without_set_epoch_every_epoch_has_the_order_of_the_first(found):
    for rank, result in enumerate(found):
        orders = result["no set_epoch"]["orders"]
        assert orders == orders[:1] * two_ranks.EPOCHS
        assert result["set_epoch"]["orders"][0] == orders[0] != result["set_epoch"]["orders"][1]
        permutation = torch.randperm(10, generator=torch.Generator().manual_seed(two_ranks.SEED + 1))
        assert result["set_epoch"]["orders"][1] == permutation[rank::2].tolist()
        assert result["no set_epoch"]["losses"][-1] < 0.01 * result["no set_epoch"]["losses"][0]


def test_without_a_sampler_each_rank_takes_all_rows(found):
    for result in found:
        assert all(sorted(order) == list(range(10)) for order in result["no sampler"]["orders"])
    assert found[0]["no sampler"]["orders"] != found[1]["no sampler"]["orders"]


def test_weights_and_buffers_of_rank_0_are_sent_to_all(found):
    (before_0, after_0), (before_1, after_1) = (result["weight"] for result in found)
    assert before_0 != before_1 and after_0 == after_1 == before_0
    means = [result["running mean"] for result in found]
    assert means[1]["after a forward"] - means[0]["after a forward"] == pytest.approx(1, abs=0.1)
    assert means[1]["as the next one begins"] == means[0]["after a forward"]


def test_the_average_is_the_large_batch_for_equal_shards_and_after_the_repair(found):
    for result in found:
        assert result["4 + 4"]["difference"] < 1e-6 and result["6 + 2, repaired"]["difference"] < 1e-6
        assert result["6 + 2"]["difference"] > 0.3 * result["largest entry"]
        assert result["6 + 2"]["same on all ranks"] and not result["4 + 4 through .module"]["same on all ranks"]


def test_the_forward_decides_whether_gradients_are_averaged(found):
    assert found[0]["synchronized"] == {
        "forward and backward inside": False,
        "only forward inside": False,
        "only backward inside": True,
    }
    assert found[0]["accumulated"] < 1e-6


def test_unused_and_frozen_parameters_raise(found):
    assert found[0]["unused parameters"].startswith("step 2: RuntimeError: Expected to have finished reduction")
    assert found[0]["find_unused_parameters"] == "two steps done"
    assert "not needed when a module doesn't have any parameter that requires a gradient" in found[0]["all frozen"]


def test_calls_in_another_order_are_mixed_up_and_a_call_alone_gives_up(found):
    assert [(result["loss"], result["accuracy"]) for result in found] == [(2.5, 2.5)] * 2
    assert found[0]["all_reduce"].startswith("gave up: ") and found[1]["all_reduce"] == "did not call it"


def test_an_unknown_demonstration_is_refused_before_anything_starts():
    with pytest.raises(ValueError, match="no demonstration 'gradient'; there are sampling, gradients, order, links"):
        two_ranks.start("gradient")


def test_links_are_measured(found):
    measured, _ = found
    assert [size for size, _ in measured["messages"]] == list(two_ranks.SIZES)
    assert all(seconds > 0 for _, seconds in measured["messages"])
    assert measured["gradient bytes"] == 4 * 4 * (512 * 512 + 512) and measured["alone"] > 0


def test_a_demonstration_that_cannot_be_done_in_time_is_ended():
    with pytest.raises(RanksFailed, match=r"not done after 0\.5 seconds"):
        two_ranks.start("links", seconds=0.5)
