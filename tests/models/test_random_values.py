"""Loading a trained model skips the random initialization of its tower, and changes nothing else."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

import osm
from osm.models.random_values import trained_model, weights_follow


def test_values_are_skipped_only_for_trained_models() -> None:
    state = torch.get_rng_state()
    with weights_follow():
        nn.Linear(3, 3)
    assert not torch.equal(torch.get_rng_state(), state)
    state = torch.get_rng_state()
    with trained_model(), weights_follow():
        nn.Linear(3, 3)
    assert torch.equal(torch.get_rng_state(), state)
    nn.Linear(3, 3)
    assert not torch.equal(torch.get_rng_state(), state)


def test_a_loaded_model_has_every_weight_of_its_files(tmp_path: Path) -> None:
    """Also if the memory that it gets is full of NaN."""
    model, _ = osm.create_model_and_transforms("osm_nano")
    model.save_pretrained(tmp_path)
    expected = {name: value.clone() for name, value in model.state_dict().items()}
    torch.use_deterministic_algorithms(True)  # uninitialized memory is filled with NaN
    try:
        loaded, _, _ = osm.load_model(tmp_path)
    finally:
        torch.use_deterministic_algorithms(False)
    found = loaded.state_dict()
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(found[name], value), name
