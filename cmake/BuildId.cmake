# WLIB_BUILD_ID: a hash of every source the library is made of. A test recomputes it, so that nobody tests a
# stale library by mistake.

file(GLOB_RECURSE id_sources CONFIGURE_DEPENDS ${CMAKE_SOURCE_DIR}/csrc/*.cpp ${CMAKE_SOURCE_DIR}/csrc/*.cu
     ${CMAKE_SOURCE_DIR}/csrc/*.h ${CMAKE_SOURCE_DIR}/include/*.h)
list(FILTER id_sources EXCLUDE REGEX "/csrc/probe/")
list(SORT id_sources)
set_property(DIRECTORY APPEND PROPERTY CMAKE_CONFIGURE_DEPENDS ${id_sources})
set(id_text "")
foreach(path IN LISTS id_sources)
  file(SHA256 ${path} digest)
  file(RELATIVE_PATH name ${CMAKE_SOURCE_DIR} ${path})
  string(APPEND id_text "${name} ${digest}\n")
endforeach()
string(SHA256 id_digest "${id_text}")
string(SUBSTRING ${id_digest} 0 12 WLIB_BUILD_ID)
