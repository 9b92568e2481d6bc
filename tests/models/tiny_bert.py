"""A BERT of a few hundred weights, with its tokenizer, made from nothing; skips, loudly, without transformers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

WORDS = ["book", "a", "flight", "to", "rome", "weather", "is", "in", "my", "card", "blocked", "block", "text", "about"]


def tiny_bert(folder: Path, layers: int = 2) -> Path:
    """Saved in ``folder`` as a model of the Hugging Face hub is."""
    pytest.importorskip("transformers", reason="transformers is not installed: pip install 'metarun[nlp]'")
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    vocabulary = {word: i for i, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]"
    ).save_pretrained(folder)
    shape = {"hidden_size": 8, "num_hidden_layers": layers, "num_attention_heads": 2, "intermediate_size": 12}
    config = BertConfig(vocab_size=len(vocabulary), max_position_embeddings=40, initializer_range=0.5, **shape)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        BertModel(config, add_pooling_layer=False).save_pretrained(folder)  # a pooler is drawn when it is loaded
    return folder
