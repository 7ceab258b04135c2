// libtorch's autocast, per device and thread.
#include <ATen/autocast_mode.h>

#include <memory>

namespace {
struct Before {
    at::DeviceType device;
    bool enabled;
    at::ScalarType dtype;
};
} // namespace

// Turns autocast to bfloat16, or IEEE half precision, on for this thread and the CPU, or a GPU; returns what was so before.
extern "C" void *hpml_autocast_begin(bool gpu, bool half) noexcept {
    const auto device = gpu ? at::kCUDA : at::kCPU;
    auto before = std::make_unique<Before>(
        Before{device, at::autocast::is_autocast_enabled(device), at::autocast::get_autocast_dtype(device)});
    at::autocast::set_autocast_enabled(device, true);
    at::autocast::set_autocast_dtype(device, half ? at::kHalf : at::kBFloat16);
    at::autocast::increment_nesting();
    return before.release();
}

// Restores that. The outermost end forgets the weights that were cast: they are cast anew after they have changed.
extern "C" void hpml_autocast_end(void *pointer) noexcept {
    const std::unique_ptr<Before> before(static_cast<Before *>(pointer));
    if (at::autocast::decrement_nesting() == 0) at::autocast::clear_cache();
    at::autocast::set_autocast_dtype(before->device, before->dtype);
    at::autocast::set_autocast_enabled(before->device, before->enabled);
}
