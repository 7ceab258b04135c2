// Calls of libtorch that tch lacks. Tensors are at::Tensor*, as tch's Tensor::as_ptr gives them. Streams and events use
// libtorch's interface for all devices, so that this file needs neither CUDA's headers nor its libraries.
#include "failure.h"

#include <ATen/ATen.h>
#include <c10/core/CachingDeviceAllocator.h>
#include <c10/core/Event.h>
#include <c10/core/impl/VirtualGuardImpl.h>
#include <torch/csrc/profiler/stubs/base.h>

#include <string>

// Message of the last call on this thread that failed.
thread_local std::string hpml_failure_text;

namespace {
const at::Tensor &tensor(const void *pointer) { return *static_cast<const at::Tensor *>(pointer); }
c10::Stream &stream(void *pointer) { return *static_cast<c10::Stream *>(pointer); }
c10::Event &event(void *pointer) { return *static_cast<c10::Event *>(pointer); }
c10::Device gpu(int index) { return {c10::DeviceType::CUDA, static_cast<c10::DeviceIndex>(index)}; }
c10::impl::VirtualGuardImpl guard() { return c10::impl::VirtualGuardImpl(c10::DeviceType::CUDA); }
} // namespace

extern "C" const char *hpml_failure() noexcept { return hpml_failure_text.c_str(); }

extern "C" void *hpml_im2col_conv2d(const void *input, const void *weight, int64_t kernel, int64_t stride,
                                    int64_t padding) noexcept {
    return guarded<>(static_cast<void *>(nullptr), [&]() -> void * {
        return new at::Tensor(
            at::thnn_conv2d(tensor(input), tensor(weight), {kernel, kernel}, {}, {stride, stride}, {padding, padding}));
    });
}

// Allows TF32 for float32 products, and turns on cuDNN's benchmark mode, which picks a convolution for each shape.
extern "C" void hpml_fast_kernels(bool tf32) noexcept {
    guarded(false, [&] {
        at::globalContext().setBenchmarkCuDNN(true);
        at::globalContext().setAllowTF32CuDNN(tf32);
        at::globalContext().setAllowTF32CuBLAS(tf32);
        return true;
    });
}

extern "C" bool hpml_gpu_use(int index) noexcept {
    return guarded(false, [&] {
        guard().setDevice(gpu(index));
        return true;
    });
}

// Releases cached memory that no tensor uses, if there is a GPU.
extern "C" void hpml_gpu_give_back() noexcept {
    guarded(false, [&] {
        if (c10::impl::hasDeviceGuardImpl(c10::DeviceType::CUDA)) at::getDeviceAllocator(c10::DeviceType::CUDA)->emptyCache();
        return true;
    });
}

// Peak of the bytes that tensors have used since the last `forget`, and bytes of the whole GPU.
extern "C" bool hpml_gpu_memory(int index, bool forget, uint64_t *most, uint64_t *all) noexcept {
    return guarded(false, [&] {
        auto *allocator = at::getDeviceAllocator(c10::DeviceType::CUDA);
        const auto device = static_cast<c10::DeviceIndex>(index);
        if (forget) allocator->resetPeakStats(device);
        const auto total = static_cast<size_t>(c10::CachingAllocator::StatType::AGGREGATE);
        *most = static_cast<uint64_t>(allocator->getDeviceStats(device).allocated_bytes[total].peak);
        *all = allocator->getMemoryInfo(device).second;
        return true;
    });
}

// Begins an NVTX range, if there is a GPU; null ends the innermost one.
extern "C" void hpml_range(const char *name) noexcept {
    guarded(false, [&] {
        const auto *stubs = torch::profiler::impl::cudaStubs();
        if (stubs->enabled()) name != nullptr ? stubs->rangePush(name) : stubs->rangePop();
        return true;
    });
}

// The current stream of a GPU, or a new one of high priority.
extern "C" void *hpml_stream(int index, bool own) noexcept {
    return guarded(static_cast<void *>(nullptr), [&]() -> void * {
        return new c10::Stream(own ? guard().getNewStream(gpu(index), -1) : guard().getStream(gpu(index)));
    });
}
extern "C" void hpml_stream_free(void *pointer) noexcept { delete static_cast<c10::Stream *>(pointer); }
extern "C" void *hpml_stream_handle(void *pointer) noexcept {
    return guarded(static_cast<void *>(nullptr), [&] { return guard().getStreamNativeHandle(stream(pointer)); });
}
extern "C" bool hpml_stream_synchronize(void *pointer) noexcept {
    return guarded(false, [&] {
        stream(pointer).synchronize();
        return true;
    });
}
extern "C" bool hpml_stream_wait(void *pointer, void *other) noexcept {
    return guarded(false, [&] {
        event(other).block(stream(pointer));
        return true;
    });
}

// Records an event, which completes with all work enqueued on the stream before it.
extern "C" void *hpml_event(void *pointer) noexcept {
    return guarded(static_cast<void *>(nullptr), [&]() -> void * {
        auto made = std::make_unique<c10::Event>(c10::DeviceType::CUDA, c10::EventFlag::BACKEND_DEFAULT);
        made->record(stream(pointer));
        return made.release();
    });
}
extern "C" void hpml_event_free(void *pointer) noexcept { delete static_cast<c10::Event *>(pointer); }
// 1: the event is complete, 0: it is not, -1: the device has failed.
extern "C" int hpml_event_happened(void *pointer) noexcept {
    return guarded(-1, [&] { return event(pointer).query() ? 1 : 0; });
}
extern "C" bool hpml_event_synchronize(void *pointer) noexcept {
    return guarded(false, [&] {
        event(pointer).synchronize();
        return true;
    });
}
// Milliseconds between two complete events; negative: the device has failed.
extern "C" double hpml_event_elapsed(void *from, void *to) noexcept {
    return guarded(-1.0, [&] { return event(from).elapsedTime(event(to)); });
}
