// The libtorch that this process has loaded. Asked of the loader, not of libtorch, and with nothing of its headers: it may be
// another one than hpml was built with.
#include <dlfcn.h>

#include <cstdint>

namespace {
void *version_function() { return dlsym(RTLD_DEFAULT, "aoti_torch_abi_version"); }
} // namespace

// Version as TORCH_ABI_VERSION of torch/headeronly/version.h: major, minor and patch in the three highest bytes. 0: the library is
// too old to report one.
extern "C" uint64_t hpml_libtorch_loaded() noexcept {
    auto *version = reinterpret_cast<uint64_t (*)()>(version_function());
    return version == nullptr ? 0 : version();
}

// File of the library that reports it; without one, of the library that every libtorch since 2.0 has. Null: there is none.
extern "C" const char *hpml_libtorch_file() noexcept {
    Dl_info found{};
    void *address = version_function();
    if (address == nullptr) address = dlsym(RTLD_DEFAULT, "_ZN2at8autocast11clear_cacheEv");
    return address != nullptr && dladdr(address, &found) != 0 ? found.dli_fname : nullptr;
}
