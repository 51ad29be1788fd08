"""CUDA without torch: the driver and its two bindings, timing by events, our kernels and their compiler, NVML."""
