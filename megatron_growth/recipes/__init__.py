"""Recipes and cluster profiles: what a user writes, and the papers' runs as YAML.  `load("progressive-8b")`."""

from megatron_growth.recipes.cluster import ClusterProfile, cluster_names, load_cluster
from megatron_growth.recipes.loading import load, loads, names, path_of
from megatron_growth.recipes.schema import Recipe, Stage

__all__ = [
    "ClusterProfile",
    "Recipe",
    "Stage",
    "cluster_names",
    "load",
    "load_cluster",
    "loads",
    "names",
    "path_of",
]
