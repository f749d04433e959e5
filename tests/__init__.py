"""No test needs bitsandbytes, which galore-torch brings along and which PEFT imports with all of torch's compiler."""

import sys

sys.modules["bitsandbytes"] = None  # type: ignore[assignment]  # as if it were not installed
