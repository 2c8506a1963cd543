"""A two-layer network on handwritten digits, its gradients worked out by hand, in three forms of descent.

    hidden = max(0, x W1 + b1)             one hidden layer of rectified units
    p = softmax(hidden W2 + b2)            a probability for each of the ten digits
    loss = mean of −log p[right digit]

The three forms differ only in how many examples a gradient is averaged over: all of them, one, or 32. Few
updates that see much, or many that see little? Run it and compare.

    python examples/digits_by_hand.py
"""

import numpy as np
from sklearn.datasets import load_digits

from schuss.numpy import SGD, Adam, minibatches


def load_data(seed=0):
    """Return 1437 images to learn from and 360 to validate on: rows of 64 numbers in [0, 1], and digits."""
    images, digits = load_digits(return_X_y=True)
    order = np.random.default_rng(seed).permutation(len(digits))
    images, digits = images[order] / 16, digits[order]
    return images[:1437], digits[:1437], images[1437:], digits[1437:]


def initial_params(hidden=32, seed=0):
    """Return small random weights (He: variance 2 / inputs) and zero biases, in a dict."""
    rng = np.random.default_rng(seed)
    return {
        "W1": rng.normal(0, np.sqrt(2 / 64), (64, hidden)),
        "b1": np.zeros(hidden),
        "W2": rng.normal(0, np.sqrt(2 / hidden), (hidden, 10)),
        "b2": np.zeros(10),
    }


def forward(params, X):
    """Return the hidden layer, (examples, hidden), and the probabilities, (examples, 10)."""
    hidden = np.maximum(0, X @ params["W1"] + params["b1"])
    scores = hidden @ params["W2"] + params["b2"]
    # Only differences of scores matter; without the subtraction a large score would overflow.
    weights = np.exp(scores - scores.max(axis=1, keepdims=True))
    return hidden, weights / weights.sum(axis=1, keepdims=True)


def loss_and_grads(params, X, y):
    """Return the mean loss over the batch, and its gradient by backpropagation, in a dict like `params`."""
    hidden, probabilities = forward(params, X)
    rows = np.arange(len(y))
    loss = -np.log(probabilities[rows, y]).mean()

    # Softmax and logarithm together have a simple derivative: probability minus one for the right digit.
    d_scores = probabilities.copy()
    d_scores[rows, y] -= 1
    d_scores /= len(y)
    # Back through the second layer, then through the units that were not cut off at zero.
    d_hidden = d_scores @ params["W2"].T
    d_hidden[hidden <= 0] = 0
    grads = {
        "W1": X.T @ d_hidden,
        "b1": d_hidden.sum(axis=0),
        "W2": hidden.T @ d_scores,
        "b2": d_scores.sum(axis=0),
    }
    return loss, grads


def accuracy(params, X, y):
    """Return the fraction of digits that were recognised."""
    return np.mean(forward(params, X)[1].argmax(axis=1) == y)


def train(optimizer, X, y, batch_size, epochs):
    """Return the trained weights and the number of updates that were made."""
    params, updates = initial_params(), 0
    batches = minibatches(X, y, batch_size=batch_size, seed=0)
    for _ in range(epochs):
        for X_batch, y_batch in batches:
            _, grads = loss_and_grads(params, X_batch, y_batch)
            optimizer.update(params, grads)  # changes the weights in place
            updates += 1
    return params, updates


# form, batch size, epochs, optimizer, learning rate. A quarter to four times these rates learn too, but
# for one: SGD on the full batch, whose steps at 2.0 are too long for the steepest direction, and it diverges.
FORMS = [
    ("full batch", None, 300, SGD, 0.5),
    ("full batch", None, 300, Adam, 0.01),
    ("one example", 1, 5, SGD, 0.02),
    ("one example", 1, 5, Adam, 0.001),
    ("mini-batches of 32", 32, 20, SGD, 0.2),
    ("mini-batches of 32", 32, 20, Adam, 0.005),
]


def main():
    """Train once for each form of descent and each optimizer, and print what came out."""
    X, y, X_valid, y_valid = load_data()
    print(f"{'form of descent':20}{'optimizer':>10}{'lr':>7}{'epochs':>8}{'updates':>9}{'validation':>12}")
    for form, batch_size, epochs, optimizer, lr in FORMS:
        params, updates = train(optimizer(lr=lr), X, y, batch_size, epochs)
        right = accuracy(params, X_valid, y_valid)
        print(f"{form:20}{optimizer.__name__:>10}{lr:7}{epochs:8}{updates:9}{right:12.1%}")


if __name__ == "__main__":
    main()
