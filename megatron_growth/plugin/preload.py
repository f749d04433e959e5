"""The parts that a plugged training imports when it comes to need them, imported once for ranks that are forked."""

from __future__ import annotations

from megatron_growth.backend.processes import without_collection


def import_parts() -> None:
    """Call it after `backend.preload.import_megatron`: some parts take Megatron's functions as they find them."""
    with without_collection():
        import megatron_growth.backend.attention
        import megatron_growth.backend.layer_spec
        import megatron_growth.backend.norm
        import megatron_growth.checkpoint.architecture
        import megatron_growth.checkpoint.grow_on_load
        import megatron_growth.checkpoint.plan
        import megatron_growth.checkpoint.vocabulary
        import megatron_growth.exchange.source
        import megatron_growth.methods.parts.optimizer_tensors
        import megatron_growth.plugin.active
        import megatron_growth.plugin.anew
        import megatron_growth.plugin.datasets
        import megatron_growth.plugin.events
        import megatron_growth.plugin.growing
        import megatron_growth.plugin.layers
        import megatron_growth.plugin.loading
        import megatron_growth.plugin.memory
        import megatron_growth.plugin.reshardable
        import megatron_growth.plugin.scheduler  # noqa: F401
