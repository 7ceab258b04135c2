// An allocator for tensors on the host: libtorch's own, and a call of Rust after each large allocation.
#include <c10/core/CPUAllocator.h>
#include <c10/core/impl/alloc_cpu.h>

namespace {
struct Allocator final : c10::Allocator {
    void (*allocated)(size_t bytes);
    explicit Allocator(void (*allocated)(size_t)) : allocated(allocated) {}
    c10::DataPtr allocate(size_t bytes) override {
        void *const memory = c10::alloc_cpu(bytes);
        allocated(bytes);
        return {memory, memory, &c10::free_cpu, c10::Device(c10::DeviceType::CPU)};
    }
    c10::DeleterFnPtr raw_deleter() const override { return &c10::free_cpu; }
    void copy_data(void *to, const void *from, std::size_t bytes) const override { default_copy_data(to, from, bytes); }
};
} // namespace

// Calls `allocated` after each allocation from now on, before anything is written there.
extern "C" void hpml_tensor_allocator(void (*allocated)(size_t bytes)) noexcept {
    c10::SetCPUAllocator(new Allocator(allocated), 1); // never freed: tensors may outlive it
}
