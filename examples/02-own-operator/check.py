"""Grow a random model with the installed `mirror` operator and compare its logits with the source's."""

import numpy as np
from megatron_growth.operators import build_map, get
from megatron_growth.shape import ModelShape
from megatron_growth.testing.reference import grow, logits, random_state, relative_difference


def main() -> None:
    for tied in (False, True):
        source = ModelShape(8, 12, layers=2, heads=4, query_groups=2, head_dim=2, vocab=13, tied_embeddings=tied)
        target = source.with_(hidden=16, ffn=20, heads=6)
        growth = build_map(source, target, get("width", "mirror"), get("depth", "stack"))
        old = random_state(source)
        new = grow(old, growth, random_state(target, seed=1, trained=False))
        tokens = np.random.default_rng(0).integers(0, source.vocab, (2, 6))
        difference = relative_difference(logits(new, target, tokens), logits(old, source, tokens))
        print(f"tied embeddings {tied}: logits differ by at most 1e-10: {difference <= 1e-10}")


if __name__ == "__main__":
    main()
