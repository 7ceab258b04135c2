// Batch norm of a training step, fused with the shortcut and ReLU that follow it in a residual network: y = relu(w xhat + b +
// shortcut), with xhat = (x - mean) / std over the batch. libtorch reads and writes the activations once per operation; these
// kernels pass over them twice forward (statistics, result) and twice backward (sums, gradient), and memory bounds their speed.
//
// Tensors are [rows, channels] (NHWC in memory), bf16 or float32, sums float32 and from block to block float64. A block has up
// to 64 channels (blockIdx.y) and every gridDim.x-th part of the rows; a thread has 16 bytes of a row. The block that arrives
// last adds the sums of all blocks in a fixed order: equal inputs give equal results, bit for bit.

typedef unsigned int u32;

constexpr int THREADS = 512; // per block; two blocks per multiprocessor
constexpr int CHANNELS = 64; // per block, at most

struct Bf16 {
    static constexpr int N = 8;
    __device__ static float one(const void *from, int index) {
        return __uint_as_float(u32(static_cast<const unsigned short *>(from)[index]) << 16);
    }
    __device__ static void unpack(const uint4 &pack, float (&to)[N]) {
        const u32 words[4] = {pack.x, pack.y, pack.z, pack.w};
#pragma unroll
        for (int i = 0; i < 4; i++) {
            to[2 * i] = __uint_as_float(words[i] << 16);
            to[2 * i + 1] = __uint_as_float(words[i] & 0xffff0000u);
        }
    }
    __device__ static u32 rounded(float low, float high) {
#if __CUDA_ARCH__ >= 800
        u32 word;
        asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(high), "f"(low));
        return word;
#else
        u32 halves[2];
        const float values[2] = {low, high};
        for (int i = 0; i < 2; i++) {
            const u32 bits = __float_as_uint(values[i]);
            halves[i] = values[i] != values[i] ? 0x7fc0u : (bits + 0x7fffu + (bits >> 16 & 1)) >> 16; // to nearest, ties to even
        }
        return halves[0] | halves[1] << 16;
#endif
    }
    __device__ static uint4 pack(const float (&from)[N]) {
        return make_uint4(rounded(from[0], from[1]), rounded(from[2], from[3]), rounded(from[4], from[5]),
                          rounded(from[6], from[7]));
    }
};

struct F32 {
    static constexpr int N = 4;
    __device__ static float one(const void *from, int index) { return static_cast<const float *>(from)[index]; }
    __device__ static void unpack(const uint4 &pack, float (&to)[N]) {
        to[0] = __uint_as_float(pack.x), to[1] = __uint_as_float(pack.y);
        to[2] = __uint_as_float(pack.z), to[3] = __uint_as_float(pack.w);
    }
    __device__ static uint4 pack(const float (&from)[N]) {
        return make_uint4(__float_as_uint(from[0]), __float_as_uint(from[1]), __float_as_uint(from[2]),
                          __float_as_uint(from[3]));
    }
};

// Part of the tensor that a thread works on.
template <int N> struct Place {
    int width;     // channels of the block
    int column;    // first channel of the thread
    int in_block;  // first channel of the thread, within the block
    int lines;     // rows that a block works on at a time
    int line;      // row of the thread among them
    int row, step; // first row of the thread, and distance to the next
    int pitch;     // 16-byte packs in a row
    __device__ explicit Place(int channels) {
        width = channels < CHANNELS ? channels : CHANNELS;
        const int packs = width / N;
        in_block = threadIdx.x % packs * N;
        column = blockIdx.y * CHANNELS + in_block;
        lines = THREADS / packs;
        line = threadIdx.x / packs;
        row = blockIdx.x * lines + line;
        step = gridDim.x * lines;
        pitch = channels / N;
    }
    __device__ long long at(int row) const { return (long long)row * pitch + column / N; }
};

