// libtorch's fused optimizers, which tch lacks. They take lists of tensors, at::Tensor* as tch's Tensor::as_ptr gives them, and
// update each list in one kernel, or a few.
#include "failure.h"

#include <ATen/ATen.h>

#include <exception>
#include <optional>
#include <string>
#include <vector>

namespace {
using Pointers = const void *const *;

std::vector<at::Tensor> tensors(Pointers pointers, size_t count) {
    std::vector<at::Tensor> list;
    list.reserve(count);
    for (size_t i = 0; i < count; i++) list.push_back(*static_cast<const at::Tensor *>(pointers[i]));
    return list;
}

std::optional<at::Tensor> optional(const void *pointer) {
    if (pointer == nullptr) return std::nullopt;
    return *static_cast<const at::Tensor *>(pointer);
}
} // namespace

// One step of SGD. The gradients are divided by `divisor` unless that is null.
extern "C" bool hpml_fused_sgd(size_t count, Pointers parameters, Pointers gradients, Pointers velocities, double weight_decay,
                               double momentum, double lr, bool nesterov, const void *divisor) noexcept {
    return done([&] {
        const auto buffers = momentum != 0 ? tensors(velocities, count) : std::vector<at::Tensor>();
        at::_fused_sgd_(tensors(parameters, count), tensors(gradients, count), buffers, weight_decay, momentum, lr, 0.0,
                        nesterov, false, false, optional(divisor), {});
    });
}

// Step `number`, from 1, of AdamW (`decoupled`) or Adam. The gradients are divided by `divisor` unless that is null.
extern "C" bool hpml_fused_adam(size_t count, Pointers parameters, Pointers gradients, Pointers firsts, Pointers seconds,
                                int64_t number, double weight_decay, double beta1, double beta2, double epsilon, double lr,
                                bool decoupled, const void *divisor) noexcept {
    return done([&] {
        const auto own = tensors(parameters, count);
        const std::vector<at::Tensor> steps(count, at::full({}, static_cast<double>(number), own.at(0).options()));
        const auto step = [&](const auto &rule) {
            rule(own, tensors(gradients, count), tensors(firsts, count), tensors(seconds, count), at::TensorList(), steps, lr,
                 beta1, beta2, weight_decay, epsilon, false, false, optional(divisor), std::nullopt);
        };
        decoupled ? step(at::_ops::_fused_adamw_::call) : step(at::_ops::_fused_adam_::call);
    });
}

// Multiplies the gradients by `factor`. 1: all are finite, 0: one is not, -1: the device has failed.
extern "C" int hpml_unscale(const void *gradients, double factor) noexcept {
    int finite = -1;
    done([&] {
        const auto list = tensors(&gradients, 1);
        auto found = at::zeros({}, list[0].options());
        at::_amp_foreach_non_finite_check_and_unscale_(list, found, at::full({}, factor, list[0].options()));
        finite = found.item<float>() == 0 ? 1 : 0;
    });
    return finite;
}
