# Decides whether CUDA kernels are built: by whether an nvcc is there, never by whether a GPU is.
# wlib_cuda_kernels(file.cu [PORTABLE] [ARCHS archs...] [INSTANCES values...]): compiles the family's file into _C if there
# is an nvcc: for 90a; with PORTABLE for all of WLIB_CUDA_ARCHS in one object, with -DWLIB_HAS_SM<arch> for each; with ARCHS
# once for each of them that is in WLIB_CUDA_ARCHS, with -DWLIB_ARCH=<number>; with INSTANCES once per value with
# -DWLIB_INSTANCE=<value>, so that instances compile side by side.

set(WLIB_CUDA_ARCHS 90a CACHE STRING "Architectures to compile for: 90a, and 100a, 120a where there are kernels for them")
foreach(arch IN LISTS WLIB_CUDA_ARCHS)
  if(NOT arch MATCHES "^(90a|100a|120a)$")
    message(FATAL_ERROR "WLIB_CUDA_ARCHS: expected some of 90a, 100a, 120a, got ${arch}")
  endif()
endforeach()
if(NOT 90a IN_LIST WLIB_CUDA_ARCHS)
  message(FATAL_ERROR "WLIB_CUDA_ARCHS: expected 90a among them, got ${WLIB_CUDA_ARCHS}")
endif()

# They take more room than the code itself.
option(WLIB_LINEINFO "Source lines in the machine code, for profilers and compute-sanitizer" OFF)

set(WLIB_HAS_CUDA FALSE)
set(WLIB_CUDA_SUMMARY "none (WLIB_CUDA=OFF)")
if(NOT WLIB_CUDA STREQUAL "OFF")
  if(NOT CMAKE_CUDA_COMPILER)
    # The toolkit from PyPI (extra build-cuda) lives in a namespace package.
    execute_process(
      COMMAND ${Python_EXECUTABLE} -c
              "import sysconfig, os; p = os.path.join(sysconfig.get_paths()['purelib'], 'nvidia', 'cu13', 'bin', 'nvcc'); print(p if os.path.exists(p) else '')"
      OUTPUT_VARIABLE pypi_nvcc OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET)
    find_program(system_nvcc nvcc HINTS $ENV{CUDA_HOME}/bin PATHS /usr/local/cuda/bin)
    if(system_nvcc)
      set(CMAKE_CUDA_COMPILER ${system_nvcc})
    elseif(pypi_nvcc)
      set(CMAKE_CUDA_COMPILER ${pypi_nvcc})
    endif()
  endif()
  if(CMAKE_CUDA_COMPILER)
    # nvcc looks for the runtime in lib64, which is called lib in the toolkit from PyPI.
    cmake_path(GET CMAKE_CUDA_COMPILER PARENT_PATH cuda_bin)
    cmake_path(GET cuda_bin PARENT_PATH cuda_root)
    if(EXISTS ${cuda_root}/lib/libcudart_static.a)
      set(CMAKE_CUDA_FLAGS "-L${cuda_root}/lib ${CMAKE_CUDA_FLAGS}")
    endif()
    set(CMAKE_CUDA_ARCHITECTURES 90a-real)
    enable_language(CUDA)
    set(WLIB_HAS_CUDA TRUE)
    list(TRANSFORM WLIB_CUDA_ARCHS PREPEND sm_ OUTPUT_VARIABLE archs)
    list(JOIN archs ", " archs)
    set(WLIB_CUDA_SUMMARY "${archs} (nvcc ${CMAKE_CUDA_COMPILER_VERSION})")
  elseif(WLIB_CUDA STREQUAL "ON")
    message(FATAL_ERROR "WLIB_CUDA=ON, but there is no nvcc: put one on PATH or `pip install .[build-cuda]`")
  else()
    set(WLIB_CUDA_SUMMARY "none (no nvcc found)")
  endif()
endif()

if(WLIB_HAS_CUDA)
  include(Cutlass)
  set(CMAKE_CUDA_STANDARD 20)
  set(CMAKE_CUDA_STANDARD_REQUIRED ON)
  set(CMAKE_CUDA_RUNTIME_LIBRARY Static)
  # A spill, local memory, a serialised wgmma or an ignored setmaxnreg halves a kernel's speed without a
  # word, so each of them fails the build.
  set(CMAKE_CUDA_COMPILER_LAUNCHER ${CMAKE_SOURCE_DIR}/cmake/ptxas_gate.sh ${CMAKE_CXX_COMPILER_LAUNCHER})
  add_library(wlib_cuda_flags INTERFACE)
  target_compile_options(
    wlib_cuda_flags
    INTERFACE $<$<COMPILE_LANGUAGE:CUDA>:-O3
              --expt-relaxed-constexpr
              $<$<BOOL:${WLIB_LINEINFO}>:-lineinfo>
              -Xcompiler=-fvisibility=hidden,-Wno-unknown-pragmas
              -Xptxas=--warn-on-spills,--warn-on-local-memory-usage
              -Werror=all-warnings
              --compress-mode=size>)
endif()

function(wlib_cuda_kernels source)
  if(NOT WLIB_HAS_CUDA)
    return()
  endif()
  cmake_parse_arguments(PARSE_ARGV 1 arg "PORTABLE" "" "ARCHS;INSTANCES")
  cmake_path(GET CMAKE_CURRENT_SOURCE_DIR FILENAME family)
  cmake_path(GET source STEM stem)
  if(NOT arg_ARCHS)
    set(arg_ARCHS 90a)
  endif()
  if(NOT arg_INSTANCES)
    set(arg_INSTANCES 0)
  endif()
  foreach(arch IN LISTS arg_ARCHS)
    if(NOT arch IN_LIST WLIB_CUDA_ARCHS)
      continue()
    endif()
    foreach(value IN LISTS arg_INSTANCES)
      set(target ${family}_${stem}_${value})
      if(NOT arch STREQUAL 90a)
        string(APPEND target _sm${arch})
      endif()
      add_library(${target} OBJECT ${source})
      target_link_libraries(${target} PRIVATE wlib_headers wlib_cutlass wlib_cuda_flags)
      target_compile_definitions(${target} PRIVATE WLIB_INSTANCE=${value})
      if(NOT arch STREQUAL 90a)
        string(REPLACE a "" number ${arch})
        target_compile_definitions(${target} PRIVATE WLIB_ARCH=${number})
        set_target_properties(${target} PROPERTIES CUDA_ARCHITECTURES ${arch}-real)
      endif()
      if(arg_PORTABLE)
        list(TRANSFORM WLIB_CUDA_ARCHS TOUPPER OUTPUT_VARIABLE built)
        list(TRANSFORM built PREPEND WLIB_HAS_SM)
        target_compile_definitions(${target} PRIVATE ${built})
        list(TRANSFORM WLIB_CUDA_ARCHS APPEND -real OUTPUT_VARIABLE real)
        set_target_properties(${target} PROPERTIES CUDA_ARCHITECTURES "${real}")
      endif()
      target_sources(_C PRIVATE $<TARGET_OBJECTS:${target}>)
    endforeach()
  endforeach()
endfunction()