// Adds `sums` [2][N] of all threads of all blocks of these channels. The block that arrives last, and it alone, gets the totals
// [2][width] in `totals` and returns true.
template <int N>
__device__ bool add_up(const Place<N> &place, const float (&sums)[2][N], float *partial, u32 *arrived, double *totals) {
    __shared__ double shared[THREADS * N];
    __shared__ bool last;
    float *share = reinterpret_cast<float *>(shared);
    const int width = 2 * place.width, thread = threadIdx.x;
#pragma unroll
    for (int i = 0; i < N; i++) {
        share[place.line * width + place.in_block + i] = sums[0][i];
        share[place.line * width + place.width + place.in_block + i] = sums[1][i];
    }
    __syncthreads();
    const int groups = THREADS / width;
    float sum = 0;
    for (int line = thread / width; line < place.lines; line += groups) sum += share[line * width + thread % width];
    __syncthreads();
    share[thread] = sum;
    __syncthreads();
    float *own = partial + (blockIdx.y * gridDim.x + blockIdx.x) * 2 * CHANNELS;
    if (thread < width) {
        sum = 0;
        for (int group = 0; group < groups; group++) sum += share[group * width + thread];
        own[thread] = sum;
        __threadfence();
    }
    __syncthreads();
    if (thread == 0) last = atomicInc(arrived + blockIdx.y, gridDim.x - 1) == gridDim.x - 1;
    __syncthreads();
    if (!last) return false;
    __threadfence();
    const int quads = width / 4, teams = THREADS / quads, quad = thread % quads;
    double four[4] = {};
    const float4 *others = reinterpret_cast<const float4 *>(partial + blockIdx.y * gridDim.x * 2 * CHANNELS);
#pragma unroll 8
    for (int block = thread / quads; block < gridDim.x; block += teams) {
        const float4 found = __ldcg(others + block * (2 * CHANNELS / 4) + quad);
        four[0] += found.x, four[1] += found.y, four[2] += found.z, four[3] += found.w;
    }
    for (int i = 0; i < 4; i++) shared[thread / quads * width + 4 * quad + i] = four[i];
    __syncthreads();
    if (thread < width) {
        double total = 0;
        for (int team = 0; team < teams; team++) total += shared[team * width + thread];
        totals[thread] = total;
    }
    __syncthreads();
    return true;
}

// Computes each channel's `scale` and `shift` from its mean and variance: xhat = x scale + shift. Running statistics move by
// `momentum`.
template <class T>
__device__ void statistics(const uint4 *x, int rows, int channels, float *scale, float *shift, float *running_mean,
                           float *running_variance, float momentum, float epsilon, float *partial, u32 *arrived) {
    constexpr int N = T::N, AHEAD = 4;
    const Place<N> place(channels);
    // Sums of the differences from the first row: the mean may be far from 0.
    float pivot[N], sums[2][N] = {};
    T::unpack(x[place.at(0)], pivot);
    for (int row = place.row; row < rows; row += AHEAD * place.step) {
        uint4 packs[AHEAD];
#pragma unroll
        for (int i = 0; i < AHEAD; i++)
            if (row + i * place.step < rows) packs[i] = x[place.at(row + i * place.step)];
#pragma unroll
        for (int i = 0; i < AHEAD; i++) {
            if (row + i * place.step >= rows) break;
            float values[N];
            T::unpack(packs[i], values);
#pragma unroll
            for (int j = 0; j < N; j++) {
                const float away = values[j] - pivot[j];
                sums[0][j] += away;
                sums[1][j] += away * away;
            }
        }
    }
    __shared__ double totals[2 * CHANNELS];
    if (!add_up(place, sums, partial, arrived, totals) || threadIdx.x >= place.width) return;
    const int channel = blockIdx.y * CHANNELS + threadIdx.x;
    const double away = totals[threadIdx.x] / rows, square = totals[place.width + threadIdx.x] / rows;
    const double mean = T::one(x, channel) + away;
    const double raw = square - away * away, variance = raw < 0 ? 0 : raw; // NaN stays NaN
    const double inverse = 1 / sqrt(variance + epsilon);
    scale[channel] = inverse;
    shift[channel] = -mean * inverse;
    running_mean[channel] += momentum * (mean - running_mean[channel]);
    running_variance[channel] += momentum * (variance * (rows / (rows - 1.0)) - running_variance[channel]);
}

