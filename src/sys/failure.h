// Exceptions of C++ as messages: no call of Rust may be left by one.
#pragma once

#include <exception>
#include <string>

// Message of the last call on this thread that failed; defined in libtorch.cpp.
extern thread_local std::string hpml_failure_text;

// Returns what `work` returns; if it throws, returns `otherwise` and keeps the message for hpml_failure.
template <class Value, class Work> Value guarded(Value otherwise, Work work) noexcept {
    try {
        return work();
    } catch (const std::exception &error) {
        hpml_failure_text = error.what();
    } catch (...) {
        hpml_failure_text = "unknown C++ exception";
    }
    return otherwise;
}

// Whether `work` ends without an exception, whose message is kept.
template <class Work> bool done(Work work) noexcept {
    return guarded(false, [&] {
        work();
        return true;
    });
}
