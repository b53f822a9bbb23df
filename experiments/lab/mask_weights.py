"""What do a few bits cost, by how the entries of mask codes are weighted before they are rounded?

    python experiments/lab/mask_weights.py runs/experiments/comparison_sunnybrook/ours/seed-0

It takes a finished run and asks for its answers in float32. Their codes are then weighted, mixed by a key of each site,
rounded and brought back, as server and site would do it. Nothing is trained: what weights do to training is not in it.
"""

from __future__ import annotations

import hashlib
import sys
from itertools import product
from typing import Any

from restored import RestoredRun, command
from torch import Tensor

from ppcmi_fast import SiteKey, ops
from ppcmi_fast.codec import LinearMaskCodec

BASE = "not rounded"
# Of blocks' means, and of all other frequencies.
WEIGHTS = ((1.0, 1.0), (0.7, 1.25), (0.7, 1.75), (0.7, 2.5), (0.35, 1.75), (1.0, 1.75))
Answers = dict[str, Tensor]


def exact_answers(run: RestoredRun) -> dict[str, Answers]:
    """Class scores of every site's images, by part, as the server answers where nothing is rounded on the way back."""
    for participant in run.federation.participants:
        participant.site.bits_down = 32
        run.federation.channel.send(participant.site.register(run.config.size, run.config.size))
    return {part: run.answers(part) for part in ("val", "test")}


def rounded(
    scores: Tensor, codec: LinearMaskCodec, weights: tuple[float, float], bits: int, name: str
) -> Tensor:
    """Class scores [N, classes, H, W] from their weighted code of `bits` an entry, under a key of the site's name."""
    # Scores come from a code, and none of it is lost in them.
    code = codec.project(2 * scores[:, 1:] - 1)
    weight = codec.entry_weights(*weights)[codec.block]
    key = SiteKey(hashlib.sha256(name.encode()).digest(), "lab")
    params = key.klt_params("mask", codec.block, code.shape[1], "haar")
    codes = ops.klt_quantize(code * weight, params, bits=bits, normalize=False)
    return codec.decode({codec.block: ops.klt_dequantize(codes, params, bits=bits) / weight})


def measure(run: RestoredRun) -> dict[str, Any]:
    """Dice of the exact answers, and of those rounded under each weighting."""
    codec = run.federation.participants[0].learner.mask_codec
    assert isinstance(codec, LinearMaskCodec)
    exact = exact_answers(run)
    answers = {BASE: exact}
    for bits, weights in product((4, 2), WEIGHTS):
        answers[f"{bits} bits, {weights[0]:g} and {weights[1]:g}"] = {
            part: {name: rounded(scores, codec, weights, bits, name) for name, scores in found.items()}
            for part, found in exact.items()
        }
    compared = run.compared({method: parts["test"] for method, parts in answers.items()}, BASE)
    return {
        method: entry | {"validation": run.validation(answers[method]["val"]), "seconds": 0.0}
        for method, entry in compared.items()
    }


if __name__ == "__main__":
    sys.exit(command(measure, __file__, __doc__))
