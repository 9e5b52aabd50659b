"""Train multi-head attention on handwritten digits with nothing but `vjp`.

Each image is a sequence of 8 rows of 8 pixels. The mean of the attended rows goes through a linear
classifier; all parameters descend the cross-entropy.
"""

import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import polyattn as pa


def softmax(x):
    grown = np.exp(x - x.max(-1, keepdims=True))
    return grown / grown.sum(-1, keepdims=True)


images, labels = load_digits(return_X_y=True)
rows = images.reshape(-1, 8, 8) / 16 - 0.3
# Where a row is matters: give each its position as a one-hot vector beside its pixels.
rows = np.concatenate((rows, np.broadcast_to(np.eye(8), rows.shape)), axis=-1)
train_x, test_x, train_y, test_y = train_test_split(rows, labels, test_size=0.3, random_state=0)

rng = np.random.default_rng(0)
attention = pa.create("multi-head", dim=16, heads=4)
classifier = rng.normal(0, 0.1, (16, 10))


def accuracy(x, y):
    return float((softmax(attention(x).mean(1) @ classifier).argmax(1) == y).mean())


untrained = accuracy(test_x, test_y)
for epoch in range(15):
    order = rng.permutation(len(train_x))
    for start in range(0, len(order), 64):
        batch = order[start : start + 64]
        output, pullback = attention.vjp(train_x[batch])
        features = output.mean(1)
        error = softmax(features @ classifier)
        error[np.arange(len(batch)), train_y[batch]] -= 1
        error /= len(batch)
        through = (error @ classifier.T)[:, None] / 8
        gradients = pullback(np.broadcast_to(through, output.shape))
        classifier -= 2.0 * features.T @ error
        attention.parameters.update(
            {
                name: value - 0.5 * gradients.parameters[name]
                for name, value in attention.parameters.items()
            }
        )
    if epoch % 5 == 4:
        print(f"epoch {epoch + 1:2}: accuracy {accuracy(test_x, test_y):.3f} on held-out digits")

trained = accuracy(test_x, test_y)
print(f"untrained {untrained:.3f}, trained {trained:.3f}")
assert trained > untrained + 0.3
