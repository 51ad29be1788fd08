// preprocess_f32, preprocess_f16: camera pixels to what a network reads.
//
//   image   uint8 (N, H, W, 3), contiguous
//   out     float32 or float16 (N, 3, H, W), contiguous
//   pixels  H * W
//   out[n, c, y, x] = (image[n, y, x, c] / 255 - mean[c]) * gain[c],   gain = 1 / std
//
// Reference: hwnas.runtime.cuda.kernels.preprocess, to 1e-6 in float32 and to one rounding in float16.
// Grid: x covers ceil(pixels / 4) threads, y is n. Any size; both pointers aligned to 16 bytes.
// Bound by memory: 3 bytes read and 12 or 6 written for a pixel, each once.

template <typename T>
struct alignas(4 * sizeof(T)) Four {  // stored at once
    T v[4];
};

template <typename T>
static __device__ __forceinline__ void preprocess(const uint8_t *__restrict__ image, T *__restrict__ out,
                                                  int64_t pixels, const float (&mean)[3], const float (&gain)[3]) {
    const int64_t first = 4 * ((int64_t)blockIdx.x * blockDim.x + threadIdx.x);
    if (first >= pixels) return;
    const uint8_t *from = image + ((int64_t)blockIdx.y * pixels + first) * 3;
    T *to = out + (int64_t)blockIdx.y * pixels * 3 + first;
    uint8_t raw[12];
    // Of four pixels at a time the 12 bytes are three words, and a plane of whole fours stays aligned.
    const bool whole = pixels % 4 == 0;
    const int n = whole || pixels - first >= 4 ? 4 : (int)(pixels - first);
    if (whole) {
        const uint32_t *words = (const uint32_t *)from;
        for (int i = 0; i < 3; i++) {
            const uint32_t word = words[i];
            for (int j = 0; j < 4; j++) raw[4 * i + j] = (uint8_t)(word >> 8 * j);
        }
    } else {
        for (int i = 0; i < 12; i++) raw[i] = i < 3 * n ? from[i] : (uint8_t)0;
    }
#pragma unroll
    for (int c = 0; c < 3; c++) {
        Four<T> row;
#pragma unroll
        for (int i = 0; i < 4; i++) {
            row.v[i] = from_float<T>(((float)raw[3 * i + c] * (1.0f / 255.0f) - mean[c]) * gain[c]);
        }
        if (whole) {
            *reinterpret_cast<Four<T> *>(to + c * pixels) = row;
        } else {
            for (int i = 0; i < n; i++) to[c * pixels + i] = row.v[i];
        }
    }
}

extern "C" __global__ void preprocess_f32(const uint8_t *image, float *out, int64_t pixels, float mean0, float mean1,
                                          float mean2, float gain0, float gain1, float gain2) {
    const float mean[3] = {mean0, mean1, mean2}, gain[3] = {gain0, gain1, gain2};
    preprocess(image, out, pixels, mean, gain);
}

extern "C" __global__ void preprocess_f16(const uint8_t *image, half_t *out, int64_t pixels, float mean0, float mean1,
                                          float mean2, float gain0, float gain1, float gain2) {
    const float mean[3] = {mean0, mean1, mean2}, gain[3] = {gain0, gain1, gain2};
    preprocess(image, out, pixels, mean, gain);
}
