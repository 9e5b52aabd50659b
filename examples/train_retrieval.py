"""Train attention to find other images of the same digit.

Each image is a sequence of 8 rows of 8 pixels, which are projected, attended to and averaged; the
loss is InfoNCE between images of one digit. Held-out images are then looked up among others: is the
nearest one of the same digit?

python examples/train_retrieval.py [--plot curve.html]
"""

import argparse

import numpy as np
from rich.progress import track
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import polyattn as pa
from polyattn import training

STEPS = 120

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--plot", metavar="FILE", help="write the losses as a chart (.html, .png)")
options = parser.parse_args()

images, labels = load_digits(return_X_y=True)
rows = (images.reshape(-1, 8, 8) / 16 - 0.3).astype(np.float32)
# Where a row is matters: each has its position as a one-hot vector beside its pixels.
rows = np.concatenate((rows, np.broadcast_to(np.eye(8, dtype=np.float32), rows.shape)), axis=-1)
train_x, test_x, train_y, test_y = train_test_split(rows, labels, test_size=0.4, random_state=0)
of_digit = [np.flatnonzero(train_y == digit) for digit in range(10)]

rng = np.random.default_rng(0)
projection = {"projection": rng.normal(0, 0.2, (16, 32)).astype(np.float32)}
attention = pa.AttentionPipeline(32).add_attention(pa.multi_head(32, 4)).add_residual()
attention.initialise(0)


def embed(x):
    return attention.run(x @ projection["projection"]).mean(1)


def found_by_nearest():
    """Share of held-out images whose nearest other one is of their digit."""
    x = embed(test_x)
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    alike = x @ x.T
    np.fill_diagonal(alike, -np.inf)
    return float((test_y[alike.argmax(1)] == test_y).mean())


untrained = found_by_nearest()
loss = training.make("loss", "info-nce")
cooler = training.make("annealing", "cosine", 0.5, 0.1, steps=STEPS)
rate = training.make("schedule", "cosine", 5e-3, steps=STEPS, warm_up=20)
of_attention, of_projection = (
    training.make("optimiser", "adamw", learning_rate=rate) for _ in range(2)
)
losses = []
for step in track(range(STEPS), "training"):
    pairs = np.stack([rng.choice(places, 2, replace=False) for places in of_digit])
    x = train_x[pairs.T.ravel()]  # ten digits, then ten others of the same
    output, pullback = attention.vjp(x @ projection["projection"])
    features = output.mean(1)
    value, gradients = loss(features[:10], features[10:], temperature=cooler(step))
    losses.append(value)
    by_features = np.concatenate((gradients["query"], gradients["positive"]))
    back = pullback(np.broadcast_to(by_features[:, None] / 8, output.shape))
    of_attention.step(attention.parameters, back.parameters)
    by_projection = np.einsum("nri,nrj->ij", x, back.query)
    of_projection.step(projection, {"projection": by_projection})

trained = found_by_nearest()
print(f"nearest is of the same digit: untrained {untrained:.3f}, trained {trained:.3f}")
if options.plot:
    import altair as alt

    points = [{"step": step, "loss": value} for step, value in enumerate(losses)]
    alt.Chart(alt.Data(values=points)).mark_line().encode(x="step:Q", y="loss:Q").save(options.plot)
    print(f"Losses drawn in {options.plot}")
assert trained > untrained + 0.02, (untrained, trained)
