"""`polyattn run`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

import polyattn as pa

Cli = Callable[..., Any]
rng = np.random.default_rng(0)
QUERY = rng.standard_normal((2, 5, 8), dtype=np.float32)
KEY = rng.standard_normal((2, 7, 8), dtype=np.float32)
VALUE = rng.standard_normal((2, 7, 8), dtype=np.float32)
MASK = rng.random((5, 7)) < 0.7
BIAS = rng.standard_normal((5, 7), dtype=np.float32)


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name, array in {"q": QUERY, "k": KEY, "v": VALUE, "m": MASK, "b": BIAS}.items():
        np.save(f"{name}.npy", array)
    arrays = {"query": QUERY, "key": KEY, "value": VALUE, "mask": MASK, "bias": BIAS}
    np.savez("all.npz", **arrays)
    save_file(arrays, "all.safetensors")
    return tmp_path


def expected(*arrays: Any, name: str = "flash", heads: int = 1, **options: Any) -> Any:
    mask, bias = options.pop("mask", None), options.pop("bias", None)
    return pa.create(name, dim=8, heads=heads, **options)(*arrays, mask=mask, bias=bias)


def archive(file: str) -> dict[str, Any]:
    with np.load(file) as arrays:
        return dict(arrays)


def ran(cli: Cli, *arguments: object, code: int = 0) -> Any:
    result = cli("run", *arguments)
    assert result.code == code, result.err
    return result


def test_npy_files_in_order(cli: Cli) -> None:
    result = ran(cli, "flash", "q.npy", "k.npy", "v.npy", "-o", "o.npy", "--heads", 2)
    np.testing.assert_array_equal(np.load("o.npy"), expected(QUERY, KEY, VALUE, heads=2))
    assert "sparse/flash(dim=8, heads=2)" in result.out
    assert "2 × 5 × 8 float32 → o.npy" in result.out


@pytest.mark.parametrize("file", ["all.npz", "all.safetensors"])
def test_an_archive(file: str, cli: Cli) -> None:
    ran(cli, "flash", file, "--output", "o.npz")
    correct = expected(QUERY, KEY, VALUE, mask=MASK, bias=BIAS)
    np.testing.assert_array_equal(archive("o.npz")["output"], correct)


def test_files_by_role(cli: Cli) -> None:
    files = ("--query", "q.npy", "--key", "k.npy", "--value", "v.npy")
    ran(cli, "flash", *files, "--mask", "m.npy", "--bias", "b.npy")
    correct = expected(QUERY, KEY, VALUE, mask=MASK, bias=BIAS)
    np.testing.assert_array_equal(np.load("output.npy"), correct)


def test_keys_and_values_have_defaults(cli: Cli) -> None:
    ran(cli, "flash", "q.npy")
    np.testing.assert_array_equal(np.load("output.npy"), expected(QUERY, QUERY, QUERY))
    ran(cli, "flash", "q.npy", "--key", "k.npy")
    np.testing.assert_array_equal(np.load("output.npy"), expected(QUERY, KEY, KEY))


def test_a_role_completes_an_archive(cli: Cli) -> None:
    np.savez("part.npz", query=QUERY)
    ran(cli, "flash", "part.npz", "--key", "k.npy")
    np.testing.assert_array_equal(np.load("output.npy"), expected(QUERY, KEY, KEY))


def test_options_are_set_and_checked(cli: Cli) -> None:
    settings = ("--set", "causal=true", "--set", "scale=0.5", "--set", "position.kind=rope")
    ran(cli, "flash", "q.npy", *settings, "--set", "position.base=500")
    options = {"causal": True, "scale": 0.5, "position": {"kind": "rope", "base": 500.0}}
    np.testing.assert_array_equal(np.load("output.npy"), expected(QUERY, QUERY, QUERY, **options))
    result = ran(cli, "flash", "q.npy", "--set", "caus=true", code=1)
    assert "did you mean 'causal'?" in result.err
    result = ran(cli, "flash", "q.npy", "--set", "scale=-1", code=1)
    assert result.err == "Error: scale: got -1; expected greater than 0\n"


def test_text_that_is_not_json_is_an_option_too(cli: Cli) -> None:
    ran(cli, "flash", "q.npy", "--set", "position=alibi", "--heads", 2)
    correct = expected(QUERY, QUERY, QUERY, heads=2, position="alibi")
    np.testing.assert_array_equal(np.load("output.npy"), correct)


@pytest.mark.parametrize(
    ("file", "places"),
    [
        ("o.npz", {"output": "o.npz", "entropy": "o.npz", "log_sum_exp": "o.npz"}),
        (
            "o.npy",
            {"output": "o.npy", "entropy": "o.entropy.npy", "log_sum_exp": "o.log_sum_exp.npy"},
        ),
    ],
)
def test_statistics_are_written(file: str, places: dict[str, str], cli: Cli) -> None:
    done = ran(
        cli, "flash", "q.npy", "-o", file, "--statistics", "entropy, log_sum_exp", "--json"
    ).json
    assert {name: output["file"] for name, output in done["outputs"].items()} == places
    observed = pa.create("flash", dim=8).observe(*[QUERY[:, None]] * 3, "entropy", "log_sum_exp")
    for name in ("entropy", "log_sum_exp"):
        found = np.load(places[name]) if file == "o.npy" else archive(file)[name]
        np.testing.assert_array_equal(found, getattr(observed, name))


def test_statistics_that_are_not_there(cli: Cli) -> None:
    result = ran(cli, "flash", "q.npy", "--statistics", "variance", code=1)
    assert "statistics: got variance; expected weights, log_sum_exp" in result.err
    result = ran(cli, "sigmoid", "q.npy", "--statistics", "log_sum_exp", code=1)
    assert "does not support the statistic 'log_sum_exp'; mechanisms that do: " in result.err


@pytest.mark.parametrize("settings", [(), ("causal=true",), ("causal=true", "position=rope")])
def test_blocks_change_nothing_but_the_blocks(settings: tuple[str, ...], cli: Cli) -> None:
    options = [part for setting in settings for part in ("--set", setting)]
    whole = ran(cli, "flash", "q.npy", "k.npy", *options, "-o", "whole.npy", "--json").json
    assert (whole["blocks"], whole["queries_divided"]) == (1, True)
    blocks = ran(
        cli, "flash", "q.npy", "k.npy", *options, "-o", "o.npy", "--block", 2, "--json"
    ).json
    assert blocks["blocks"] == 6
    np.testing.assert_allclose(np.load("o.npy"), np.load("whole.npy"), rtol=1e-6)


def test_what_is_divided_is_said(cli: Cli) -> None:
    result = ran(cli, "flash", "q.npy", "--block", 3)
    assert "in 4 blocks over leading axes and queries" in result.out
    result = ran(cli, "top-k", "q.npy", "--block", 3)
    assert "in 2 blocks over leading axes; queries are not divided: its rows" in result.out
    assert "in one piece" in ran(cli, "flash", "q.npy").out


def test_learned_arrays_are_loaded(cli: Cli) -> None:
    mechanism = pa.create("multi-head", dim=8, heads=2)
    mechanism.initialise(7)
    mechanism.parameters.save("learned.safetensors")
    result = ran(cli, "multi-head", "q.npy", "--heads", 2, "--parameters", "learned.safetensors")
    np.testing.assert_array_equal(np.load("output.npy"), mechanism(QUERY))
    assert result.err == ""
    result = ran(cli, "multi-head", "q.npy", "--heads", 2)
    assert "has learned arrays, drawn from seed 0 here: see --parameters" in result.err
    result = ran(cli, "multi-head", "q.npy", "--parameters", "nowhere", code=1)
    assert "parameters: got nowhere; expected a file that exists" in result.err


def test_side_inputs(cli: Cli, registered: Callable[..., Any]) -> None:
    gate = pa.SideInput(name="gate", shape="(…, queries, 1)", description="a factor")
    registered("gated", "Gated", capabilities=pa.Capabilities(side_inputs=(gate,)))
    np.save("gate.npy", np.full((2, 5, 1), 2, np.float32))
    ran(cli, "gated", "q.npy", "--side", "gate=gate.npy")
    np.testing.assert_array_equal(np.load("output.npy"), np.repeat(2 * QUERY[:, :1], 5, axis=1))
    np.savez("gated.npz", query=QUERY, gate=np.full((2, 5, 1), 3, np.float32))
    ran(cli, "gated", "gated.npz")
    np.testing.assert_array_equal(np.load("output.npy"), np.repeat(3 * QUERY[:, :1], 5, axis=1))
    result = ran(cli, "gated", "q.npy", code=1)
    assert "needs gate=: a factor" in result.err


def test_a_single_query(cli: Cli) -> None:
    np.savez("one.npz", query=QUERY[0, 0], key=KEY[0], value=VALUE[0])
    ran(cli, "flash", "one.npz", "--statistics", "entropy", "-o", "o.npz")
    found = archive("o.npz")
    np.testing.assert_array_equal(found["output"], expected(QUERY[0, 0], KEY[0], VALUE[0]))
    assert found["entropy"].shape == (1, 1)


def test_json_tells_everything(cli: Cli) -> None:
    done = ran(cli, "flash", "q.npy", "k.npy", "--heads", 2, "--json").json
    assert done["mechanism"] == "sparse/flash"
    assert done["options"]["heads"] == 2
    assert done["inputs"]["key"] == {"shape": [2, 7, 8], "dtype": "float32"}
    output = {"file": "output.npy", "shape": [2, 5, 8], "dtype": "float32"}
    assert done["outputs"] == {"output": output}
    assert done["seconds"] > done["seconds_preparing_kernels"] >= 0


def test_getting_kernels_ready_is_told_apart(cli: Cli, registered: Callable[..., Any]) -> None:
    registered("tripled", "Tripled")
    first = ran(cli, "tripled", "q.npy", "--json").json
    assert first["seconds_preparing_kernels"] > 0
    result = ran(cli, "tripled", "q.npy")
    assert "to get kernels ready" not in result.out  # only once in a process


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ((), "say what to run on"),
        (("q.npy", "k.npy", "v.npy", "m.npy"), "at most 3 files"),
        (("all.npz", "q.npy"), "one .npz or .safetensors file, not 2 files"),
        (("q.npy", "--query", "k.npy"), "query is given twice: q.npy and --query k.npy"),
        (("q.npy", "--set", "causal"), "'causal' is not of the form key=value"),
        (("q.npy", "--set", "position=rope", "--set", "position.base=9"), "position is set to"),
        (("q.npy", "--side", "gate"), "'gate' is not of the form name=file.npy"),
        (("q.npy", "--heads", "0"), "--heads"),
        (("q.npy", "--block", "0"), "--block"),
        (("q.npy", "--blok", "1"), "--blok"),
    ],
)
def test_bad_usage(arguments: tuple[str, ...], text: str, cli: Cli) -> None:
    result = ran(cli, "flash", *arguments, code=2)
    assert text in " ".join(result.err.replace("│", "").split())
    assert result.out == ""


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("none.npy",), "file: got none.npy; expected a file that exists"),
        (("q.csv",), "file: got q.csv; expected a file ending in .npy"),
        (("q.npy", "-o", "o.csv"), "output: got o.csv; expected a file ending in .npy, .npz"),
        (("all.npz", "--key", "k.npy"), "key: got in all.npz and in k.npy; expected one of both"),
        (("other.npz",), "expected an array called query"),
        (("labelled.npz",), "labels: got an array; expected arrays called query, key, value"),
        (("scalar.npz",), "query: got a single number"),
        (("counts.npz",), "query: got int64; expected an array of float16"),
        (("q.npy", "short.npy"), "key: got"),
    ],
)
def test_bad_data(arguments: tuple[str, ...], text: str, cli: Cli) -> None:
    np.savez("other.npz", key=KEY)
    np.savez("labelled.npz", query=QUERY, labels=KEY)
    np.savez("scalar.npz", query=np.float64(1))
    np.savez("counts.npz", query=np.ones((3, 8), int))
    np.save("short.npy", KEY[..., :4])
    result = ran(cli, "flash", *arguments, code=1)
    assert result.err.startswith("Error: ")
    assert text in result.err
    assert result.err.count("\n") == 1
    assert not Path("output.npy").exists()
