"""Import once, for ranks that are forked, the parts that a plugged run imports only when it needs them."""

from __future__ import annotations

from megatron_growth.backend.processes import without_collection


def import_parts() -> None:
    """Call it after `backend.preload.import_megatron`: some parts bind Megatron's functions at import.

    What these import themselves is not listed.
    """
    with without_collection():
        import megatron_growth.backend.attention
        import megatron_growth.backend.norm
        import megatron_growth.checkpoint.grow_on_load
        import megatron_growth.exchange.source
        import megatron_growth.plugin.anew
        import megatron_growth.plugin.datasets
        import megatron_growth.plugin.events
        import megatron_growth.plugin.layers
        import megatron_growth.plugin.loading
        import megatron_growth.plugin.memory
        import megatron_growth.plugin.scheduler  # noqa: F401