// Computes y = w xhat + b (+ shortcut), followed by ReLU if `rectified`.
template <class T>
__device__ void normalize(const uint4 *x, const uint4 *shortcut, uint4 *y, int rows, int channels, const float *scale,
                          const float *shift, const float *weight, const float *bias, int rectified) {
    constexpr int N = T::N, AHEAD = 2;
    const Place<N> place(channels);
    float factor[N], offset[N];
#pragma unroll
    for (int j = 0; j < N; j++) {
        const int channel = place.column + j;
        factor[j] = weight[channel] * scale[channel];
        offset[j] = fmaf(weight[channel], shift[channel], bias[channel]);
    }
    // Starts at the last row: the statistics have left the end of x in the cache.
    for (int row = rows - 1 - place.row; row >= 0; row -= AHEAD * place.step) {
        uint4 packs[AHEAD], others[AHEAD];
#pragma unroll
        for (int i = 0; i < AHEAD; i++) {
            if (row < i * place.step) continue;
            packs[i] = x[place.at(row - i * place.step)];
            if (shortcut) others[i] = shortcut[place.at(row - i * place.step)];
        }
#pragma unroll
        for (int i = 0; i < AHEAD; i++) {
            if (row < i * place.step) break;
            float values[N], more[N];
            T::unpack(packs[i], values);
            if (shortcut) T::unpack(others[i], more);
#pragma unroll
            for (int j = 0; j < N; j++) {
                float value = fmaf(values[j], factor[j], offset[j]);
                if (shortcut) value += more[j];
                values[j] = rectified && value < 0 ? 0 : value; // NaN stays NaN
            }
            y[place.at(row - i * place.step)] = T::pack(values);
        }
    }
}

// Where ReLU passes the gradient: OPEN everywhere, OWN where w xhat + b > 0, RESULT where y > 0 (with a shortcut).
enum Gate { OPEN, OWN, RESULT };

template <class T, Gate gate>
__device__ void through(const uint4 &given, const float (&values)[T::N], const uint4 &result, const float (&factor)[T::N],
                        const float (&offset)[T::N], float (&gradient)[T::N]) {
    T::unpack(given, gradient);
    float results[T::N];
    if (gate == RESULT) T::unpack(result, results);
#pragma unroll
    for (int j = 0; j < T::N; j++) {
        const bool shut = gate == OWN      ? fmaf(values[j], factor[j], offset[j]) <= 0
                          : gate == RESULT ? results[j] <= 0
                                           : false;
        if (shut) gradient[j] = 0;
    }
}

// Computes the gradients of weight and bias. input_gradient divides them by the rows for the gradient of x.
template <class T, Gate gate>
__device__ void gradient_sums(const uint4 *given, const uint4 *x, const uint4 *y, int rows, int channels, const float *scale,
                              const float *shift, const float *weight, const float *bias, float *weight_gradient,
                              float *bias_gradient, float *partial, u32 *arrived) {
    constexpr int N = T::N, AHEAD = gate == OPEN ? 2 : 1;
    const Place<N> place(channels);
    float factor[N], offset[N], spread[N], center[N], sums[2][N] = {};
#pragma unroll
    for (int j = 0; j < N; j++) {
        const int channel = place.column + j;
        spread[j] = scale[channel];
        center[j] = shift[channel];
        factor[j] = weight[channel] * spread[j];
        offset[j] = fmaf(weight[channel], center[j], bias[channel]);
    }
    for (int row = place.row; row < rows; row += AHEAD * place.step) {
        uint4 gradients[AHEAD], inputs[AHEAD], results[AHEAD];
#pragma unroll
        for (int i = 0; i < AHEAD; i++) {
            if (row + i * place.step >= rows) break;
            const long long at = place.at(row + i * place.step);
            gradients[i] = given[at];
            inputs[i] = x[at];
            if (gate == RESULT) results[i] = y[at];
        }
#pragma unroll
        for (int i = 0; i < AHEAD; i++) {
            if (row + i * place.step >= rows) break;
            float values[N], gradient[N];
            T::unpack(inputs[i], values);
            through<T, gate>(gradients[i], values, results[i], factor, offset, gradient);
#pragma unroll
            for (int j = 0; j < N; j++) {
                sums[0][j] += gradient[j];
                sums[1][j] += gradient[j] * fmaf(values[j], spread[j], center[j]);
            }
        }
    }
    __shared__ double totals[2 * CHANNELS];
    if (!add_up(place, sums, partial, arrived, totals) || threadIdx.x >= place.width) return;
    const int channel = blockIdx.y * CHANNELS + threadIdx.x;
    bias_gradient[channel] = totals[threadIdx.x];
    weight_gradient[channel] = totals[place.width + threadIdx.x];
}

