// libtorch's threads for loops of hpml: libtorch's own kernels and hpml's share one pool. Compiled with OpenMP, as libtorch is.
#include <ATen/Parallel.h>

extern "C" size_t hpml_threads() noexcept { return static_cast<size_t>(at::get_num_threads()); }

// Number of this thread among those of hpml_parallel_for, below hpml_threads.
extern "C" size_t hpml_thread_number() noexcept { return static_cast<size_t>(at::get_thread_num()); }

// Calls `body(context, begin, end)` on parts of 0 to `count`, of at least `grain` but for the last. `body` throws nothing.
extern "C" void hpml_parallel_for(size_t count, size_t grain, void (*body)(void *, size_t, size_t), void *context) noexcept {
    at::parallel_for(0, static_cast<int64_t>(count), static_cast<int64_t>(grain), [&](int64_t begin, int64_t end) {
        body(context, static_cast<size_t>(begin), static_cast<size_t>(end));
    });
}
