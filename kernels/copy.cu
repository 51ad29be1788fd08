// copy: a buffer into another one, to learn how fast a card reads and writes its memory.
//
//   from  words of 4 bytes, contiguous
//   to    as many, not the same ones
//   n     how many
//   to[i] = from[i] for every i
//
// Reference: numpy.copyto, equal. Grid: x, any number of threads; the fastest is one for each 4 words.
// Both pointers aligned to 16 bytes. Bound by memory: 4 bytes read and 4 written for a word, each once.

struct alignas(16) Words {  // read and stored at once
    uint32_t v[4];
};

extern "C" __global__ void copy(const uint32_t *__restrict__ from, uint32_t *__restrict__ to, int64_t n) {
    const int64_t first = (int64_t)blockIdx.x * blockDim.x + threadIdx.x, step = (int64_t)gridDim.x * blockDim.x;
    for (int64_t i = first; i < n / 4; i += step) ((Words *)to)[i] = ((const Words *)from)[i];
    for (int64_t i = n / 4 * 4 + first; i < n; i += step) to[i] = from[i];
}
