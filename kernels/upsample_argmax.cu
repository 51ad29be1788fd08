// upsample_argmax_f32, upsample_argmax_f16: labels at full size from scores at low resolution.
//
//   scores  float32 or float16 (N, C, h, w), contiguous, finite; 1 <= C <= 256
//   labels  uint8 (N, H, W), contiguous
//   labels[n, Y, X] = argmax over c of bilinear(scores[n, c])(Y, X), the first of equal ones
//
// Bilinear with half-pixel centres, edges repeated: the source of X is max(0, (X + 0.5) * w / W - 0.5). That is what
// ONNX calls half_pixel and PyTorch align_corners=False, and what networks of hwnas end with.
//
// Reference: hwnas.runtime.cuda.kernels.upsample_argmax; labels are equal but where the two best scores of a pixel
// differ by less than 1e-5. Grid: x covers ceil(W / 8) threads, y is Y, z is n. Any sizes.
// Scores at full size are never written: of 19 classes at 1024x2048 these alone are 152 MiB in float32.

#define RUN 8  // neighbouring pixels of one thread: where scores are upsampled, most share their corners

template <typename T>
static __device__ __forceinline__ void upsample_argmax(const T *__restrict__ scores, uint8_t *__restrict__ labels,
                                                       int classes, int h, int w, int height, int width) {
    const int first = RUN * (int)(blockIdx.x * blockDim.x + threadIdx.x), y = (int)blockIdx.y;
    if (first >= width) return;
    const float fy = fmaxf(0.0f, ((float)y + 0.5f) * ((float)h / (float)height) - 0.5f);
    const int y0 = min((int)fy, h - 1), y1 = min(y0 + 1, h - 1);
    const float wy = fy - (float)y0;
    int x0[RUN], best[RUN];
    float wx[RUN], top[RUN];
#pragma unroll
    for (int i = 0; i < RUN; i++) {
        const float fx = fmaxf(0.0f, ((float)(first + i) + 0.5f) * ((float)w / (float)width) - 0.5f);
        x0[i] = min((int)fx, w - 1);
        wx[i] = fx - (float)x0[i];
        best[i] = 0;
        top[i] = 0.0f;
    }
    const int64_t plane = (int64_t)h * w;
    const T *map = scores + (int64_t)blockIdx.z * classes * plane;
    for (int c = 0; c < classes; c++, map += plane) {
        const T *upper = map + (int64_t)y0 * w, *lower = map + (int64_t)y1 * w;
        int at = -1;
        float left = 0.0f, right = 0.0f;
#pragma unroll
        for (int i = 0; i < RUN; i++) {
            if (x0[i] != at) {
                at = x0[i];
                const int next = min(at + 1, w - 1);
                const float a = to_float(upper[at]), b = to_float(upper[next]);
                left = a + wy * (to_float(lower[at]) - a);
                right = b + wy * (to_float(lower[next]) - b);
            }
            const float score = left + wx[i] * (right - left);
            if (c == 0 || score > top[i]) {
                top[i] = score;
                best[i] = c;
            }
        }
    }
    uint8_t *to = labels + ((int64_t)blockIdx.z * height + y) * width + first;
    if (width % RUN == 0) {  // every run is whole and aligned: one store
        uint64_t word = 0;
#pragma unroll
        for (int i = 0; i < RUN; i++) word |= (uint64_t)best[i] << 8 * i;
        *reinterpret_cast<uint64_t *>(to) = word;
    } else {
        for (int i = 0; i < RUN && first + i < width; i++) to[i] = (uint8_t)best[i];
    }
}

extern "C" __global__ void upsample_argmax_f32(const float *scores, uint8_t *labels, int classes, int h, int w,
                                               int height, int width) {
    upsample_argmax(scores, labels, classes, h, w, height, width);
}

extern "C" __global__ void upsample_argmax_f16(const half_t *scores, uint8_t *labels, int classes, int h, int w,
                                               int height, int width) {
    upsample_argmax(scores, labels, classes, h, w, height, width);
}
