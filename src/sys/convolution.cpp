// A 3x3 convolution by functions of Rust as a differentiable operation.
#include "failure.h"

#include <ATen/ATen.h>
#include <torch/csrc/autograd/custom_function.h>

namespace {
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;
constexpr auto LAYOUT = at::MemoryFormat::ChannelsLast;

// Equal to those of convolution.rs.
struct Shape {
    int64_t images, height, width, inputs, outputs;
};
enum Pass { FORWARD, INPUT_GRADIENT, WEIGHT_GRADIENT };
using Compute = void (*)(int pass, const Shape *shape, const float *one, const float *other, float *to);

const at::Tensor &tensor(const void *pointer) { return *static_cast<const at::Tensor *>(pointer); }

// A pass by libtorch. Inputs and weights that only give a shape are not read.
at::Tensor direct(int pass, const at::Tensor &one, const at::Tensor &other) {
    if (pass == FORWARD) return at::conv2d(one, other, {}, {1, 1}, {1, 1});
    const bool of_input = pass == INPUT_GRADIENT;
    const auto input = of_input ? at::empty({one.size(0), other.size(1), one.size(2), one.size(3)}, one.options(), LAYOUT) : one;
    const auto weight = of_input ? other : at::empty({other.size(1), one.size(1), 3, 3}, one.options(), LAYOUT);
    const auto gradients = at::convolution_backward(of_input ? one : other, input, weight, at::OptionalIntArrayRef(), {1, 1}, {1, 1},
                                                    {1, 1}, false, {0, 0}, 1, {of_input, !of_input, false});
    return of_input ? std::get<0>(gradients) : std::get<1>(gradients);
}

// A pass over tensors of any layout. FORWARD: input, weight. INPUT_GRADIENT: gradient of the output, weight.
// WEIGHT_GRADIENT: input, gradient of the output.
at::Tensor computed(int pass, Compute compute, const at::Tensor &one, const at::Tensor &other) {
    const auto first = one.contiguous(LAYOUT), second = other.contiguous(LAYOUT);
    const int64_t images = one.size(0), height = one.size(2), width = one.size(3);
    // The channels of `one`, and those of `other` that are not they.
    const int64_t channels = one.size(1), others = other.size(pass == FORWARD ? 0 : 1);
    const int64_t inputs = pass == INPUT_GRADIENT ? others : channels, outputs = pass == INPUT_GRADIENT ? channels : others;
    const Shape shape{images, height, width, inputs, outputs};
    const auto sizes = pass == WEIGHT_GRADIENT ? std::vector<int64_t>{outputs, inputs, 3, 3}
                                               : std::vector<int64_t>{images, others, height, width};
    auto to = at::empty(sizes, one.options(), LAYOUT);
    compute(pass, &shape, first.const_data_ptr<float>(), second.const_data_ptr<float>(), to.mutable_data_ptr<float>());
    return to;
}

struct Convolution : torch::autograd::Function<Convolution> {
    static at::Tensor forward(AutogradContext *context, const at::Tensor &input, const at::Tensor &weight, Compute compute) {
        context->saved_data["compute"] = reinterpret_cast<int64_t>(compute);
        context->save_for_backward({input, weight});
        return computed(FORWARD, compute, input, weight);
    }

    static variable_list backward(AutogradContext *context, variable_list gradients) {
        const auto saved = context->get_saved_variables();
        const auto compute = reinterpret_cast<Compute>(context->saved_data["compute"].toInt());
        const auto gradient = gradients[0].contiguous(LAYOUT);
        at::Tensor of_input, of_weight;
        if (context->needs_input_grad(0)) of_input = computed(INPUT_GRADIENT, compute, gradient, saved[1]);
        if (context->needs_input_grad(1)) {
            of_weight = computed(WEIGHT_GRADIENT, compute, saved[0], gradient);
            // Gradients lie as their parameters do.
            if (of_weight.strides() != saved[1].strides()) of_weight = at::empty_like(saved[1]).copy_(of_weight);
        }
        return {of_input, of_weight, {}};
    }
};
} // namespace

// Whether `input` is float32 on the CPU in channels-last order, and the weight float32 of the kind that `Convolution` takes.
extern "C" bool hpml_convolution_takes(const void *input, const void *weight) noexcept {
    const auto &x = tensor(input), &w = tensor(weight);
    return x.device().is_cpu() && x.scalar_type() == at::kFloat && x.dim() == 4 && x.is_contiguous(LAYOUT) &&
           w.device().is_cpu() && w.scalar_type() == at::kFloat && w.dim() == 4 && w.size(1) == x.size(1) && w.size(2) == 3 &&
           w.size(3) == 3;
}

// Runs the operation and returns its output; null: it has failed.
extern "C" void *hpml_convolution(const void *input, const void *weight, Compute compute) noexcept {
    return guarded(static_cast<void *>(nullptr),
                   [&]() -> void * { return new at::Tensor(Convolution::apply(tensor(input), tensor(weight), compute)); });
}

// Runs a pass without recording it, by libtorch if `compute` is null, and returns its result; null: it has failed.
extern "C" void *hpml_convolution_pass(int pass, const void *one, const void *other, Compute compute) noexcept {
    return guarded(static_cast<void *>(nullptr), [&]() -> void * {
        const at::NoGradGuard guard;
        return new at::Tensor(compute == nullptr ? direct(pass, tensor(one), tensor(other))
                                                 : computed(pass, compute, tensor(one), tensor(other)));
    });
}