// Computes the gradient of x, w / std (g - mean of g - xhat mean of (g xhat)), and with gate RESULT the shortcut's, g.
template <class T, Gate gate>
__device__ void input_gradient(const uint4 *given, const uint4 *x, const uint4 *y, int rows, int channels, const float *scale,
                               const float *shift, const float *weight, const float *bias, const float *weight_gradient,
                               const float *bias_gradient, uint4 *x_gradient, uint4 *shortcut_gradient) {
    constexpr int N = T::N, AHEAD = gate == RESULT ? 1 : 2;
    const Place<N> place(channels);
    float factor[N], offset[N], slope[N], level[N];
#pragma unroll
    for (int j = 0; j < N; j++) {
        const int channel = place.column + j;
        factor[j] = weight[channel] * scale[channel];
        offset[j] = fmaf(weight[channel], shift[channel], bias[channel]);
        const float along = weight_gradient[channel] / rows, mean = bias_gradient[channel] / rows;
        slope[j] = -factor[j] * along * scale[channel];
        level[j] = -factor[j] * fmaf(along, shift[channel], mean);
    }
    for (int row = rows - 1 - place.row; row >= 0; row -= AHEAD * place.step) {
        uint4 gradients[AHEAD], inputs[AHEAD], results[AHEAD];
#pragma unroll
        for (int i = 0; i < AHEAD; i++) {
            if (row < i * place.step) break;
            const long long at = place.at(row - i * place.step);
            gradients[i] = given[at];
            inputs[i] = x[at];
            if (gate == RESULT) results[i] = y[at];
        }
#pragma unroll
        for (int i = 0; i < AHEAD; i++) {
            if (row < i * place.step) break;
            const long long at = place.at(row - i * place.step);
            float values[N], gradient[N];
            T::unpack(inputs[i], values);
            through<T, gate>(gradients[i], values, results[i], factor, offset, gradient);
            if (gate == RESULT) shortcut_gradient[at] = T::pack(gradient);
#pragma unroll
            for (int j = 0; j < N; j++) values[j] = fmaf(factor[j], gradient[j], fmaf(slope[j], values[j], level[j]));
            x_gradient[at] = T::pack(values);
        }
    }
}

#define FORWARD(T, name)                                                                                                     \
    extern "C" __global__ void __launch_bounds__(THREADS, 2)                                                                    \
        statistics_##name(const uint4 *x, int rows, int channels, float *scale, float *shift, float *running_mean,           \
                          float *running_variance, float momentum, float epsilon, float *partial, u32 *arrived) {            \
        statistics<T>(x, rows, channels, scale, shift, running_mean, running_variance, momentum, epsilon, partial, arrived); \
    }                                                                                                                        \
    extern "C" __global__ void __launch_bounds__(THREADS, 2)                                                                    \
        normalize_##name(const uint4 *x, const uint4 *shortcut, uint4 *y, int rows, int channels, const float *scale,        \
                         const float *shift, const float *weight, const float *bias, int rectified) {                        \
        normalize<T>(x, shortcut, y, rows, channels, scale, shift, weight, bias, rectified);                                 \
    }
#define BACKWARD(T, gate, name)                                                                                              \
    extern "C" __global__ void __launch_bounds__(THREADS, 2) gradient_sums_##name(                                              \
        const uint4 *given, const uint4 *x, const uint4 *y, int rows, int channels, const float *scale, const float *shift,  \
        const float *weight, const float *bias, float *weight_gradient, float *bias_gradient, float *partial,                \
        u32 *arrived) {                                                                                                      \
        gradient_sums<T, gate>(given, x, y, rows, channels, scale, shift, weight, bias, weight_gradient, bias_gradient,      \
                               partial, arrived);                                                                            \
    }                                                                                                                        \
    extern "C" __global__ void __launch_bounds__(THREADS, 2) input_gradient_##name(                                             \
        const uint4 *given, const uint4 *x, const uint4 *y, int rows, int channels, const float *scale, const float *shift,  \
        const float *weight, const float *bias, const float *weight_gradient, const float *bias_gradient, uint4 *x_gradient, \
        uint4 *shortcut_gradient) {                                                                                          \
        input_gradient<T, gate>(given, x, y, rows, channels, scale, shift, weight, bias, weight_gradient, bias_gradient,     \
                                x_gradient, shortcut_gradient);                                                              \
    }
#define ALL(T, name) FORWARD(T, name) BACKWARD(T, OPEN, name##_open) BACKWARD(T, OWN, name##_own) BACKWARD(T, RESULT, name##_result)
ALL(Bf16, bf16)
ALL(F32, f32)
