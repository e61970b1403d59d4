"""Average the weights of models that came from one training: between two of them, the average has something of both.

    python benchmarks/average_models.py OUT WEIGHT@FILE WEIGHT@FILE ...

After Wortsman et al., "Model soups", arXiv:2203.05482. The networks have to have one shape, and to have begun from one
another: those of different seeds have nothing to do with each other. Shares add up to 1.
"""

import json
import sys
from pathlib import Path

import numpy as np
from safetensors import safe_open
from safetensors.numpy import save_file


def main() -> None:
    """Write OUT."""
    out, *named = sys.argv[1:]
    shares = [(float(share), file) for share, file in (name.split("@") for name in named)]
    if abs(sum(share for share, _ in shares) - 1) > 1e-6:
        raise SystemExit(f"the shares add up to {sum(share for share, _ in shares):g}; allowed: 1")
    total: dict[str, np.ndarray] = {}
    for share, file in shares:
        with safe_open(file, "np") as tensors:
            metadata = dict(tensors.metadata())
            for name in tensors.keys():  # noqa: SIM118 - it is no dict
                total[name] = np.asarray(total.get(name, 0) + share * np.float64(tensors.get_tensor(name)))
    with safe_open(shares[-1][1], "np") as tensors:
        averaged = {name: value.astype(tensors.get_tensor(name).dtype) for name, value in total.items()}
    training = json.loads(metadata["training"])
    for figure in ("validation", "best_step", "seconds"):  # they are not those of the average
        training.pop(figure, None)
    training["average_of"] = {Path(file).name: share for share, file in shares}
    metadata["training"] = json.dumps(training)
    save_file({name: np.ascontiguousarray(value) for name, value in averaged.items()}, out, metadata)
    print(out)


if __name__ == "__main__":
    main()
