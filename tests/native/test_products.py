"""Products of the compiled kernels against torch: any rows, any shape, wide and narrow."""

import pytest
import torch

from xattn.models.narrow import NarrowMatrix
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
    )
    for rows in ROWS:
        x = random(rows, inputs, seed=rows)
        y = torch.full((rows, outputs), float("nan"))
        kernels.product(matrix, x.data_ptr(), rows, y.data_ptr(), 0, 0, 2)
        want = x.double() @ weight_OI.double().T
        want += 0.0 if bias_O is None else bias_O
        torch.testing.assert_close(y.double(), want, atol=1e-3, rtol=1e-4)


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
def test_a_row_that_holds_no_number_shows_and_harms_no_other(kernels, inputs, nothing):
    matrix = NarrowMatrix.of(random(40, inputs))
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
