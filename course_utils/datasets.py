"""Data that ships with the course, as tensors."""

from __future__ import annotations

import csv
from functools import cache
from pathlib import Path

import numpy as np
import torch

FOLDER = Path(__file__).parent / "data"
SIDE = 8  # pixels of a digit along one side
WHITE = 16  # the largest pixel value in the file
SPECIES = ("Adelie", "Chinstrap", "Gentoo")  # in the order of the labels
MEASURES = ("bill_length_mm", "bill_depth_mm", "flipper_length_mm", "body_mass_g")  # in the order of the columns


def digits(device: str | torch.device = "cpu") -> tuple[torch.Tensor, torch.Tensor]:
    """Handwritten digits: 1,797 images (1797, 1, 8, 8), float32 in 0..1, and labels (1797,), int64 in 0..9.

    The order is that of the file. Both tensors are new on every call, so they may be changed.
    Source and license: course_utils/data/README.md.
    """
    table = _digits_table()
    images = torch.tensor(table[:, :-1], dtype=torch.float32).reshape(-1, 1, SIDE, SIDE) / WHITE
    labels = torch.tensor(table[:, -1], dtype=torch.int64)
    return images.to(device), labels.to(device)


def digits_split(
    device: str | torch.device = "cpu", held_out: float = 0.2, seed: int = 0
) -> tuple[tuple[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]:
    """The digits as ((images, labels) to train on, (images, labels) held out), both in shuffled order.

    Of every class the same share is held out, rounded to whole images: the first of each class in the shuffled order.
    The first images left to train on are therefore of few classes, so shuffle again before taking a slice of them.
    The same seed gives the same split on every device. Raises ValueError unless 0 < held_out < 1.
    """
    if not 0 < held_out < 1:
        raise ValueError(f"held_out is a share between 0 and 1, not {held_out}.")
    images, labels = digits()
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    is_held_out = torch.zeros(len(labels), dtype=torch.bool)
    for label in labels.unique():
        places = order[labels[order] == label]
        is_held_out[places[: round(held_out * len(places))]] = True
    parts = order[~is_held_out[order]], order[is_held_out[order]]
    train, rest = ((images[part].to(device), labels[part].to(device)) for part in parts)
    return train, rest


def penguins(device: str | torch.device = "cpu", missing: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
    """Penguins of three species: four measures (342, 4), float32, and the species (342,), int64 in 0..2.

    Columns are those of `MEASURES`, in mm and g, not scaled; labels are places in `SPECIES`. The order is that of the
    file, which is sorted by species. missing: also the two birds that were never measured, as rows of nan (344 rows).
    Both tensors are new on every call, so they may be changed. Source and license: course_utils/data/README.md.
    """
    rows = _penguin_rows()
    measures = torch.tensor([row[:-1] for row in rows], dtype=torch.float32)
    species = torch.tensor([row[-1] for row in rows], dtype=torch.int64)
    if not missing:
        complete = ~measures.isnan().any(dim=1)
        measures, species = measures[complete], species[complete]
    return measures.to(device), species.to(device)


@cache
def _penguin_rows() -> list[tuple[float, ...]]:
    """For each line of the file its measures, nan where there is none, and the number of its species."""
    with open(FOLDER / "penguins.csv", encoding="utf-8", newline="") as file:
        return [
            (
                *(float("nan" if line[name] == "NA" else line[name]) for name in MEASURES),
                SPECIES.index(line["species"]),
            )
            for line in csv.DictReader(file)
        ]


@cache
def _digits_table() -> np.ndarray:
    """The file as it is: a row of 64 pixels in 0..16 and a label for each image."""
    return np.loadtxt(FOLDER / "digits.csv", delimiter=",", dtype=np.uint8)
