"""The data that ships: that it is the file it claims to be, and what the loaders make of it."""

import hashlib

import pytest
import torch

from course_utils import datasets

SHA256 = {
    "digits.csv": "6ebb3d2fee246a4e99363262ddf8a00a3c41bee6014c373ed9d9216ba7f651b8",
    "penguins.csv": "f204db2c753b0937caac3cb35258562c14f073e4bbc76be24b4c51ce22767a93",
}
PER_CLASS = [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]


@pytest.mark.parametrize("name", SHA256)
def test_the_file_is_the_one_its_readme_names(name):
    assert hashlib.sha256((datasets.FOLDER / name).read_bytes()).hexdigest() == SHA256[name]
    sections = (datasets.FOLDER / "README.md").read_text(encoding="utf-8").split("\n## ")
    (section,) = [section for section in sections if section.startswith(name)]
    assert SHA256[name] in section and "- License: " in section and "- Source: " in section


def test_every_file_that_ships_has_its_hash_tested():
    assert {file.name for file in datasets.FOLDER.glob("*.csv")} == set(SHA256)


def test_digits_are_images_in_the_unit_interval_with_labels():
    images, labels = datasets.digits()
    assert images.shape == (1797, 1, 8, 8) and images.dtype == torch.float32
    assert images.min() == 0 and images.max() == 1
    assert labels.shape == (1797,) and labels.dtype == torch.int64
    assert labels.bincount().tolist() == PER_CLASS


def test_the_first_digit_is_a_zero_with_a_hole():
    images, labels = datasets.digits()
    assert labels[0] == 0
    assert (16 * images[0, 0, 3]).tolist() == [0, 4, 12, 0, 0, 8, 8, 0]


def test_changing_what_was_loaded_changes_no_later_load():
    images, labels = datasets.digits()
    images.zero_()
    labels.zero_()
    again, again_labels = datasets.digits()
    assert again.sum() > 0 and again_labels.sum() > 0


def test_a_split_shares_out_every_image_once():
    (train_x, train_y), (test_x, test_y) = datasets.digits_split()
    assert len(train_x) == len(train_y) == 1438 and len(test_x) == len(test_y) == 359
    rows = torch.cat([torch.cat([x.flatten(1), y[:, None]], 1) for x, y in ((train_x, train_y), (test_x, test_y))])
    images, labels = datasets.digits()
    everything = torch.cat([images.flatten(1), labels[:, None]], 1)
    assert sorted(rows.tolist()) == sorted(everything.tolist())


def test_a_split_takes_the_same_share_of_every_class():
    _, (_, test_y) = datasets.digits_split(held_out=0.25)
    assert test_y.bincount().tolist() == [round(0.25 * count) for count in PER_CLASS]


def test_a_split_depends_on_its_seed_alone():
    torch.manual_seed(1)
    (one, _), _ = datasets.digits_split(seed=3)
    torch.manual_seed(2)
    (same, _), _ = datasets.digits_split(seed=3)
    (other, _), _ = datasets.digits_split(seed=4)
    assert torch.equal(one, same) and not torch.equal(one, other)


def test_a_split_leaves_the_global_random_state_alone():
    before = torch.get_rng_state()
    datasets.digits_split()
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("share", [0.0, 1.0, -0.1])
def test_a_split_refuses_an_impossible_share(share):
    with pytest.raises(ValueError, match="between 0 and 1"):
        datasets.digits_split(held_out=share)


def test_penguins_are_measures_and_species():
    measures, species = datasets.penguins()
    assert measures.shape == (342, 4) and measures.dtype == torch.float32 and measures.isfinite().all()
    assert species.shape == (342,) and species.dtype == torch.int64
    assert species.bincount().tolist() == [151, 68, 123]
    assert measures[0].tolist() == pytest.approx([39.1, 18.7, 181, 3750])
    assert datasets.SPECIES[species[0]] == "Adelie"


def test_the_two_birds_without_measures_come_on_request():
    measures, species = datasets.penguins(missing=True)
    assert measures.shape == (344, 4) and species.bincount().tolist() == [152, 68, 124]
    assert measures.isnan().any(dim=1).nonzero().flatten().tolist() == [3, 271]
    assert torch.equal(measures[~measures.isnan().any(dim=1)], datasets.penguins()[0])


def test_gentoos_are_the_heaviest_with_the_longest_flippers():
    measures, species = datasets.penguins()
    means = torch.stack([measures[species == label].mean(0) for label in range(3)])
    assert means[:, 2:].argmax(0).tolist() == [2, 2]
    assert means[2].tolist() == pytest.approx([47.505, 14.982, 217.187, 5076.016], rel=1e-4)


def test_changing_penguins_changes_no_later_load():
    measures, species = datasets.penguins()
    measures.zero_()
    species.zero_()
    again, again_species = datasets.penguins()
    assert again.sum() > 0 and again_species.sum() > 0
