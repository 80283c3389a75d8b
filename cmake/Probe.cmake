# wlib_probe: a pybind11 module for the tests. It holds number formats, layouts and the simulator.
# Kernels in csrc/probe/sim_*.cpp are compiled for the host with the thread sanitizer's calls but without
# its runtime: tests/sim/hooks.cpp receives every load and store and is the memory checker.

if(NOT WLIB_HAS_CUDA)
  message(FATAL_ERROR "WLIB_PROBE needs the CUDA headers (cuda_bf16.h): put an nvcc on PATH or `pip install .[build-cuda]`")
endif()
find_package(Python 3.10 REQUIRED COMPONENTS Interpreter Development.Module)
execute_process(COMMAND ${Python_EXECUTABLE} -m pybind11 --cmakedir OUTPUT_VARIABLE pybind11_DIR
                OUTPUT_STRIP_TRAILING_WHITESPACE COMMAND_ERROR_IS_FATAL ANY)
find_package(pybind11 CONFIG REQUIRED)

file(GLOB probe_sources CONFIGURE_DEPENDS ${CMAKE_SOURCE_DIR}/csrc/probe/*.cpp ${CMAKE_SOURCE_DIR}/tests/sim/*.cpp)
set(instrumented ${probe_sources})
list(FILTER instrumented INCLUDE REGEX "/csrc/probe/sim_[^/]*\\.cpp$")
pybind11_add_module(wlib_probe MODULE NO_EXTRAS ${probe_sources})
target_include_directories(wlib_probe PRIVATE ${CMAKE_SOURCE_DIR}/tests)
target_include_directories(wlib_probe SYSTEM PRIVATE ${CMAKE_CUDA_TOOLKIT_INCLUDE_DIRECTORIES})
foreach(dir IN LISTS CMAKE_CUDA_TOOLKIT_INCLUDE_DIRECTORIES)
  target_include_directories(wlib_probe SYSTEM PRIVATE ${dir}/cccl)
endforeach()
target_link_libraries(wlib_probe PRIVATE wlib_headers wlib_cutlass ${CMAKE_DL_LIBS})
target_compile_options(wlib_probe PRIVATE -O2 -g1 -fno-gnu-unique)
target_link_options(wlib_probe PRIVATE -Wl,-Bsymbolic)
set_source_files_properties(
  ${instrumented} PROPERTIES COMPILE_OPTIONS "-fsanitize=thread;--param;tsan-instrument-func-entry-exit=0")
