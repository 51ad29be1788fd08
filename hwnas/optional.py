"""The only way an optional package is imported."""

from __future__ import annotations

import importlib
from types import ModuleType

from hwnas.errors import MissingExtra, broken


def require(module: str, extra: str) -> ModuleType:
    """Import `module` or say which extra brings it.

    Args:
        module: Dotted module name, e.g. ``"onnxruntime"``.
        extra: The extra of this package that installs it, e.g. ``"cpu"``.

    Raises:
        MissingExtra: If the module is not installed.
        BrokenPackage: If it is and its import fails, in whichever way: that is not something an extra would mend.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as e:
        if e.name is None or e.name.partition(".")[0] != module.partition(".")[0]:
            raise broken(module, e) from e
        raise MissingExtra(f"{module} is not installed; run: pip install 'hwnas[{extra}]'") from e
    except MemoryError:  # nothing is wrong with the package
        raise
    except Exception as e:  # a library that is not there, symbols of another release, a stack that must be executable
        raise broken(module, e) from e
