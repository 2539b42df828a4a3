"""bde (sklearn-contrib-bde) on the airfoil data, for benchmarks/airfoil.py.

It runs by a Python that has bde and prints a line of JSON. Its settings are those of
bde's own benchmark, but for the numbers that it is given.
"""

import importlib.util
import json
import sys
import time


def main(file, settings):
    if importlib.util.find_spec("bde") is None:
        return {"skipped": f"{sys.executable} has no bde: pip install {DISTRIBUTION}"}
    import numpy as np
    from bde import BdeRegressor
    from bde.loss.loss import GaussianNLL
    from sklearn.model_selection import train_test_split
    from sklearn.preprocessing import StandardScaler

    table = np.loadtxt(file, delimiter=",", skiprows=1)
    x, x_test, y, y_test = train_test_split(
        table[:, :-1], table[:, -1:], test_size=0.2, random_state=0
    )
    scales = StandardScaler().fit(x), StandardScaler().fit(y)
    regressor = BdeRegressor(
        n_members=settings["members"],
        hidden_layers=[settings["width"]] * settings["depth"],
        loss=GaussianNLL(),
        epochs=settings["steps"],
        validation_split=0.15,
        lr=1e-3,
        weight_decay=1e-4,
        warmup_steps=settings["warmup"],
        n_samples=settings["samples"],
        n_thinning=max(settings["samples"] // settings["draws"], 1),
        patience=20,
        seed=settings["seed"],
    )
    begin, cpu = time.perf_counter(), time.process_time()
    regressor.fit(scales[0].transform(x), scales[1].transform(y)[:, 0])
    costs = {
        "seconds": time.perf_counter() - begin,
        "CPU seconds": time.process_time() - cpu,
    }
    mean, std = regressor.predict(scales[0].transform(x_test), mean_and_std=True)
    # Its integrator, McLachlan's, evaluates two gradients a step, as ours does.
    steps = settings["steps"] + 2 * (settings["warmup"] + settings["samples"])
    return {
        "mean": np.ravel(mean).tolist(),
        "std": np.ravel(std).tolist(),
        "y": scales[1].transform(y_test)[:, 0].tolist(),
        "gradients": settings["members"] * steps,
        **costs,
    }


DISTRIBUTION = "sklearn-contrib-bde"

if __name__ == "__main__":
    if len(sys.argv) == 3:
        print(json.dumps(main(sys.argv[1], json.loads(sys.argv[2]))))
    else:
        print(f"skipped: {__doc__}")
