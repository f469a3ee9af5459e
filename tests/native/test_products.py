"""Products of the compiled kernels against torch: any rows, any shape, wide and narrow."""

import pytest
import torch

from xattn.errors import UsageError
from xattn.models.narrow import NarrowMatrix
from xattn.models.nibbles import NibbleMatrix
from xattn.native import library, structs

ROWS = [1, 2, 3, 4, 5, 6, 7, 8, 9, 15, 16, 17, 31, 48, 64, 191, 192, 300]
SHAPES = [(64, 64), (512, 96), (64, 4), (68, 131), (19, 7), (3, 1), (192, 257), (2048, 80)]
"""Inputs and outputs: whole vectors, panels and tiles, and what is left of each."""


def random(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def kernels():
    found = library()
    if found is None:
        pytest.skip("no compiler here")
    return found


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("biased", [True, False])
def test_wide_products_are_torchs(kernels, shape, biased):
    inputs, outputs = shape
    weight_OI, bias_O = random(outputs, inputs), random(outputs, seed=1) if biased else None
    matrix = structs.Matrix(
        weights=weight_OI.data_ptr(),
        bias=None if bias_O is None else bias_O.data_ptr(),
        input=inputs,
        output=outputs,
        bits=32,
    )
    for rows in ROWS:
        x = random(rows, inputs, seed=rows)
        want = x.double() @ weight_OI.double().T
        want += 0.0 if bias_O is None else bias_O
        torch.testing.assert_close(kernels.product(matrix, x).double(), want, atol=1e-3, rtol=1e-4)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("careful", [True, False])
def test_narrow_products_are_torchs(kernels, shape, careful):
    inputs, outputs = shape
    matrix = NarrowMatrix.of(random(outputs, inputs), careful=careful)
    bias_O = random(outputs, seed=1)
    for rows in ROWS:
        x = random(rows, inputs, seed=rows)
        x[rows // 2] *= 1000.0
        torch.testing.assert_close(
            matrix.product(x, bias_O), matrix._product(x, bias_O), atol=1e-3, rtol=1e-3
        )


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_products_with_four_bits_are_torchs(kernels, shape):
    inputs, outputs = shape
    matrix = NibbleMatrix.of(random(outputs, inputs))
    bias_O = random(outputs, seed=1)
    for rows in ROWS:
        x = random(rows, inputs, seed=rows)
        x[rows // 2] *= 1000.0
        found, want = matrix.product(x, bias_O), matrix._product(x, bias_O)
        torch.testing.assert_close(want, x @ matrix.wide().T + bias_O, atol=1e-2, rtol=1e-4)
        off = (found - want).abs().amax(dim=-1) / x.abs().amax(dim=-1)
        # 15 bits of each input: what all of them may be off by together, against weights of 1.
        assert off.max() < 3e-4 * inputs**0.5


@pytest.mark.parametrize(("inputs", "outputs"), [(96, 48), (33, 17), (7, 1)])
def test_four_bits_are_the_nearest_of_sixteen_steps(inputs, outputs):
    weight = random(outputs, inputs)
    weight[0] = 0.25  # no step at all
    wide = NibbleMatrix.of(weight).wide()
    for start in range(0, inputs, 32):
        exact, found = weight[:, start : start + 32], wide[:, start : start + 32]
        step = (exact.amax(dim=1) - exact.amin(dim=1)) / 15
        assert ((found - exact).abs() <= 0.52 * step[:, None] + 1e-3).all()
        assert all(len(row.unique()) <= 16 for row in found)
    assert torch.equal(wide[0], weight[0])


@pytest.mark.parametrize(("scale", "named"), [(1e-8, r"\d\.\d+e-08"), (1e5, r"\d\.\d+e\+05")])
def test_weights_that_float16_cannot_hold_are_refused(scale, named):
    with pytest.raises(UsageError, match=rf"weight is {named}: 'int4' is for 4e-06 to 65504"):
        NibbleMatrix.of(random(4, 32) * scale)
    assert not NibbleMatrix.of(torch.zeros(4, 32)).wide().any()


@pytest.mark.parametrize("least", [1e-31, 1e-38, 1e-42])
def test_rows_of_next_to_nothing_are_none(kernels, least):
    x = torch.full((1, 64), least)
    for matrix in (NarrowMatrix.of(random(40, 64)), NibbleMatrix.of(random(40, 64))):
        assert matrix.product(x, None).abs().max() <= 64 * least
        assert matrix._product(x, None).abs().max() <= 64 * 4 * least


@pytest.mark.parametrize("careful", [True, False])
@pytest.mark.parametrize("wanted", [[131], [7, 0, 130, 16, 900], range(0, 1000, 3)], ids=len)
def test_some_outputs_of_a_narrow_product_are_those_among_all(careful, wanted):
    matrix = NarrowMatrix.of(random(1000, 68), careful=careful)
    bias_O, ids = random(1000, seed=1), torch.tensor(wanted)
    for rows in (1, 5, 17):
        x = random(rows, 68, seed=rows)
        assert torch.equal(matrix.product_of(x, bias_O, ids), matrix.product(x, bias_O)[:, ids])


@pytest.mark.parametrize("inputs", [64, 61])
@pytest.mark.parametrize("nothing", [float("nan"), float("inf")])
@pytest.mark.parametrize("kind", [NarrowMatrix, NibbleMatrix])
def test_a_row_that_holds_no_number_shows_and_harms_no_other(kernels, inputs, nothing, kind):
    matrix = kind.of(random(40, inputs))
    x = random(20, inputs, seed=3)
    spoiled = x.clone()
    spoiled[7, inputs - 1] = nothing
    found, want = matrix.product(spoiled, None), matrix.product(x, None)
    assert not found[7].isfinite().any()
    others = torch.arange(20) != 7
    assert torch.equal(found[others], want[others])


def test_careful_products_keep_what_stands_beside_an_outlier():
    x, weight = random(1, 512), random(64, 512, seed=1)
    x[0, 5] = 3000.0
    weight[:, 5] = 0.0
    want = x @ weight.T
    plain, careful = (
        (matrix.product(x, None) - want).abs().max() / want.abs().max()
        for matrix in (NarrowMatrix.of(weight, careful=how) for how in (False, True))
    )
    assert careful < 0.03
    assert plain > 0.5
