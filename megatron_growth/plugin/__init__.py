"""The plugin's two doors into a Megatron training script: `add_arguments` and `plug_into`, and `unplug` to undo it."""

from megatron_growth.plugin.arguments import PluginOptions, add_arguments
from megatron_growth.plugin.plug import plug_into, unplug

__all__ = ["PluginOptions", "add_arguments", "plug_into", "unplug"]
