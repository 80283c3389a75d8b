# Finds torch's headers and libraries through the interpreter, without importing torch and without
# find_package(Torch), which drags in CUDA languages and flags that are not ours.
# Sets WLIB_TORCH_DIR (the package directory).

find_package(Python 3.10 REQUIRED COMPONENTS Interpreter)

function(wlib_find_package_dir module out)
  execute_process(
    COMMAND ${Python_EXECUTABLE} -c
            "import importlib.util as u, os; s = u.find_spec('${module}'); print(os.path.dirname(os.path.realpath(s.origin)) if s and s.origin else '')"
    OUTPUT_VARIABLE dir OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET)
  set(${out} "${dir}" PARENT_SCOPE)
endfunction()

wlib_find_package_dir(torch WLIB_TORCH_DIR)
if(NOT WLIB_TORCH_DIR)
  message(FATAL_ERROR "torch >= 2.11 is not installed for ${Python_EXECUTABLE}: its headers are needed to build wlib")
endif()

add_library(wlib_torch INTERFACE)
target_include_directories(wlib_torch SYSTEM INTERFACE ${WLIB_TORCH_DIR}/include)
# The stable ABI of torch 2.11: one binary serves every later torch, every Python, CPU and CUDA builds.
target_compile_definitions(wlib_torch INTERFACE TORCH_TARGET_VERSION=0x020b000000000000)
# libtorch.so pulls libtorch_cpu.so or, in a CUDA build of torch, libtorch_cuda.so, which exports the
# stream shim that we declare weak: hence no --as-needed.
target_link_directories(wlib_torch INTERFACE ${WLIB_TORCH_DIR}/lib)
target_link_options(wlib_torch INTERFACE -Wl,--no-as-needed)
target_link_libraries(wlib_torch INTERFACE torch torch_cpu)
