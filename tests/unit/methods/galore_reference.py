"""galore-torch 1.0's own AdamW and projector, without the package's imports of bitsandbytes and old transformers."""

import importlib.util
import sys
import types
from importlib.metadata import distribution


def reference_adamw():
    """The class `galore_torch.adamw.AdamW`."""
    if "galore_reference.adamw" not in sys.modules:
        folder = distribution("galore-torch").locate_file("galore_torch")
        package = types.ModuleType("galore_reference")
        package.__path__ = [str(folder)]
        versions = types.ModuleType("transformers.utils.versions")
        versions.require_version = lambda _: None
        with_versions = {"galore_reference": package, "transformers.utils.versions": versions}
        before = {name: sys.modules.get(name) for name in with_versions}
        sys.modules.update(with_versions)
        try:
            for name in ("galore_projector", "adamw"):
                spec = importlib.util.spec_from_file_location(f"galore_reference.{name}", f"{folder}/{name}.py")
                sys.modules[spec.name] = module = importlib.util.module_from_spec(spec)
                spec.loader.exec_module(module)
        finally:
            if before["transformers.utils.versions"] is None:
                del sys.modules["transformers.utils.versions"]
            else:
                sys.modules["transformers.utils.versions"] = before["transformers.utils.versions"]
    return sys.modules["galore_reference.adamw"].AdamW
