"""The layer, the two mechanisms, and a training run."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import softmax

from polyattn_core.errors import ArgumentError, ConfigError, ShapeError
from polyattn_info_bottleneck import IBConfig, InformationBottleneck, TemperatureAnnealing
from polyattn_info_bottleneck.metrics import ib_kl


def entropy(p):
    return -(p * np.log(p)).sum(-1)


def test_annealing():
    layer = InformationBottleneck(IBConfig(beta=0.4, z_dim=3, anneal_steps=10))
    assert [layer.beta_at(s) for s in (0, 5, 10, 99, None)] == [0, 0.2, 0.4, 0.4, 0.4]
    mean, log_var = np.ones((5, 3)), np.zeros((5, 3))
    assert layer.compute_kl_loss(mean, log_var) == pytest.approx(0.4 * 1.5)
    assert layer.compute_kl_loss(mean, log_var, step=5) == pytest.approx(0.2 * 1.5)
    assert InformationBottleneck(IBConfig(beta=0.4)).beta_at(0) == 0.4
    for bad in (-1, 0.5, True):
        with pytest.raises(ArgumentError, match="step"):
            layer.beta_at(bad)


def test_gradients_of_the_layer(rng):
    layer = InformationBottleneck(IBConfig(beta=0.7, z_dim=3, anneal_steps=10))
    mean, log_var = rng.standard_normal((2, 4, 3))
    by_mean, by_log_var = layer.kl_loss_gradient(mean, log_var, step=3)
    way, step = rng.standard_normal((2, 4, 3)), 1e-6
    difference = (
        layer.compute_kl_loss(mean + step * way[0], log_var + step * way[1], step=3)
        - layer.compute_kl_loss(mean - step * way[0], log_var - step * way[1], step=3)
    ) / (2 * step)
    assert (by_mean * way[0] + by_log_var * way[1]).sum() == pytest.approx(difference, rel=1e-6)


def test_samples_of_the_layer(rng):
    layer = InformationBottleneck(IBConfig(z_dim=2))
    mean, log_var = np.array([[1.0, 2.0]]), np.array([[0.0, np.log(4)]])
    np.testing.assert_allclose(layer.sample(mean, log_var, [1.0, -1.0]), [[2, 0]])
    drawn = layer.sample(mean, log_var, np.random.default_rng(3))
    again = layer.sample(mean, log_var, np.random.default_rng(3))
    np.testing.assert_array_equal(drawn, again)
    with pytest.raises(ArgumentError, match="z_dim=2"):
        layer.sample(np.zeros(3), np.zeros(3), 0.0)


def objective(r, p, u, beta):
    return (r * np.log(r / p)).sum(-1) + beta * (r * np.log(r / u)).sum(-1)


@pytest.mark.parametrize("beta", [0.0, 0.1, 1.0, 10.0])
def test_compressed_weights_minimise_the_objective(rng, beta):
    layer = InformationBottleneck(IBConfig(beta=beta))
    p = softmax(rng.standard_normal((6, 9)), axis=-1)
    u = softmax(rng.standard_normal(9))
    for prior, name in ((np.full(9, 1 / 9), "uniform"), (u, u)):
        r, price = layer.compress_attention_weights(p, prior=name)
        best = objective(r, p, prior, beta)
        assert price == pytest.approx(beta * (r * np.log(r / prior)).sum(-1).mean())
        for _ in range(20):
            other = softmax(np.log(r) + 0.1 * rng.standard_normal(r.shape), axis=-1)
            assert (objective(other, p, prior, beta) >= best - 1e-12).all()
    if beta == 0:
        np.testing.assert_allclose(r, p)


def test_beta_temperature_and_annealing_act(rng):
    p = softmax(3 * rng.standard_normal((6, 9)), axis=-1)

    def spread(beta=0.5, temperature=1.0, **options):
        layer = InformationBottleneck(IBConfig(beta=beta, anneal_steps=10))
        return entropy(layer.compress_attention_weights(p, temperature, **options)[0]).mean()

    assert spread(0.0) < spread(0.5) < spread(5.0)
    assert spread(temperature=0.5) < spread() < spread(temperature=2.0)
    assert spread(step=0) < spread(step=5) < spread(step=10)
    assert spread(step=0) == pytest.approx(entropy(p).mean())
    with pytest.raises(ArgumentError, match="temperature"):
        spread(temperature=0)
    with pytest.raises(ArgumentError, match="prior"):
        spread(prior="flat")


def test_the_marginal_prior_lowers_the_objective_of_rate_and_distortion(rng):
    layer = InformationBottleneck(IBConfig(beta=0.8))
    p = softmax(2 * rng.standard_normal((12, 9)), axis=-1)
    values = []
    for iterations in (1, 2, 4, 8, 200):
        r, price = layer.compress_attention_weights(p, prior="marginal", iterations=iterations)
        values.append(objective(r, p, r.mean(0), 0.8).mean())
    assert (np.diff(values) < 1e-12).all()
    assert price == pytest.approx(0.8 * (r * np.log(r / r.mean(0))).sum(-1).mean(), abs=1e-6)
    with pytest.raises(ArgumentError, match="marginal"):
        layer.compress_attention_weights(p[0], prior="marginal")
    zero = np.array([[0.0, 0.4, 0.6], [0.0, 0.5, 0.5]])
    assert (layer.compress_attention_weights(zero, prior="marginal")[0][:, 0] == 0).all()


@pytest.mark.parametrize("beta", [0.0, 0.5, 4.0])
def test_compressed_attention_is_that_of_the_weights(create, rng, beta):
    query, key = rng.standard_normal((2, 2, 8, 4)), rng.standard_normal((2, 2, 7, 4))
    mechanism = create("ib-compressed", dim=8, heads=2, beta=beta, iterations=5)
    found = mechanism.attend(query, key, np.broadcast_to(np.eye(7), (2, 2, 7, 7)))
    plain = softmax(query @ key.swapaxes(-1, -2) / 2, axis=-1)
    layer = InformationBottleneck(IBConfig(beta=beta))
    expected, _ = layer.compress_attention_weights(plain, prior="marginal", iterations=5)
    np.testing.assert_allclose(found, expected, rtol=1e-8)


def test_information_falls_with_beta(create, rng):
    x = rng.standard_normal((1, 1, 20, 4))
    kept = [
        create("ib-compressed", dim=4, beta=b, iterations=8, scale=2.0).mutual_information(x, x)[
            0, 0
        ]
        for b in (0.0, 0.3, 1.0, 5.0)
    ]
    assert (np.diff(kept) < 0).all()
    plain = softmax(2 * x[0, 0] @ x[0, 0].T, axis=-1)
    assert kept[0] == pytest.approx(entropy(plain.mean(0)) - entropy(plain).mean())


@pytest.mark.oracle
@pytest.mark.parametrize("kv_heads", [1, 2])
def test_compressed_gradients_of_torch(create, rng, kv_heads):
    torch = pytest.importorskip("torch", reason="torch is not installed: make oracles")
    query = rng.standard_normal((2, 2, 5, 3))
    key, value = rng.standard_normal((2, 2, kv_heads, 6, 3))
    bias, incoming = rng.standard_normal((2, 5, 6)), rng.standard_normal((2, 2, 5, 3))
    mechanism = create("ib-compressed", dim=6, heads=2, kv_heads=kv_heads, beta=0.8, iterations=3)
    output, pull = mechanism.attend_vjp(query, key, value, bias=bias)
    q, k, v, b = (torch.tensor(x, requires_grad=True) for x in (query, key, value, bias))
    wide_k, wide_v = (x.expand(2, 2, 6, 3) for x in (k, v))
    s = q @ wide_k.mT / 3**0.5 + b
    r = torch.softmax(s / 1.8, -1)
    for _ in range(3):
        r = torch.softmax((s + 0.8 * r.mean(-2, keepdim=True).log()) / 1.8, -1)
    theirs = r @ wide_v
    theirs.backward(torch.tensor(incoming))
    np.testing.assert_allclose(output, theirs.detach().numpy())
    found = pull(incoming)
    for ours, tensor in ((found.query, q), (found.key, k), (found.value, v), (found.bias, b)):
        np.testing.assert_allclose(ours, tensor.grad.numpy(), rtol=1e-7, atol=1e-10)


@pytest.mark.oracle
def test_vib_gradients_of_torch(create, rng):
    torch = pytest.importorskip("torch", reason="torch is not installed: make oracles")
    query, key, value = rng.standard_normal((3, 2, 1, 5, 4))
    vib = create("vib", dim=4, z_dim=3, beta=0.2, anneal_steps=10)
    vib.parameters.update({n: rng.standard_normal(a.shape) for n, a in vib.parameters.items()})
    noise = vib.draw_noise(key, np.random.default_rng(2))
    output, pull = vib.attend_vjp(query, key, value, noise=noise)
    incoming = rng.standard_normal(output.shape)
    loss, by_key, by_parameters = vib.kl_vjp(key, step=5)
    q, k, v = (torch.tensor(x, requires_grad=True) for x in (query, key, value))
    w = {n: torch.tensor(np.array(a), requires_grad=True) for n, a in vib.parameters.items()}

    def affine(x, name):
        return x @ w[f"encoder.{name}.weight"].T + w[f"encoder.{name}.bias"]

    normal = torch.distributions.Normal(affine(k, "mean"), (affine(k, "log_var") / 2).exp())
    code = normal.mean + normal.stddev * torch.tensor(noise)
    theirs = torch.softmax(affine(q, "mean") @ code.mT / 3**0.5, -1) @ v
    unit = torch.distributions.Normal(torch.zeros(()).double(), torch.ones(()).double())
    price = 0.1 * torch.distributions.kl_divergence(normal, unit).sum(-1).mean()
    (theirs * torch.tensor(incoming)).sum().add(price).backward()
    np.testing.assert_allclose(output, theirs.detach().numpy())
    assert loss == pytest.approx(price.item())
    found = pull(incoming)
    np.testing.assert_allclose(found.query, q.grad, rtol=1e-7)
    np.testing.assert_allclose(found.key + by_key, k.grad, rtol=1e-7)
    np.testing.assert_allclose(found.value, v.grad, rtol=1e-7)
    for name, tensor in w.items():
        ours = found.parameters[name] + by_parameters[name]
        np.testing.assert_allclose(ours, tensor.grad, rtol=1e-7, atol=1e-10)


def test_noise(create, rng):
    vib = create("vib", dim=8, heads=2, z_dim=3)
    key = rng.standard_normal((2, 2, 6, 4))
    noise = vib.draw_noise(key, np.random.default_rng(0))
    assert noise.shape == (2, 2, 6, 3)
    plain, noisy = vib.attend(key, key, key), vib.attend(key, key, key, noise=noise)
    assert abs(plain - noisy).max() > 1e-3
    np.testing.assert_array_equal(noisy, vib.attend(key, key, key, noise=noise))
    for bad in (noise[..., :2], noise[:, :, :5]):
        with pytest.raises(ShapeError, match="noise"):
            vib.attend(key, key, key, noise=bad)
    with pytest.raises(ArgumentError, match="rng"):
        vib.draw_noise(key, 0)


def test_training_lowers_the_loss_and_the_price(create):
    """Keys carry a class in 2 of 8 coordinates: codes learn it, and drop the other 6."""
    rng = np.random.default_rng(0)
    vib = create("vib", dim=8, z_dim=2, beta=0.02, anneal_steps=50)
    vib.initialise(1)
    means = np.zeros((4, 8))
    means[:, :2] = [[2, 2], [2, -2], [-2, 2], [-2, -2]]
    history = []
    for step in range(250):
        labels = np.arange(32) % 4
        key = (means[labels] + 0.7 * rng.standard_normal((32, 8)))[None, None]
        query = (means[labels] + 0.7 * rng.standard_normal((32, 8)))[None, None]
        value = np.eye(4)[labels][None, None]
        noise = vib.draw_noise(key, rng)
        output, pull = vib.attend_vjp(query, key, value, noise=noise)
        hit = np.maximum(output[0, 0, np.arange(32), labels], 1e-9)
        incoming = np.zeros_like(output)
        incoming[0, 0, np.arange(32), labels] = -1 / hit / 32
        price, _, of_price = vib.kl_vjp(key, step)
        of_task = pull(incoming).parameters
        history.append(-np.log(hit).mean() + price)
        vib.parameters.update(
            {n: a - 0.1 * (of_task[n] + of_price[n]) for n, a in vib.parameters.items()}
        )
    assert np.mean(history[-20:]) < 0.6 * np.mean(history[:20])
    weight = abs(vib.parameters["encoder.mean.weight"])
    assert weight[:, :2].mean() > 3 * weight[:, 2:].mean()


@pytest.mark.parametrize("kind", ["linear", "exponential", "cosine"])
def test_temperatures(kind):
    schedule = TemperatureAnnealing(start=4.0, end=1.0, steps=10, kind=kind)
    values = [schedule.at(s) for s in range(12)]
    assert (values[0], values[10], values[11]) == pytest.approx((4, 1, 1))
    assert (np.diff(values[:11]) < 0).all()
    middle = {"linear": 2.5, "exponential": 2.0, "cosine": 2.5}[kind]
    assert values[5] == pytest.approx(middle)
    if kind == "cosine":
        assert values[1] > 3.9


def test_refused_options(create):
    for options in ({"causal": True}, {"position": "t5"}):
        with pytest.raises(ConfigError, match=next(iter(options))):
            create("ib-compressed", dim=4, **options)


def test_metric(rng):
    x = rng.standard_normal((2, 3, 4000, 5))
    assert 0 <= ib_kl(x, x, x) < 0.01
    assert ib_kl(x, 3 * x, x) == pytest.approx((9 - 1 - np.log(9)) / 2, rel=0.05)
    assert ib_kl(x, x + 1, x) == pytest.approx(0.5, rel=0.05)
    assert ib_kl(x, np.ones_like(x), x) > 1
    standard = (x - x.mean(axis=-2, keepdims=True)) / x.std(axis=-2, keepdims=True)
    assert ib_kl(x, standard, x) == 0
    assert np.isnan(ib_kl(x, np.full_like(x, np.nan), x))
    permuted = x[..., rng.permutation(4000), :]
    assert ib_kl(x, permuted, x) == pytest.approx(ib_kl(x, x, x))
