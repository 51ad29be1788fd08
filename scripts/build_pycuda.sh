#!/usr/bin/env bash
# Builds PyCUDA into .venv on a machine without CUDA: against the headers of NVIDIA's wheel and a driver library that
# does nothing. For tests, which give it a driver of their own; on a box with a GPU, pip install 'hwnas[pycuda]' instead.
# Needs gcc and g++. Does nothing if it is there.
set -euo pipefail

# shellcheck source=scripts/_setup.sh
source "$(dirname "${BASH_SOURCE[0]}")/_setup.sh"
"$python" -c 'import importlib.util as u, sys; sys.exit(u.find_spec("pycuda") is None)' && exit 0

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
_pip nvidia-cuda-runtime-cu12 pytools Mako platformdirs siphash24 wheel
site=$("$python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
mkdir -p "$work/cuda/lib"
cp -r "$site/nvidia/cuda_runtime/include" "$work/cuda/include"
# The one header that is not in that wheel; PyCUDA names its functions and we call none.
cat >"$work/cuda/include/cudaProfiler.h" <<'C'
#include <cuda.h>
typedef enum { CU_OUT_KEY_VALUE_PAIR, CU_OUT_CSV } CUoutput_mode;
extern "C" CUresult cuProfilerInitialize(const char *, const char *, CUoutput_mode);
extern "C" CUresult cuProfilerStart(void);
extern "C" CUresult cuProfilerStop(void);
C
echo 'int cuInit(unsigned flags) { return 100; }' | # one function, so that the library counts as needed
    gcc -w -shared -fPIC -x c - -Wl,-soname,libcuda.so.1 -o "$work/cuda/lib/libcuda.so"
_quietly "$python" -m pip download --disable-pip-version-check --no-deps --no-build-isolation --no-binary pycuda \
    --constraint "$_constraints" --dest "$work" pycuda
tar -xzf "$work"/pycuda-*.tar.gz -C "$work"
cat >"$(echo "$work"/pycuda-*/)siteconf.py" <<PY
BOOST_INC_DIR = BOOST_LIB_DIR = BOOST_PYTHON_LIBNAME = BOOST_THREAD_LIBNAME = []
BOOST_COMPILER, USE_SHIPPED_BOOST = "gcc43", True
CUDA_TRACE = CUDA_ENABLE_GL = CUDA_ENABLE_CURAND = False
CUDA_ROOT, CUDA_INC_DIR = "$work/cuda", ["$work/cuda/include"]
CUDADRV_LIB_DIR = CUDART_LIB_DIR = ["$work/cuda/lib"]
CUDADRV_LIBNAME, CUDART_LIBNAME = ["cuda"], []
CURAND_LIB_DIR = CURAND_LIBNAME = []
CXXFLAGS, LDFLAGS = ["-O0", "-g0", "-w"], ["-Wl,--unresolved-symbols=ignore-all"]
PY
CUDA_ROOT="$work/cuda" _pip --no-deps --no-build-isolation "$(echo "$work"/pycuda-*/)"
echo "built PyCUDA in ${SECONDS} s"
