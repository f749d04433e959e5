"""What a Megatron training script calls: `add_arguments` and `plug_into`, and `unplug` to undo them."""

from megatron_growth.plugin.arguments import PluginOptions, add_arguments
from megatron_growth.plugin.plug import plug_into, unplug

__all__ = ["PluginOptions", "add_arguments", "plug_into", "unplug"]
