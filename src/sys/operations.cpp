// Counts multiplications and additions of the operations that a thread calls, by the shapes that they are called with.
#include "failure.h"

#include <ATen/ATen.h>
#include <ATen/record_function.h>

#include <array>
#include <cstring>
#include <memory>

namespace {
// What this thread counts. Operations that a counted one calls are part of it.
struct Counting {
    at::CallbackHandle handle = at::INVALID_CALLBACK_HANDLE;
    uint64_t operations = 0;
    std::string unknown; // an operation with products that are not counted here
    int within = 0;      // depth of counted operations
};
thread_local std::unique_ptr<Counting> counting;

// Marks a call that is counted, from its start to its end.
struct Counted : at::ObserverContext {};

using Inputs = c10::ArrayRef<const c10::IValue>;

uint64_t product(at::IntArrayRef extents) {
    uint64_t all = 1;
    for (const auto extent : extents) all *= static_cast<uint64_t>(extent);
    return all;
}

at::Tensor tensor(Inputs inputs, size_t index) { return inputs.at(index).toTensor(); }

// Products of matrices `[.. m k]` and `[.. k n]`.
uint64_t of_matrices(const at::Tensor &one, const at::Tensor &other) { return one.numel() * other.size(-1); }

// Products of a convolution, whose gradients have as many: each pixel, of the output or of a transposed one's input, meets each weight.
uint64_t of_convolution(const at::Tensor &pixels, const at::Tensor &weight) {
    return pixels.size(0) * product(pixels.sizes().slice(2)) * weight.numel();
}

// Extents of a convolution's output, with its batch and channels, by the arguments of aten::convolution.
uint64_t of_forward_convolution(Inputs inputs) {
    auto pixels = tensor(inputs, 0);
    const auto weight = tensor(inputs, 1);
    const auto extents = weight.dim() - 2;
    if (pixels.dim() == weight.dim() - 1) pixels = pixels.unsqueeze(0); // without a batch
    if (inputs.at(6).toBool()) return of_convolution(pixels, weight);
    const auto of = [&](size_t argument, int64_t extent) {
        const auto list = inputs.at(argument).toIntVector();
        return list.size() == 1 ? list[0] : list.at(extent);
    };
    uint64_t places = pixels.size(0);
    for (int64_t extent = 0; extent < extents; ++extent) {
        const auto kernel = of(5, extent) * (weight.size(2 + extent) - 1) + 1;
        places *= (pixels.size(2 + extent) + 2 * of(4, extent) - kernel) / of(3, extent) + 1;
    }
    return places * weight.numel();
}

// Products of attention of queries, keys and values `[n heads length width]`: queries with keys, and weights with values.
uint64_t of_attention(const at::Tensor &queries, const at::Tensor &keys, const at::Tensor &values) {
    return queries.numel() * keys.size(-2) + product(queries.sizes().slice(0, 3)) * keys.size(-2) * values.size(-1);
}

// Multiplications of the operation `name`, those of PyTorch's FlopCounterMode but that a group's weights meet only their group's
// channels in the backward pass, too, and that the CPU's attention counts; false if there are none.
bool multiplications(const char *name, Inputs inputs, uint64_t &found) {
    const auto is = [&](const char *other) { return std::strcmp(name, other) == 0; };
    if (is("aten::mm") || is("aten::bmm")) {
        found = of_matrices(tensor(inputs, 0), tensor(inputs, 1));
    } else if (is("aten::addmm") || is("aten::baddbmm")) {
        found = of_matrices(tensor(inputs, 1), tensor(inputs, 2));
    } else if (is("aten::convolution") || is("aten::_convolution")) {
        found = of_forward_convolution(inputs);
    } else if (is("aten::convolution_backward")) {
        const auto gradients = inputs.at(10).toBoolList(); // of input and weight
        const auto pixels = tensor(inputs, inputs.at(7).toBool() ? 1 : 0);
        found = (gradients.get(0) + gradients.get(1)) * of_convolution(pixels, tensor(inputs, 2));
    } else if (is("aten::_scaled_dot_product_flash_attention_for_cpu")) {
        found = of_attention(tensor(inputs, 0), tensor(inputs, 1), tensor(inputs, 2));
    } else if (is("aten::_scaled_dot_product_flash_attention_for_cpu_backward")) {
        found = 2 * of_attention(tensor(inputs, 1), tensor(inputs, 2), tensor(inputs, 3));
    } else {
        return false;
    }
    return true;
}

// Operations with many products that `multiplications` does not count.
bool is_unknown(const char *name) {
    static const std::array<const char *, 16> unknown = {
        "aten::mkldnn_rnn_layer", "aten::mkldnn_rnn_layer_backward", "aten::_trilinear", "aten::mv", "aten::addmv", "aten::addmv_",
        "aten::dot", "aten::vdot", "aten::addbmm", "aten::_scaled_mm", "aten::_int_mm", "aten::_grouped_mm", "aten::addr",
        "aten::_sparse_mm", "aten::_fft_c2c", "aten::_cdist_forward"};
    for (const auto *other : unknown) {
        if (std::strcmp(name, other) == 0) return true;
    }
    return false;
}

std::unique_ptr<at::ObserverContext> enter(const at::RecordFunction &call) {
    auto *own = counting.get();
    if (own == nullptr || own->within > 0) return nullptr;
    uint64_t found = 0;
    try {
        if (!multiplications(call.name(), call.inputs(), found)) {
            if (is_unknown(call.name())) own->unknown = call.name();
            return nullptr;
        }
    } catch (const std::exception &) { // arguments that are not known here
        own->unknown = call.name();
    }
    own->operations += 2 * found;
    own->within += 1;
    return std::make_unique<Counted>();
}

void leave(const at::RecordFunction &, at::ObserverContext *context) {
    if (counting != nullptr && context != nullptr) counting->within -= 1;
}
} // namespace

// Counts from now on what this thread calls. False: it has failed.
extern "C" bool hpml_operations_begin() noexcept {
    return done([] {
        if (counting != nullptr) throw std::runtime_error("operations are counted on this thread already");
        auto begun = std::make_unique<Counting>();
        begun->handle = at::addThreadLocalCallback(
            at::RecordFunctionCallback(enter, leave).needsInputs(true).scopes({at::RecordScope::FUNCTION}));
        counting = std::move(begun);
    });
}

// Ends counting; `operations` are then those since the start. False: there were others that are not counted, whose name is kept.
extern "C" bool hpml_operations_end(uint64_t *operations) noexcept {
    return done([&] {
        const auto ended = std::move(counting);
        if (ended == nullptr) throw std::runtime_error("operations are not counted on this thread");
        at::removeCallback(ended->handle);
        if (!ended->unknown.empty()) throw std::runtime_error(ended->unknown);
        *operations = ended->operations;
    });
}
