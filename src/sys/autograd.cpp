// Calls of libtorch's autograd that tch lacks: hooks on gradients, and operations whose gradient is computed in Rust.
#include "failure.h"

#include <ATen/ATen.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/csrc/autograd/function_hook.h>
#include <torch/csrc/autograd/variable.h>
#include <torch/custom_class.h>

#include <array>
#include <memory>
#include <string>

namespace {
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

const at::Tensor &tensor(const void *pointer) { return *static_cast<const at::Tensor *>(pointer); }

// Receiver of the hooks' calls; null outside of hpml_hooks_backward.
struct Listener {
    void (*ready)(void *context, size_t parameter) = nullptr;
    void *context = nullptr;
};

struct Hook : torch::autograd::PostAccumulateGradHook {
    std::shared_ptr<const Listener> listener;
    size_t parameter;
    Hook(std::shared_ptr<const Listener> listener, size_t parameter) : listener(std::move(listener)), parameter(parameter) {}
    void operator()(const at::Tensor &) override {
        if (listener->ready != nullptr) listener->ready(listener->context, parameter);
    }
};

// Inputs of an operation.
constexpr size_t MOST_INPUTS = 4;

// A closure of Rust that computes the gradients of an operation's inputs from that of its output. It sets `gradients` to new tensors
// where `needed` says so, and returns whether it could.
struct Closure : torch::CustomClassHolder {
    using Call = bool (*)(void *closure, const void *gradient, const bool *needed, void **gradients, size_t inputs);
    using Drop = void (*)(void *closure);
    void *closure;
    Call call;
    Drop drop;
    Closure(void *closure, Call call, Drop drop) : closure(closure), call(call), drop(drop) {}
    ~Closure() override { drop(closure); }
};

struct Operation : torch::autograd::Function<Operation> {
    static at::Tensor forward(AutogradContext *context, at::TensorList inputs, const at::Tensor *output,
                              c10::intrusive_ptr<Closure> closure) {
        context->saved_data["closure"] = c10::IValue::make_capsule(std::move(closure));
        context->saved_data["inputs"] = static_cast<int64_t>(inputs.size());
        return *output;
    }

    static variable_list backward(AutogradContext *context, variable_list gradients) {
        const auto holder = context->saved_data["closure"].toCapsule();
        const auto &closure = static_cast<const Closure &>(*holder);
        const auto inputs = static_cast<size_t>(context->saved_data["inputs"].toInt());
        std::array<bool, MOST_INPUTS> needed{};
        std::array<void *, MOST_INPUTS> made{};
        for (size_t input = 0; input < inputs; ++input) needed[input] = context->needs_input_grad(input);
        const bool is_done = closure.call(closure.closure, &gradients[0], needed.data(), made.data(), inputs);
        variable_list result(inputs + 2); // and of the two other arguments
        for (size_t input = 0; input < inputs; ++input) {
            if (made[input] == nullptr) continue;
            const std::unique_ptr<at::Tensor> gradient(static_cast<at::Tensor *>(made[input]));
            result[input] = *gradient;
        }
        TORCH_CHECK(is_done, "the gradient of an operation of hpml failed");
        return result;
    }
};
} // namespace

// Sets a hook on each of `count` parameters, which are leaves of the graph.
extern "C" void *hpml_hooks(const void *const *parameters, size_t count) noexcept {
    return guarded(static_cast<void *>(nullptr), [&]() -> void * {
        auto listener = std::make_shared<Listener>();
        for (size_t index = 0; index < count; ++index) {
            torch::autograd::impl::set_post_acc_grad_hooks(tensor(parameters[index]), std::make_unique<Hook>(listener, index));
        }
        return new std::shared_ptr<Listener>(std::move(listener));
    });
}
extern "C" void hpml_hooks_free(void *hooks) noexcept { delete static_cast<std::shared_ptr<Listener> *>(hooks); }

// Runs the backward pass from `factor` times `loss`.
extern "C" bool hpml_backward(const void *loss, double factor) noexcept {
    return done([&] { tensor(loss).backward(at::full_like(tensor(loss).detach(), factor)); });
}

// The same; `ready` is called when the gradient of a parameter is complete.
extern "C" bool hpml_hooks_backward(void *hooks, const void *loss, double factor, void (*ready)(void *, size_t),
                                    void *context) noexcept {
    auto &listener = **static_cast<std::shared_ptr<Listener> *>(hooks);
    listener = {ready, context};
    const bool is_done = hpml_backward(loss, factor);
    listener = {};
    return is_done;
}

// The node of the graph that makes `output` of `count` inputs; takes the closure.
extern "C" void *hpml_operation(const void *const *inputs, size_t count, const void *output, void *closure, Closure::Call call,
                                Closure::Drop drop) noexcept {
    return guarded(static_cast<void *>(nullptr), [&]() -> void * {
        auto holder = c10::make_intrusive<Closure>(closure, call, drop);
        TORCH_CHECK(count <= MOST_INPUTS, "an operation of hpml has at most ", MOST_INPUTS, " inputs");
        variable_list list;
        for (size_t input = 0; input < count; ++input) list.push_back(tensor(inputs[input]));
        return new at::Tensor(Operation::apply(at::TensorList(list), &tensor(output), std::move(holder)));
    });
}
