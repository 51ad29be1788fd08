// l2_flush: fills a buffer, so that nothing else is left in the L2 cache.
//
//   buffer  words of 4 bytes, more of them than L2 has; contiguous
//   n       how many
//   buffer[i] = value for every i
//
// Reference: numpy.full(n, value, uint32), equal. Grid: x, any number of threads.

extern "C" __global__ void l2_flush(uint32_t *buffer, int64_t n, uint32_t value) {
    const int64_t step = (int64_t)gridDim.x * blockDim.x;
    for (int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x; i < n; i += step) buffer[i] = value;
}
