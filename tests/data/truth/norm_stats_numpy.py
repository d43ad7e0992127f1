"""What numpy makes of the shipped dataset's numbers: python3 norm_stats_numpy.py DATASET > norm_stats_numpy.json

ALOHA's joints in π₀'s space (openpi's adapt_to_pi), actions of five-step chunks relative to their first state, grippers
absolute, the last action repeated past the end of an episode. Needs numpy and pyarrow.
"""

import glob
import json
import sys

import numpy as np
import pyarrow.parquet as pq

H = 5
FLIP = np.array([1, -1, -1, 1, 1, 1, 1] * 2, np.float64)
ARM = np.array([True] * 6 + [False] + [True] * 6 + [False])


def state_to_pi(x):
    x = FLIP * x
    metres = x[:, [6, 13]] * (0.05800 - 0.01844) + 0.01844
    sine = (0.022**2 + metres**2 - 0.036**2) / (2 * 0.022 * metres)
    x[:, [6, 13]] = (np.arcsin(np.clip(sine, -1, 1)) - 0.5476) / (1.6296 - 0.5476)
    return x


def action_to_pi(x):
    x = FLIP * x
    x[:, [6, 13]] = x[:, [6, 13]] * (1.4910 + 0.6213) - 0.6213 - 0.5476
    return x


states, chunks = [], []
for path in sorted(glob.glob(f"{sys.argv[1]}/data/*/*.parquet")):
    table = pq.read_table(path, columns=["observation.state", "action"])
    state, action = (np.array(table[key].to_pylist(), np.float32).astype(np.float64) for key in table.column_names)
    state, action = state_to_pi(state), action_to_pi(action)
    index = np.minimum(np.arange(len(action))[:, None] + np.arange(H), len(action) - 1)
    states.append(state)
    chunks.append(action[index] - np.where(ARM, state, 0)[:, None])


def stats(x):
    quantile = lambda q: np.quantile(x, q, axis=0, method="inverted_cdf").tolist()
    return {
        "mean": x.mean(0).tolist(),
        "std": x.std(0).tolist(),
        "q01": quantile(0.01),
        "q99": quantile(0.99),
        "range": np.ptp(x, axis=0).tolist(),
    }


json.dump({"state": stats(np.concatenate(states)), "actions": stats(np.concatenate(chunks).reshape(-1, 14))}, sys.stdout)
print()
