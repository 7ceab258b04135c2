// Batch norm with a shortcut and ReLU by the kernels of kernels.rs, as a differentiable operation.
#include "../failure.h"

#include <ATen/ATen.h>
#include <torch/csrc/autograd/custom_function.h>

namespace {
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

// Arguments of the kernels; equal to those of cpu.rs. Tensors are [rows, channels], bf16 or float32.
struct Form {
    int64_t rows, channels;
    bool is_float, rectified;
    double epsilon;
    const float *weight, *bias;
    float *statistics; // [3, channels] for the backward pass
};
struct Forward {
    Form form;
    const void *x, *shortcut;
    void *y;
    float *running_mean, *running_variance;
    double momentum;
    bool train;
};
struct Backward {
    Form form;
    const void *x, *y;
    void *given, *x_gradient; // null: in place of `given`
    float *weight_gradient, *bias_gradient;
};

struct Kernels {
    void (*forward)(const Forward *);
    void (*backward)(const Backward *);
};
Kernels kernels;

Form form(const at::Tensor &x, const at::Tensor &weight, const at::Tensor &bias, const at::Tensor &statistics, bool rectified,
          double epsilon) {
    const int64_t channels = x.size(1);
    return {x.numel() / channels,       channels, x.scalar_type() == at::kFloat, rectified, epsilon, weight.const_data_ptr<float>(),
            bias.const_data_ptr<float>(), statistics.data_ptr<float>()};
}

const void *place(const std::optional<at::Tensor> &tensor) { return tensor ? tensor->const_data_ptr() : nullptr; }

// `tensor` in the layout and type of `like`, and nobody else's, so that it may be overwritten.
at::Tensor own(at::Tensor tensor, const at::Tensor &like) {
    tensor = tensor.to(like.scalar_type()).contiguous(at::MemoryFormat::ChannelsLast);
    const bool is_shared = tensor.use_count() > 1 || tensor.storage().use_count() > 1 || at::GradMode::is_enabled();
    return is_shared ? tensor.clone() : tensor;
}

struct BatchNorm : torch::autograd::Function<BatchNorm> {
    static at::Tensor forward(AutogradContext *context, const at::Tensor &x, const at::Tensor &weight, const at::Tensor &bias,
                              const std::optional<at::Tensor> &shortcut, const at::Tensor &running_mean,
                              const at::Tensor &running_variance, bool rectified, double momentum, double epsilon) {
        const auto y = at::empty_like(x);
        const auto statistics = at::empty({3, x.size(1)}, weight.options());
        const Forward pass = {form(x, weight, bias, statistics, rectified, epsilon), x.const_data_ptr(), place(shortcut), y.data_ptr(),
                              running_mean.data_ptr<float>(), running_variance.data_ptr<float>(), momentum, true};
        kernels.forward(&pass);
        context->saved_data["rectified"] = rectified;
        context->saved_data["has_shortcut"] = shortcut.has_value();
        context->saved_data["epsilon"] = epsilon;
        // Without a shortcut x suffices to know where ReLU was positive: y need not be kept.
        context->save_for_backward({x, weight, bias, statistics, rectified && shortcut ? y : at::Tensor()});
        return y;
    }

    // `gradients` is a reference, so that the engine's handle can be taken: a gradient with one handle is overwritten.
    static variable_list backward(AutogradContext *context, variable_list &gradients) {
        const auto saved = context->get_saved_variables();
        const auto &x = saved[0], &weight = saved[1], &bias = saved[2], &statistics = saved[3], &y = saved[4];
        const bool has_shortcut = context->saved_data["has_shortcut"].toBool();
        const auto weight_gradient = at::empty_like(weight), bias_gradient = at::empty_like(bias);
        at::Tensor shortcut_gradient, given = std::move(gradients[0]);
        if (has_shortcut && !y.defined()) shortcut_gradient = given;
        given = own(std::move(given), x);
        at::Tensor x_gradient = given;
        if (y.defined()) {
            shortcut_gradient = given;
            x_gradient = at::empty_like(x);
        }
        const Backward pass = {form(x, weight, bias, statistics, context->saved_data["rectified"].toBool(),
                                    context->saved_data["epsilon"].toDouble()),
                               x.const_data_ptr(),
                               y.defined() ? y.const_data_ptr() : nullptr,
                               given.data_ptr(),
                               y.defined() ? x_gradient.data_ptr() : nullptr,
                               weight_gradient.data_ptr<float>(),
                               bias_gradient.data_ptr<float>()};
        kernels.backward(&pass);
        return {x_gradient, weight_gradient, bias_gradient, shortcut_gradient, {}, {}, {}, {}, {}};
    }
};

const at::Tensor &tensor(const void *pointer) { return *static_cast<const at::Tensor *>(pointer); }

bool is_row(const at::Tensor &tensor, int64_t channels) {
    return tensor.device().is_cpu() && tensor.scalar_type() == at::kFloat && tensor.dim() == 1 && tensor.size(0) == channels &&
           tensor.is_contiguous();
}
} // namespace

extern "C" void hpml_batch_norm_cpu_kernels(void (*forward)(const Forward *), void (*backward)(const Backward *)) noexcept {
    kernels = {forward, backward};
}

// Whether the kernels can compute on these tensors.
extern "C" bool hpml_batch_norm_cpu_takes(const void *input, const void *const *rows, bool train) noexcept {
    const auto &x = tensor(input);
    if (!train && at::GradMode::is_enabled()) return false; // somebody may want a gradient
    if (!x.device().is_cpu() || x.dim() != 4 || x.numel() <= x.size(1) || !x.is_contiguous(at::MemoryFormat::ChannelsLast))
        return false;
    if (x.scalar_type() != at::kFloat && x.scalar_type() != at::kBFloat16) return false;
    for (int i = 0; i < 4; i++)
        if (!is_row(tensor(rows[i]), x.size(1))) return false;
    return true;
}

// Runs the operation and returns its output; null: it has failed. `rows`: weight, bias, running mean, running variance. Without
// `train` the running statistics normalize, and the output has no gradient.
extern "C" void *hpml_batch_norm_cpu(const void *x, const void *const *rows, const void *shortcut, bool rectified, double momentum,
                                     double epsilon, bool train) noexcept {
    return guarded(static_cast<void *>(nullptr), [&]() -> void * {
        std::optional<at::Tensor> other;
        if (shortcut != nullptr) other = tensor(shortcut).contiguous(at::MemoryFormat::ChannelsLast);
        const auto &weight = tensor(rows[0]), &bias = tensor(rows[1]), &mean = tensor(rows[2]), &variance = tensor(rows[3]);
        if (train) return new at::Tensor(BatchNorm::apply(tensor(x), weight, bias, other, mean, variance, rectified, momentum, epsilon));
        const at::NoGradGuard guard;
        const auto y = at::empty_like(tensor(x)), statistics = at::empty({3, weight.size(0)}, weight.options());
        const Forward pass = {form(tensor(x), weight, bias, statistics, rectified, epsilon), tensor(x).const_data_ptr(), place(other),
                              y.data_ptr(), mean.data_ptr<float>(), variance.data_ptr<float>(), momentum, false};
        kernels.forward(&pass);
        return new at::Tensor(y);
    });
}
