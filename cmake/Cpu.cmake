# wlib_cpu_kernels(file.cpp): compiles the family's file once per instruction set into _C; the family's cpu.cpp picks one
# at run time. The file puts everything into `namespace wlib::<family>::WLIB_ISA`.

set(WLIB_ISA_FLAGS_baseline "")
set(WLIB_ISA_FLAGS_avx2 -mavx2 -mfma)
set(WLIB_ISA_FLAGS_avx512 -mavx512f -mavx512bw -mavx512dq -mavx512vl -mprefer-vector-width=512)
set(WLIB_ISA_FLAGS_avx512vnni ${WLIB_ISA_FLAGS_avx512} -mavx512vnni -mgfni)

function(wlib_cpu_kernels source)
  cmake_path(GET CMAKE_CURRENT_SOURCE_DIR FILENAME family)
  cmake_path(GET source STEM stem)
  set(stem ${family}_${stem})
  foreach(isa baseline avx2 avx512 avx512vnni)
    add_library(${stem}_${isa} OBJECT ${source})
    target_link_libraries(${stem}_${isa} PRIVATE wlib_headers)
    target_compile_options(${stem}_${isa} PRIVATE -O3 -fno-math-errno -fno-trapping-math -Wno-psabi ${WLIB_ISA_FLAGS_${isa}})
    target_compile_definitions(${stem}_${isa} PRIVATE WLIB_ISA=${isa})
    target_sources(_C PRIVATE $<TARGET_OBJECTS:${stem}_${isa}>)
  endforeach()
endfunction()
