# CuTe and CUTLASS headers: -DWLIB_CUTLASS_DIR=<include dir>, else the PyPI package nvidia-cutlass.

set(WLIB_CUTLASS_DIR "" CACHE PATH "Directory that holds cute/ and cutlass/ headers")
if(NOT WLIB_CUTLASS_DIR)
  wlib_find_package_dir(cutlass_library cutlass_package)
  if(cutlass_package)
    set(WLIB_CUTLASS_DIR ${cutlass_package}/source/include)
  endif()
endif()
if(NOT EXISTS ${WLIB_CUTLASS_DIR}/cute/arch/mma_sm90_gmma.hpp)
  message(FATAL_ERROR "CUTLASS headers not found: `pip install --no-deps nvidia-cutlass==4.2.0.0`, or -DWLIB_CUTLASS_DIR=<include dir>")
endif()

add_library(wlib_cutlass INTERFACE)
target_include_directories(wlib_cutlass SYSTEM INTERFACE ${WLIB_CUTLASS_DIR})
