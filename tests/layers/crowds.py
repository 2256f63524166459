"""Boxes that coincide and overlap by exactly the thresholds."""

import torch
from hypothesis import strategies as st


@st.composite
def crowds(draw):
    """Boxes on a coarse grid, so that boxes coincide and IoUs equal thresholds; few scores and labels."""
    count = draw(st.integers(0, 40))
    numbers = lambda low, high: st.lists(st.integers(low, high), min_size=count, max_size=count)  # noqa: E731
    x, y = torch.tensor(draw(numbers(-6, 6))), torch.tensor(draw(numbers(-6, 6)))
    width, height = torch.tensor(draw(numbers(0, 9))), torch.tensor(draw(numbers(0, 9)))
    boxes = torch.stack([x, y, x + width, y + height], dim=1).reshape(-1, 4) / 2
    scores = torch.tensor(draw(numbers(0, 5))) / 5
    labels = torch.tensor(draw(numbers(-1, 2)), dtype=torch.int64) * 1000
    return boxes, scores, labels


THRESHOLDS = st.sampled_from([0.0, 0.1, 0.25, 0.3, 1 / 3, 0.5, 0.6, 2 / 3, 0.7, 0.9, 1.0])
