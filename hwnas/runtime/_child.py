"""Run a module of hwnas in a process of its own: `python _child.py ROOT MODULE ARGUMENTS`, by this file's path.

A process that is started with ``-m`` looks for modules in the working folder first, and one that is told of hwnas by
PYTHONPATH looks beside hwnas first: a ``statistics.py`` or an old backport there would come before Python's own. Here
Python's own modules come first, then what the parent looks in, in its order, and the working folder and the neighbours
of hwnas last; hwnas itself is taken from the parent's folder. ``-P`` would do less, and not with Python 3.10.
"""

import json
import os
import runpy
import sys
from importlib.util import module_from_spec, spec_from_file_location

SEARCHED = "HWNAS_PARENT_PATH"  # where the parent looks for modules, a list in JSON

if __name__ == "__main__":
    root, module = sys.argv[1:3]
    library, own = os.path.dirname(os.__file__), os.path.dirname(os.path.abspath(__file__))
    standard = [p for p in sys.path if p in (library, os.path.join(library, "lib-dynload")) or p.endswith(".zip")]
    last = [os.getcwd(), os.path.dirname(root)]
    theirs = json.loads(os.environ.pop(SEARCHED, "[]"))
    others = [p for p in (*theirs, *sys.path) if p and os.path.abspath(p) not in (own, *last)]
    sys.path[:] = dict.fromkeys([*standard, *others, *(p for p in last if p in theirs)])
    spec = spec_from_file_location("hwnas", os.path.join(root, "__init__.py"), submodule_search_locations=[root])
    assert spec is not None
    assert spec.loader is not None
    sys.modules["hwnas"] = module_from_spec(spec)
    spec.loader.exec_module(sys.modules["hwnas"])
    sys.argv[1:] = sys.argv[3:]
    runpy.run_module(module, run_name="__main__", alter_sys=True)
