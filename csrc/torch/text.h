// A `str` argument of an op.
#pragma once

#include <torch/csrc/stable/library.h>

#include <string>

namespace wlib {

// A type of our own, because torch's conversion to std::string, up to 2.13, leaks one per call
// (pytorch#191340).
struct Text : std::string {
  using std::string::string;
};

}  // namespace wlib

template <>
struct torch::stable::detail::ToImpl<wlib::Text> {
  static wlib::Text call(StableIValue value, uint64_t, bool) {
    const StringHandle handle = to<StringHandle>(value);
    size_t length;
    STABLE_TORCH_ERROR_CODE_CHECK(torch_string_length(handle, &length));
    const char* data;
    STABLE_TORCH_ERROR_CODE_CHECK(torch_string_c_str(handle, &data));
    const wlib::Text text(data, length);
    STABLE_TORCH_ERROR_CODE_CHECK(torch_delete_string(handle));  // the argument is ours
    return text;
  }
};
