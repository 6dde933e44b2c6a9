"""Tokens, places, samples and losses of a check."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch

from pipeline.evaluation import sae_check as check
from pipeline.models import load_model
from pipeline.saes import load_sae
from schemas.errors import InputError
from schemas.records import Lake
from schemas.run.file import Model
from schemas.values import Document, TokenBatch
from tests.kit import D_MODEL, tiny_lm, write_sae

MODEL = "tests.kit:tiny_lm"
F = 64


def embedding_sae(folder, scale=1.0, **config):
    e = tiny_lm().embed.weight.detach().numpy()[:F]
    norm = (e**2).sum(axis=1)
    arrays = {"W_enc": 2 * e.T, "b_enc": 100 - norm, "W_dec": scale * e / (norm + 100)[:, None]}
    arrays |= {"b_dec": np.zeros(D_MODEL, np.float32)}
    config = {"apply_b_dec_to_input": False, "context_size": 32} | config
    return write_sae(folder, "topk", D_MODEL, F, "embed", k=1, weights=arrays, **config)


def test_losses_are_those_of_the_same_rows_replaced_by_hand(tmp_path):
    subject = subject_of(embedding_sae(tmp_path / "sae", scale=0.5), "embed", "embed")
    ids = np.random.default_rng(1).integers(3, F, (3, 9))
    ids[:, 0] = 0
    counted = (ids != 0).ravel()
    batch = TokenBatch(ids, np.full(3, 9))
    result = check.losses(subject, [check.Piece(batch, counted)], lambda n: None)
    module = tiny_lm().eval()
    x = module.embed.weight[torch.from_numpy(ids)].detach()
    scale = torch.from_numpy(np.where(counted, 0.5, 1.0).reshape(3, 9, 1)).float()
    for given, factor in (
        (result.clean, torch.ones(1)),
        (result.patched, scale),
        (result.zero, 2 * scale - 1),
    ):
        assert given == pytest.approx(loss_by_hand(module, x * factor, ids), rel=1e-5)
    assert result.n == 24


def test_of_zeros_that_do_no_harm_nothing_is_recovered():
    assert check.Losses(4.0, 5.0, 8.0, 1).recovered == 0.75
    assert math.isnan(check.Losses(20.2, 14.5, 9.6, 1).recovered)
    assert math.isnan(check.Losses(4.0, 5.0, 4.0, 1).recovered)


def loss_by_hand(module, x, ids):
    with torch.no_grad():
        for layer in module.layers:
            x = layer(x)
        logits = module.head(x)[:, :-1].flatten(0, 1).double()
    return float(torch.nn.functional.cross_entropy(logits, torch.from_numpy(ids[:, 1:]).flatten()))


def test_a_transcoder_is_put_where_its_target_is(tmp_path):
    folder = embedding_sae(tmp_path / "sae")
    path = folder / "cfg.json"
    config = json.loads(path.read_text())
    config |= {"architecture": "jumprelu_transcoder", "d_out": D_MODEL}
    del config["k"], config["rescale_acts_by_decoder_norm"]
    config["metadata"]["hook_name_out"] = "layers.1"
    write_sae(folder, "jumprelu", D_MODEL, F, "embed")
    path.write_text(json.dumps(config))
    subject = subject_of(folder, "embed", "layers.1")
    ids = np.random.default_rng(2).integers(3, F, (2, 6))
    piece = check.Piece(TokenBatch(ids, np.full(2, 6)), np.arange(12) % 3 != 0)
    at = subject.model.forward(piece.batch)
    y = at["layers.1"].clone()
    rows = torch.from_numpy(np.flatnonzero(piece.counted))
    y[rows] = subject.encoder.decode(subject.encoder.encode(at["embed"][rows]))
    expected = subject.model.losses(piece.batch, {"layers.1": lambda x: y})
    result = check.losses(subject, [piece], lambda n: None)
    assert result.patched == pytest.approx(float(expected.double().mean()), rel=1e-6)
    assert result.patched != pytest.approx(result.clean, rel=1e-3)
    measured = subject.rows(piece)
    assert measured.x.tolist() == at["embed"][rows].tolist()
    assert measured.target.tolist() == at["layers.1"][rows].tolist()


def subject_of(folder, read, target):
    model = load_model(Model(loader="torch_module", path=MODEL), [read, target], "cpu", 1)
    return check.Subject(model, load_sae(str(folder)), check.Place(read, target))


def lake(context_size, bos):
    special = {"special_ids": (0, 1, 2), "special_tokens": "exclude", "label_columns": {}}
    return Lake(
        tokenizer="t", tokenizer_digest="", context_size=context_size, bos_id=bos, separator_id=1, **special
    )


class Lines:
    """A source of texts."""

    def __init__(self, *texts):
        self.texts = texts

    def documents(self):
        return (Document(n, text) for n, text in enumerate(self.texts))


class Spaces:
    """A tokenizer: the number of each word."""

    def encode_batch(self, texts, special_text):
        assert special_text == "literal"
        return [np.array([int(word) for word in text.split()], dtype=np.int32) for text in texts]


def test_tokens_come_from_the_beginnings_of_many_documents():
    texts = [" ".join([str(10 + n)] * 500) for n in range(60)]
    shard = check.token_shard(Lines(*texts), lake(8, 0), Spaces(), 80)
    assert shard.n_contexts == 10
    assert shard.token_ids[:8].tolist() == [0, 10, 10, 1, 11, 11, 1, 12]
    assert shard.counted[:8].tolist() == [False, True, True, False, True, True, False, True]


def test_one_long_document_gives_all_the_tokens():
    shard = check.token_shard(Lines("7 " * 5000), lake(8, None), Spaces(), 800)
    assert shard.n_rows == 800
    assert (shard.token_ids == 7).all()


def test_a_corpus_of_special_tokens_is_refused():
    with pytest.raises(InputError, match="no token that is counted"):
        check.token_shard(Lines("1 2 1"), lake(8, 0), Spaces(), 100)


@pytest.mark.parametrize(
    ("hook", "by", "wanted"),
    [
        ("blocks.9.hook_resid_post", 1, "blocks.10.hook_resid_post"),
        ("blocks.10.hook_resid_pre", -1, "blocks.9.hook_resid_pre"),
        ("model.layers.3.mlp.experts.5", -1, "model.layers.2.mlp.experts.5"),
        ("layers.0", -1, None),
        ("embed", 1, None),
        ("ln2.out", 1, None),
    ],
)
def test_the_hook_of_the_next_layer(hook, by, wanted):
    assert check.shifted(hook, by) == wanted


def test_a_sample_of_pieces_is_evenly_spaced():
    ids = np.zeros((2, 50), dtype=np.int64)
    pieces = [check.Piece(TokenBatch(ids + n, np.full(2, 50)), np.ones(100, bool)) for n in range(10)]
    chosen = check.sample(pieces, 250)
    assert [int(piece.batch.token_ids[0, 0]) for piece in chosen] == [0, 3, 6]
    assert check.sample(pieces, 10**6) == pieces


def test_a_sample_of_counted_tokens_takes_more_pieces_where_few_count():
    counted = np.arange(100) % 4 == 0
    batch = TokenBatch(np.zeros((2, 50), dtype=np.int64), np.full(2, 50))
    result = [check.Piece(batch, counted)] * 10
    assert len(check.sample(result, 100)) == 1
    assert len(check.sample(result, 100, counted=True)) == 4
    assert len(check.sample([check.Piece(batch, counted & False)], 100, counted=True)) == 1


def test_places_whose_vectors_are_of_another_width_are_passed_over(tmp_path):
    subject = subject_of(embedding_sae(tmp_path / "sae"), "layers.1", "layers.1")
    ids = np.random.default_rng(2).integers(3, F, (2, 6))
    piece = check.Piece(TokenBatch(ids, np.full(2, 6)), np.ones(12, bool))
    wide = check.Place("head", "head")
    result = list(check.other_hooks(subject, [piece], wide, poor=False))
    assert [there.name for there in result] == ["hook layers.0", "hook layers.2"]
    with pytest.raises(InputError, match="has vectors of width 512, but the SAE reconstructs 16"):
        subject.rows(piece, check.Place("embed", "head"), also=("embed", "head"))
