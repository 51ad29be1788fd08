"""Run a module of hwnas in a process of its own: `python _child.py ROOT MODULE ARGUMENTS`, by this file's path.

A process that is started with ``-m`` looks for modules in the working folder first, and one that is told of hwnas by
PYTHONPATH looks beside hwnas first: a ``statistics.py`` or an old backport there would come before Python's own. Here
hwnas is taken from the parent's folder whatever else there is, and what the parent could import and this process could
not comes last. ``-P`` would do only the first of that, and not with Python 3.10.
"""

import json
import os
import runpy
import sys
from importlib.util import module_from_spec, spec_from_file_location

SEARCHED = "HWNAS_PARENT_PATH"  # where the parent looks for modules, a list in JSON

if __name__ == "__main__":
    own = os.path.dirname(os.path.abspath(__file__))
    sys.path[:] = [p for p in sys.path if p and os.path.abspath(p) not in (own, os.getcwd())]
    sys.path += [p for p in json.loads(os.environ.pop(SEARCHED, "[]")) if p not in sys.path]
    root, module = sys.argv[1:3]
    spec = spec_from_file_location("hwnas", os.path.join(root, "__init__.py"), submodule_search_locations=[root])
    assert spec is not None
    assert spec.loader is not None
    sys.modules["hwnas"] = module_from_spec(spec)
    spec.loader.exec_module(sys.modules["hwnas"])
    sys.argv[1:] = sys.argv[3:]
    runpy.run_module(module, run_name="__main__", alter_sys=True)
