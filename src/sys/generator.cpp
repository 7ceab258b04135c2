// State of libtorch's random number generators, which dropout draws from.
#include "failure.h"

#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>
#include <ATen/Context.h>

#include <cstring>
#include <exception>
#include <mutex>
#include <string>

namespace {
// The default generator of the CPU (`gpu` below 0) or of a GPU.
const at::Generator &generator(int gpu) {
    if (gpu < 0) return at::detail::getDefaultCPUGenerator();
    return at::globalContext().defaultGenerator({c10::DeviceType::CUDA, static_cast<c10::DeviceIndex>(gpu)});
}
} // namespace

extern "C" bool hpml_generator_seed(int gpu, uint64_t seed) noexcept {
    return done([&] {
        auto own = generator(gpu);
        const std::lock_guard<std::mutex> lock(own.mutex());
        own.set_current_seed(seed);
    });
}

// Bytes of the state. Writes them to `state` if it is not null and has room for them; 0: it has failed.
extern "C" size_t hpml_generator_state(int gpu, uint8_t *state, size_t room) noexcept {
    size_t bytes = 0;
    done([&] {
        auto own = generator(gpu);
        const std::lock_guard<std::mutex> lock(own.mutex());
        const auto values = own.get_state().contiguous();
        if (state != nullptr && room >= values.nbytes()) std::memcpy(state, values.const_data_ptr(), values.nbytes());
        bytes = values.nbytes();
    });
    return bytes;
}

extern "C" bool hpml_generator_restore(int gpu, const uint8_t *state, size_t bytes) noexcept {
    return done([&] {
        const auto values = at::empty({static_cast<int64_t>(bytes)}, at::kByte);
        std::memcpy(values.mutable_data_ptr(), state, bytes);
        auto own = generator(gpu);
        const std::lock_guard<std::mutex> lock(own.mutex());
        own.set_state(values);
    });
}
