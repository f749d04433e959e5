"""megatron_growth: pre-train a family of language models for the price of its largest member, on NVIDIA Megatron.

In a training script of your own:

    import megatron_growth as growth
    args = parse_and_validate_args(extra_args_provider=growth.add_arguments, ...)
    model_cfg = growth.plug_into(gpt_config_from_args(args), args)
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from megatron_growth.plugin import add_arguments, plug_into, unplug

__all__ = ["add_arguments", "plug_into", "unplug"]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """The plugin's functions, imported when they are first used: `import megatron_growth` itself stays light."""
    if name in __all__:
        import megatron_growth.plugin

        return getattr(megatron_growth.plugin, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
