"""Recipes: what a user writes, and the papers' runs as YAML.  `load("progressive-8b")`."""

from megatron_growth.recipes.loading import load, loads, names, path_of
from megatron_growth.recipes.schema import Recipe, Stage

__all__ = ["Recipe", "Stage", "load", "loads", "names", "path_of"]
