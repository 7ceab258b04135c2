// CUDA graphs: work of a GPU, captured once and replayed in one call. They are libtorch's class, whose allocator reserves a
// graph's memory; it is called by its symbols, since its header needs CUDA's.
#include "failure.h"

#include <c10/core/impl/VirtualGuardImpl.h>
#include <torch/headeronly/version.h>

#include <dlfcn.h>

#include <cstdint>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <tuple>
#include <utility>

namespace {
using Pool = std::pair<unsigned long long, unsigned long long>; // c10::MempoolId_t

template <class Function> Function *find(const char *name) {
    void *found = dlsym(RTLD_DEFAULT, name);
    if (found == nullptr) throw std::runtime_error(std::string("this libtorch has no ") + name);
    return reinterpret_cast<Function *>(found);
}

// Neither these names nor the size of the class are part of libtorch's interface: for another version read its header again, and
// what `nm -D` shows of libtorch_cuda.so. hpml refuses to run with another libtorch than it was built with (version.rs).
#if TORCH_VERSION_MAJOR != 2 || TORCH_VERSION_MINOR != 13
#error "src/sys/graph.cpp: compare at::cuda::CUDAGraph of this libtorch with what follows, which is that of 2.13"
#endif

// at::cuda::CUDAGraph's members, with `this` as the first argument. Source: ATen/cuda/CUDAGraph.h of libtorch 2.13.
struct Functions {
    void (*construct)(void *, bool) = find<void(void *, bool)>("_ZN2at4cuda9CUDAGraphC1Eb");
    void (*destroy)(void *) = find<void(void *)>("_ZN2at4cuda9CUDAGraphD1Ev");
    void (*begin)(void *, Pool, int) =
        find<void(void *, Pool, int)>("_ZN2at4cuda9CUDAGraph13capture_beginESt4pairIyyE21cudaStreamCaptureMode");
    void (*end)(void *) = find<void(void *)>("_ZN2at4cuda9CUDAGraph11capture_endEv");
    void (*replay)(void *) = find<void(void *)>("_ZN2at4cuda9CUDAGraph6replayEv");
    Pool (*pool)() = find<Pool()>("_ZN2at4cuda17graph_pool_handleEv");
};

const Functions &functions() {
    static const Functions found;
    return found;
}

class Graph {
    // at::cuda::CUDAGraph, which takes 344 bytes in 2.13 (104 in 2.11, 448 in 2.15).
    alignas(16) unsigned char memory[1024];
    // Stream to return to after the capture; set during it.
    std::optional<c10::Stream> before;

  public:
    Graph() { functions().construct(memory, false); }
    ~Graph() {
        try {
            if (before) end();
        } catch (...) { // the capture has failed already
        }
        functions().destroy(memory);
    }
    Graph(const Graph &) = delete;
    Graph &operator=(const Graph &) = delete;

    // Captures on a new stream: CUDA cannot capture its default stream.
    void begin(c10::Device device, Pool pool) {
        const c10::impl::VirtualGuardImpl guard(device.type());
        before = guard.exchangeStream(guard.getNewStream(device, 0));
        const int thread_local_mode = 1; // cudaStreamCaptureModeThreadLocal: NCCL's threads may do what a capture may not
        functions().begin(memory, pool, thread_local_mode);
    }
    void end() {
        const c10::Stream own = *std::exchange(before, std::nullopt);
        const c10::impl::VirtualGuardImpl guard(own.device_type());
        struct Back {
            const c10::impl::VirtualGuardImpl &guard;
            c10::Stream stream;
            ~Back() { guard.exchangeStream(stream); }
        } back{guard, own};
        functions().end(memory);
    }
    void replay() { functions().replay(memory); }
};
} // namespace

// Id of memory shared by graphs that are replayed in the order of their capture.
extern "C" bool hpml_graph_pool(unsigned long long *pool) noexcept {
    return done([&] { std::tie(pool[0], pool[1]) = functions().pool(); });
}

// Begins to capture what this thread, and autograd for it, enqueues on the GPU; none of it runs. Null: it has failed.
extern "C" void *hpml_graph_begin(int index, const unsigned long long *pool) noexcept {
    std::unique_ptr<Graph> graph;
    const bool begun = done([&] {
        graph = std::make_unique<Graph>();
        graph->begin({c10::DeviceType::CUDA, static_cast<c10::DeviceIndex>(index)}, {pool[0], pool[1]});
    });
    return begun ? graph.release() : nullptr;
}

extern "C" bool hpml_graph_end(void *graph) noexcept {
    return done([&] { static_cast<Graph *>(graph)->end(); });
}

// Enqueues the captured work on the current stream.
extern "C" bool hpml_graph_replay(void *graph) noexcept {
    return done([&] { static_cast<Graph *>(graph)->replay(); });
}

extern "C" void hpml_graph_free(void *graph) noexcept { delete static_cast<Graph *>(graph); }
