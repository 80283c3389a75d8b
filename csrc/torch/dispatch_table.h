// The dispatch tables of a family's ops as one text, read by python/wlib/info.py through ctypes: a
// line `op: row` for each row, in the order in which the rows are tried.
#pragma once

#include <initializer_list>
#include <sstream>
#include <string>
#include <utility>

// Rows of kernels that are only there in a build with CUDA.
#ifdef WLIB_HAS_CUDA
#define WLIB_CUDA_ROWS(rows) rows
#else
#define WLIB_CUDA_ROWS(rows) ""
#endif

#define WLIB_EXPORT extern "C" __attribute__((visibility("default")))

namespace wlib {

// Of pairs (op, its rows, each ending in a newline).
inline std::string dispatch_table(
    std::initializer_list<std::pair<const char*, std::string>> tables) {
  std::string text;
  for (const auto& [op, rows] : tables) {
    std::istringstream lines(rows);
    for (std::string row; std::getline(lines, row);) text += std::string(op) + ": " + row + "\n";
  }
  return text;
}

}  // namespace wlib
