"""A vision transformer of a few hundred weights, with its card, made from nothing; skips without transformers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

CARD: dict[str, Any] = {
    "image_processor_type": "ViTImageProcessor", "do_resize": True, "do_rescale": True, "do_normalize": True,
    "size": {"height": 16, "width": 16}, "resample": 2, "rescale_factor": 1 / 255, "image_mean": [0.5, 0.25, 0.75],
    "image_std": [0.5, 0.25, 0.5],
}  # fmt: skip


def tiny_vit(folder: Path, **card: Any) -> Path:
    """Saved in ``folder`` as a model of the Hugging Face hub is."""
    pytest.importorskip("transformers", reason="transformers is not installed: pip install 'metarun[nlp]'")
    from transformers import ViTConfig, ViTModel

    shape = {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 12}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = ViTConfig(image_size=16, patch_size=8, initializer_range=0.5, **shape)
        ViTModel(config, add_pooling_layer=False).save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps({**CARD, **card}))
    return folder
