// Batch norm with a shortcut and ReLU by the kernels of kernels.cu, as a differentiable operation. CUDA's driver is called
// through the pointers that gpu.rs has found: this file needs neither its headers nor its libraries.
#include "../failure.h"

#include <ATen/ATen.h>
#include <c10/core/impl/VirtualGuardImpl.h>
#include <torch/csrc/autograd/custom_function.h>

#include <algorithm>
#include <string>

namespace {
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

// Threads and channels per block; equal to those of kernels.cu.
constexpr int THREADS = 512, CHANNELS = 64;

// Kernels in the order of gpu.rs; the last two have a variant per gate.
enum Kernel { STATISTICS, NORMALIZE, GRADIENT_SUMS, INPUT_GRADIENT = GRADIENT_SUMS + 3, KERNELS = INPUT_GRADIENT + 3 };
enum Gate { OPEN, OWN, RESULT };

// cuLaunchKernel: function, grid, block, shared memory, stream, arguments, extra.
using Launch = int (*)(void *, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, void *, void **, void **);

struct Kernels {
    Launch launch;
    void *functions[2][KERNELS]; // bf16, float32
    int blocks;                  // maximum per launch
    // Partial sums and arrival counters of the blocks. Kernels that use them follow each other on one stream.
    at::Tensor partial, arrived;
};
// Never freed: the driver may be gone when a process ends.
Kernels *kernels = nullptr;

// x as [rows, channels], and the grid that covers it.
struct Shape {
    bool is_float;
    int rows, channels;
    unsigned across, along;

    explicit Shape(const at::Tensor &x)
        : is_float(x.scalar_type() == at::kFloat), rows(static_cast<int>(x.numel() / x.size(1))),
          channels(static_cast<int>(x.size(1))) {
        const int width = std::min(channels, CHANNELS), lines = THREADS / (width / lanes());
        along = std::max(1, channels / CHANNELS);
        across = std::clamp((rows + lines - 1) / lines, 1, std::max(1, kernels->blocks / static_cast<int>(along)));
    }
    int lanes() const { return is_float ? 4 : 8; }
};

template <class... Arguments> void launch(int kernel, const at::Tensor &x, const Shape &shape, Arguments... arguments) {
    const c10::impl::VirtualGuardImpl guard(c10::DeviceType::CUDA);
    void *const stream = guard.getStreamNativeHandle(guard.getStream(x.device()));
    void *pointers[] = {&arguments...};
    const int code = kernels->launch(kernels->functions[shape.is_float][kernel], shape.across, shape.along, 1, THREADS, 1, 1, 0,
                                     stream, pointers, nullptr);
    TORCH_CHECK(code == 0, "batch norm: cuLaunchKernel: error ", code);
}

void *place(const at::Tensor &tensor) { return tensor.defined() ? tensor.data_ptr() : nullptr; }

struct BatchNorm : torch::autograd::Function<BatchNorm> {
    static at::Tensor forward(AutogradContext *context, const at::Tensor &x, const at::Tensor &weight, const at::Tensor &bias,
                              const std::optional<at::Tensor> &shortcut, const at::Tensor &running_mean,
                              const at::Tensor &running_variance, bool rectified, double momentum, double epsilon) {
        const Shape shape(x);
        const auto y = at::empty_like(x);
        const auto scale = at::empty_like(weight), shift = at::empty_like(weight);
        launch(STATISTICS, x, shape, place(x), shape.rows, shape.channels, place(scale), place(shift), place(running_mean),
               place(running_variance), static_cast<float>(momentum), static_cast<float>(epsilon), place(kernels->partial),
               place(kernels->arrived));
        launch(NORMALIZE, x, shape, place(x), shortcut ? shortcut->data_ptr() : nullptr, place(y), shape.rows, shape.channels, place(scale), place(shift),
               place(weight), place(bias), static_cast<int>(rectified));
        // Without a shortcut x suffices to know where ReLU was positive: y need not be read again.
        const Gate gate = !rectified ? OPEN : shortcut ? RESULT : OWN;
        context->saved_data["gate"] = static_cast<int64_t>(gate);
        context->saved_data["has_shortcut"] = shortcut.has_value();
        context->save_for_backward({x, weight, bias, scale, shift, gate == RESULT ? y : at::Tensor()});
        return y;
    }

