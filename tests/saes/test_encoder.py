"""What an encoder gives equals SAELens' own classes, for every architecture and every way to cut the rows."""

from __future__ import annotations

import threading
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.saes import choose_block, load_sae
from pipeline.saes.encoding.device import DeviceSelection
from pipeline.saes.encoding.encoder import RuleEncoder
from schemas.errors import InputError, ShardError
from schemas.values import SparseFeatures
from tests.fixtures.store import to_dense
from tests.kit import dense_activations, write_sae
from tests.saes.reference import reference
from tests.saes.selecting import select, select_on_device

ARCHITECTURES = ("standard", "topk", "jumprelu", "gated", "abstopk")
D_MODEL, D_SAE, ROWS = 24, 200, 300


def make_x(rows: int = ROWS, d_model: int = D_MODEL, seed: int = 1) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).standard_normal((rows, d_model)).astype(np.float32))


def assert_equals_reference(folder: Path, x: torch.Tensor, features: SparseFeatures) -> None:
    with torch.no_grad():
        expected = reference(folder).encode(x).numpy()
    result = to_dense(features, expected.shape[1])
    np.testing.assert_array_equal(result != 0, expected != 0)
    np.testing.assert_allclose(result, expected, rtol=1e-5, atol=1e-6)


def assert_well_formed(features: SparseFeatures, d_sae: int = D_SAE) -> None:
    assert (features.indptr.dtype, features.indices.dtype, features.data.dtype) == (
        "int64",
        "int32",
        "float32",
    )
    assert features.indptr[0] == 0
    assert features.indptr[-1] == features.nnz == len(features.data)
    rows = np.repeat(np.arange(len(features.indptr) - 1), np.diff(features.indptr))
    assert (np.diff(rows * d_sae + features.indices) > 0).all()
    assert (features.data != 0).all()


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("apply_b_dec_to_input", [True, False])
@pytest.mark.parametrize("block", [(1, 200), (7, 50), (256, 64), (300, 1), (1024, 1024)])
def test_features_equal_saelens_for_every_block_size(
    tmp_path: Path, architecture: str, apply_b_dec_to_input: bool, block: tuple[int, int]
) -> None:
    folder = write_sae(tmp_path, architecture, D_MODEL, D_SAE, apply_b_dec_to_input=apply_b_dec_to_input)
    features = load_sae(str(folder), block=block).encode(make_x())
    assert_well_formed(features)
    assert features.nnz > ROWS
    assert_equals_reference(folder, make_x(), features)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_features_equal_the_formulas(tmp_path: Path, architecture: str) -> None:
    folder = write_sae(tmp_path, architecture, D_MODEL, D_SAE)
    expected = dense_activations(folder, make_x().numpy())
    result = to_dense(load_sae(str(folder)).encode(make_x()), D_SAE)
    np.testing.assert_array_equal(result != 0, expected != 0)
    np.testing.assert_allclose(result, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("how", ["layer_norm", "constant_norm_rescale"])
def test_normalised_input_and_its_reconstruction_equal_saelens(
    tmp_path: Path, architecture: str, how: str
) -> None:
    folder = write_sae(tmp_path, architecture, D_MODEL, D_SAE, normalize_activations=how)
    x, encoder = 5 * make_x() + 2, load_sae(str(folder), block=(64, 64))
    features = encoder.encode(x)
    assert_equals_reference(folder, x, features)
    sae = reference(folder)
    with torch.no_grad():
        expected = sae.decode(sae.encode(x))
    np.testing.assert_allclose(encoder.decode(features, like=x), expected, rtol=1e-4, atol=1e-4)
    with pytest.raises(InputError, match="like=x"):
        encoder.decode(features)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_reconstruction_and_weights_equal_saelens(tmp_path: Path, architecture: str) -> None:
    encoder = load_sae(str(write_sae(tmp_path, architecture, D_MODEL, D_SAE)))
    features, sae = encoder.encode(make_x()), reference(tmp_path)
    with torch.no_grad():
        expected = sae.decode(sae.encode(make_x()))
    np.testing.assert_allclose(encoder.decode(features), expected, rtol=1e-4, atol=1e-5)
    state = {name: tensor.numpy() for name, tensor in sae.state_dict().items()}
    assert encoder.weights().keys() == state.keys()
    for name, array in encoder.weights().items():
        np.testing.assert_array_equal(array, state[name])


def test_topk_rescaled_by_decoder_norms_equals_saelens(tmp_path: Path) -> None:
    folder = write_sae(tmp_path, "topk", D_MODEL, D_SAE, rescale_acts_by_decoder_norm=True)
    encoder, sae = load_sae(str(folder)), reference(folder)
    features = encoder.encode(make_x())
    assert_equals_reference(folder, make_x(), features)
    with torch.no_grad():
        expected = sae.decode(sae.encode(make_x()))
    np.testing.assert_allclose(encoder.decode(features), expected, rtol=1e-4, atol=1e-5)
    weights = encoder.weights()
    np.testing.assert_allclose(
        to_dense(features, D_SAE) @ weights["W_dec"] + weights["b_dec"], expected, rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_float16_weights_are_computed_in_float32(tmp_path: Path, architecture: str) -> None:
    folder = write_sae(tmp_path, architecture, D_MODEL, D_SAE, weight_dtype="float16")
    features = load_sae(str(folder)).encode(make_x())
    result, expected = to_dense(features, D_SAE), dense_activations(folder, make_x().numpy())
    np.testing.assert_array_equal(result != 0, expected != 0)
    np.testing.assert_allclose(result, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_what_a_gpu_would_run_selects_the_same(tmp_path: Path, architecture: str) -> None:
    encoder = load_sae(str(write_sae(tmp_path, architecture, D_MODEL, D_SAE)))
    product = make_x() @ encoder._weights["W_enc"]
    product = (product if encoder._rule.bias is None else product + encoder._rule.bias).numpy()
    on_device, on_cpu = select_on_device(encoder._rule, product), select(encoder._rule, product)
    for name in ("indptr", "indices", "data"):
        result, expected = getattr(on_device, name), getattr(on_cpu, name)
        assert result.dtype == expected.dtype
        np.testing.assert_array_equal(result, expected)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_steps_of_a_gpu_give_the_same_features_on_the_cpu(tmp_path: Path, architecture: str) -> None:
    encoder = load_sae(str(write_sae(tmp_path, architecture, D_MODEL, D_SAE)), block=(64, D_SAE))
    rest = {"products": encoder._products, "explain": encoder._refuse_not_finite}
    for capacity in (1, 256):  # one candidate a row: the buffers overflow, and the batch is run again
        submit = partial(DeviceSelection(encoder._rule, capacity).submit, **rest)
        for item in [submit(make_x()), submit(make_x())]:
            assert_equals_reference(tmp_path, make_x(), item.result())
    x = make_x()
    x[200, 3] = torch.inf
    with pytest.raises(ShardError, match="row 200"):
        submit(x).result()


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_bfloat16_rounds_the_factors_and_sums_in_float32(tmp_path: Path, architecture: str) -> None:
    folder = write_sae(tmp_path, architecture, D_MODEL, D_SAE)
    encoder, exact = load_sae(str(folder), "cpu", "bfloat16"), load_sae(str(folder))
    stored = exact.weights()
    w_enc = torch.from_numpy(stored["W_enc"]).bfloat16().float()
    x = (make_x() - torch.from_numpy(stored["b_dec"])).bfloat16().float()
    rounded = {"W_enc": w_enc.numpy(), "b_dec": np.zeros_like(stored["b_dec"])}
    again = write_sae(tmp_path / "rounded", architecture, D_MODEL, D_SAE, weights=rounded)
    assert_equals_reference(again, x, encoder.encode(make_x()))
    np.testing.assert_array_equal(encoder.weights()["W_enc"], w_enc)
    assert (encoder.dtype, exact.dtype) == (torch.bfloat16, torch.float32)
    rounded, precise = (to_dense(each.encode(make_x()), D_SAE) for each in (encoder, exact))
    assert not np.array_equal(rounded, precise)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_no_rows_give_no_features(tmp_path: Path, architecture: str) -> None:
    features = load_sae(str(write_sae(tmp_path, architecture, D_MODEL, D_SAE))).encode(
        torch.empty(0, D_MODEL)
    )
    assert features.indptr.tolist() == [0]
    assert features.nnz == 0


def test_rows_do_not_depend_on_the_rows_next_to_them(tmp_path: Path) -> None:
    encoder = load_sae(str(write_sae(tmp_path, "topk", D_MODEL, D_SAE)))
    order = np.random.default_rng(3).permutation(ROWS)
    alone, mixed = to_dense(encoder.encode(make_x()), D_SAE), to_dense(encoder.encode(make_x()[order]), D_SAE)
    np.testing.assert_allclose(mixed, alone[order], rtol=1e-5, atol=1e-6)


def test_threads_share_an_encoder(tmp_path: Path) -> None:
    encoder = load_sae(str(write_sae(tmp_path, "jumprelu", D_MODEL, D_SAE)), block=(16, 64))
    xs = [make_x(seed=seed) for seed in range(4)]
    expected = [encoder.encode(x) for x in xs]
    actual: dict[int, list[SparseFeatures]] = {}

    def work(n: int) -> None:
        actual[n] = [encoder.encode(xs[n]) for _ in range(5)]

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    for n, results in actual.items():
        for result in results:
            np.testing.assert_array_equal(result.indices, expected[n].indices)
            np.testing.assert_array_equal(result.data, expected[n].data)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_row_that_is_not_finite_is_named(tmp_path: Path, value: float) -> None:
    encoder = load_sae(str(write_sae(tmp_path, "standard", D_MODEL, D_SAE, "blocks.3.hook_resid_post")))
    x = make_x()
    x[17, 5] = x[40, 2] = value
    with pytest.raises(ShardError, match=r"blocks\.3\.hook_resid_post has NaN or infinity in row 17"):
        encoder.encode(x)


def test_large_finite_rows_are_no_error(tmp_path: Path) -> None:
    encoder = load_sae(str(write_sae(tmp_path, "standard", D_MODEL, D_SAE)))
    assert np.isfinite(encoder.encode(make_x() * 0 + 1e37).data).all()


def test_another_width_is_refused_with_the_hook_and_both_widths(tmp_path: Path) -> None:
    encoder = load_sae(str(write_sae(tmp_path, "standard", D_MODEL, D_SAE, "blocks.3.hook_resid_post")))
    with pytest.raises(InputError, match=r"blocks\.3\.hook_resid_post has shape \[5, 7\].*\[rows, 24\]"):
        encoder.encode(torch.zeros(5, 7))


def test_lower_precision_x_is_encoded_as_float32(tmp_path: Path) -> None:
    encoder = load_sae(str(write_sae(tmp_path, "standard", D_MODEL, D_SAE)))
    x = make_x().to(torch.bfloat16)
    np.testing.assert_array_equal(encoder.encode(x).data, encoder.encode(x.float()).data)


@pytest.mark.parametrize(("d_sae", "rows"), [(64, 8192), (24576, 8192), (131072, 2048), (10**6, 256)])
def test_a_block_on_a_gpu_keeps_to_a_gibibyte(d_sae: int, rows: int) -> None:
    assert choose_block(d_sae, "cuda") == (rows, d_sae)
    assert rows * d_sae * 4 <= 1 << 30
    assert choose_block(d_sae) == (1024, 1024)


def test_block_and_shape_are_reported(tmp_path: Path) -> None:
    encoder = load_sae(str(write_sae(tmp_path, "standard", D_MODEL, D_SAE, "hook")), block=(33, 7))
    assert isinstance(encoder, RuleEncoder)
    assert (encoder.block, encoder.d_model, encoder.d_sae, encoder.hook_name) == (
        (33, 7),
        D_MODEL,
        D_SAE,
        "hook",
    )
    assert encoder.device == torch.device("cpu")


@pytest.mark.parametrize("how", ["constant_norm_rescale", "layer_norm"])
def test_a_row_whose_product_is_no_number_is_named(tmp_path: Path, how: str) -> None:
    encoder = load_sae(str(write_sae(tmp_path, "topk", D_MODEL, D_SAE, normalize_activations=how)))
    x = make_x()
    x[7] = 0 if how == "constant_norm_rescale" else 3e38
    for submit in (encoder.submit, on_device(encoder)):
        with pytest.raises(ShardError, match=rf"cannot be encoded in row 7: .*\({how}\)"):
            submit(x).result()


def on_device(encoder: Any) -> Any:
    selection = DeviceSelection(encoder._rule)
    return partial(selection.submit, products=encoder._products, explain=encoder._refuse_not_finite)


def test_a_product_that_overflows_is_named(tmp_path: Path) -> None:
    encoder = load_sae(str(write_sae(tmp_path, "standard", D_MODEL, D_SAE)))
    with pytest.raises(ShardError, match="cannot be encoded in row 0: it overflows"):
        encoder.encode(torch.full((2, D_MODEL), 3e38))


def test_buffers_follow_the_batches_of_late_and_not_one_odd_row(tmp_path: Path) -> None:
    encoder = load_sae(str(write_sae(tmp_path, "standard", D_MODEL, D_SAE)))
    submit = on_device(encoder)
    submit(make_x()).result()
    usual = len(submit(make_x()).packed)
    odd = 50 * make_x(1)
    assert submit(odd).result().nnz > 50
    assert len(submit(make_x()).packed) == usual
    assert submit(50 * make_x()).result().nnz > 50 * ROWS
    assert len(submit(make_x()).packed) > usual
    for _ in range(60):
        submit(make_x()).result()
    assert len(submit(make_x()).packed) == usual


def test_an_x_for_decode_must_have_the_rows_of_the_features(tmp_path: Path) -> None:
    encoder = load_sae(str(write_sae(tmp_path, "topk", D_MODEL, D_SAE, normalize_activations="layer_norm")))
    features = encoder.encode(make_x())
    with pytest.raises(InputError, match="like has 1 rows, but the features have 300"):
        encoder.decode(features, like=make_x()[:1])


def test_paths_and_torch_dtypes_are_understood_and_others_named(tmp_path: Path) -> None:
    folder = write_sae(tmp_path, "topk", D_MODEL, D_SAE)
    assert load_sae(folder, "cpu", torch.bfloat16).dtype == torch.bfloat16
    with pytest.raises(InputError, match="encode dtype 'float16' is not possible"):
        load_sae(folder, "cpu", torch.float16)  # type: ignore[arg-type]
    for block in ((0, 5), (5, 0)):
        with pytest.raises(InputError, match="not a cut of a product"):
            load_sae(folder, block=block)


def test_an_sae_of_one_head_takes_a_batch_without_rows(tmp_path: Path) -> None:
    encoder = load_sae(write_sae(tmp_path, "topk", 8, 64, hook_head_index=1))
    assert encoder.encode(torch.empty(0, 16)).indptr.tolist() == [0]
