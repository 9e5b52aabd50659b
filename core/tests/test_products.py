"""Products of large matrices by threads of our own."""

from __future__ import annotations

import threading
import warnings
from typing import Any

import numpy as np
import pytest
from threadpoolctl import ThreadpoolController

from polyattn_core.products import matmul
from polyattn_core.simd import threads


@pytest.fixture
def rng() -> Any:
    return np.random.default_rng(0)


def blas_threads() -> list[int]:
    return [x["num_threads"] for x in ThreadpoolController().select(user_api="blas").info()]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(
    ("lead", "inner", "width"),
    [((1,), 1, 1), ((63,), 65, 33), ((0,), 8, 8), ((2, 1001), 65, 130), ((3, 1, 512), 256, 63)],
)
def test_the_product_is_that_of_numpy(
    rng: Any, dtype: Any, lead: tuple[int, ...], inner: int, width: int
) -> None:
    left = rng.standard_normal((*lead, inner)).astype(dtype)
    right = rng.standard_normal((inner, width)).astype(dtype)
    found = matmul(left, right)
    assert found.dtype == dtype
    assert found.shape == (*lead, width)
    expected = left.astype(np.float64) @ right.astype(np.float64)
    np.testing.assert_allclose(found, expected, rtol=0, atol=inner * np.finfo(dtype).eps * 4)


@pytest.mark.parametrize(
    ("left", "right"),
    [
        ((3, 1, 300, 64), (2, 64, 130)),
        ((2000, 64), (3, 64, 33)),
        ((2, 8, 63, 65), (2, 8, 65, 64)),
        ((0, 4, 64), (0, 64, 64)),
        ((1, 5000, 64), (1, 64, 32)),
    ],
)
def test_many_matrices(rng: Any, left: tuple[int, ...], right: tuple[int, ...]) -> None:
    a, b = rng.standard_normal(left), rng.standard_normal(right)
    expected = np.einsum("...nk,...km->...nm", a, b)
    found = matmul(a, b)
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, atol=1e-12)


def test_transposed_and_strided(rng: Any) -> None:
    left, right = rng.standard_normal((512, 1000)), rng.standard_normal((300, 1024))
    np.testing.assert_allclose(matmul(left.T, right[:, ::2].T[:512, :]), left.T @ right[:, ::2].T)


def test_what_is_not_finite_stays_in_its_row_and_warns_nobody(rng: Any) -> None:
    left, right = rng.standard_normal((1000, 128)), rng.standard_normal((128, 128))
    left[7] = np.inf
    left[900, 3] = np.nan
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = matmul(left, right)
    bad = ~np.isfinite(found).all(axis=1)
    np.testing.assert_array_equal(np.flatnonzero(bad), [7, 900])


def test_blas_has_its_threads_back(rng: Any) -> None:
    before = blas_threads()
    left, right = rng.standard_normal((2048, 256)), rng.standard_normal((256, 256))
    expected = left @ right
    found: list[bool] = []

    def work() -> None:
        found.extend(bool(np.allclose(matmul(left, right), expected)) for _ in range(10))

    running = [threading.Thread(target=work) for _ in range(4)]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join()
    assert found == [True] * 40
    assert blas_threads() == before


def test_an_error_gives_them_back_too(rng: Any) -> None:
    before = blas_threads()
    with pytest.raises(ValueError, match="mismatch"):
        matmul(rng.standard_normal((2048, 256)), rng.standard_normal((255, 256)))
    assert blas_threads() == before


def test_the_limit(rng: Any, monkeypatch: Any) -> None:
    used: list[int] = []
    run = threads.run

    def counted(kernel: Any, arguments: Any, tasks: int, workers: int) -> None:
        used.append(workers)
        run(kernel, arguments, tasks, workers)

    monkeypatch.setattr(threads, "run", counted)
    monkeypatch.setattr(threads, "limit", lambda: 3)
    left, right = rng.standard_normal((2048, 256)), rng.standard_normal((256, 256))
    for limit in (None, 2, 1):
        matmul(left, right, limit)
    assert used == [3, 2]