    static variable_list backward(AutogradContext *context, variable_list gradients) {
        const auto saved = context->get_saved_variables();
        const auto &x = saved[0], &weight = saved[1], &bias = saved[2], &scale = saved[3], &shift = saved[4], &y = saved[5];
        const int gate = static_cast<int>(context->saved_data["gate"].toInt());
        const Shape shape(x);
        const auto given = gradients[0].to(x.scalar_type()).contiguous(at::MemoryFormat::ChannelsLast);
        const auto weight_gradient = at::empty_like(weight), bias_gradient = at::empty_like(bias);
        const auto x_gradient = at::empty_like(x);
        at::Tensor shortcut_gradient;
        if (context->saved_data["has_shortcut"].toBool()) shortcut_gradient = gate == RESULT ? at::empty_like(x) : given;
        launch(GRADIENT_SUMS + gate, x, shape, place(given), place(x), place(y), shape.rows, shape.channels, place(scale),
               place(shift), place(weight), place(bias), place(weight_gradient), place(bias_gradient), place(kernels->partial),
               place(kernels->arrived));
        launch(INPUT_GRADIENT + gate, x, shape, place(given), place(x), place(y), shape.rows, shape.channels, place(scale),
               place(shift), place(weight), place(bias), place(weight_gradient), place(bias_gradient), place(x_gradient),
               place(shortcut_gradient));
        return {x_gradient, weight_gradient, bias_gradient, shortcut_gradient, {}, {}, {}, {}, {}};
    }
};

const at::Tensor &tensor(const void *pointer) { return *static_cast<const at::Tensor *>(pointer); }
} // namespace

// `functions`: [2][KERNELS]. `partial` float32 [blocks * 2 * CHANNELS], `arrived` int32 [blocks], zeros, on the GPU.
extern "C" void hpml_batch_norm_kernels(void *launch, void *const *functions, int blocks, const void *partial,
                                        const void *arrived) noexcept {
    auto *made = new Kernels{reinterpret_cast<Launch>(launch), {}, blocks, tensor(partial), tensor(arrived)};
    std::copy_n(functions, 2 * KERNELS, &made->functions[0][0]);
    kernels = made;
}

// Whether the kernels can compute on a tensor of this type, layout and shape.
extern "C" bool hpml_batch_norm_takes(const void *input) noexcept {
    const auto &x = tensor(input);
    if (kernels == nullptr || x.dim() != 4 || !x.is_contiguous(at::MemoryFormat::ChannelsLast)) return false;
    if (x.scalar_type() != at::kFloat && x.scalar_type() != at::kBFloat16) return false;
    const int64_t channels = x.size(1), rows = channels == 0 ? 0 : x.numel() / channels;
    const bool whole = channels % CHANNELS == 0 || channels == 8 || channels == 16 || channels == 32;
    const bool aligned = reinterpret_cast<uintptr_t>(x.data_ptr()) % 16 == 0;
    return whole && aligned && channels / CHANNELS <= kernels->blocks && rows > 1 && rows < 1 << 30;
}

// Runs the operation and returns its output; null: it has failed.
extern "C" void *hpml_batch_norm(const void *x, const void *weight, const void *bias, const void *shortcut,
                                 const void *running_mean, const void *running_variance, bool rectified, double momentum,
                                 double epsilon) noexcept {
    return guarded(static_cast<void *>(nullptr), [&]() -> void * {
        std::optional<at::Tensor> other;
        if (shortcut != nullptr) other = tensor(shortcut).contiguous(at::MemoryFormat::ChannelsLast);
        return new at::Tensor(BatchNorm::apply(tensor(x), tensor(weight), tensor(bias), other, tensor(running_mean),
                                               tensor(running_variance), rectified, momentum, epsilon));
    });
}
