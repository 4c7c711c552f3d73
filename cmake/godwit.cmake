# One CMake target per folder of src/: godwit_library(base SOURCES ... DEPS ...) makes godwit_base, and
# every *_test.cc of the folder becomes part of base_test, run by ctest test by test.

add_library(godwit_options INTERFACE)
target_include_directories(godwit_options INTERFACE ${CMAKE_SOURCE_DIR}/src ${CMAKE_BINARY_DIR}/src)
target_compile_options(godwit_options INTERFACE -Wall -Wextra $<$<BOOL:${GODWIT_WERROR}>:-Werror>
  $<$<COMPILE_LANG_AND_ID:CXX,Clang>:-Wno-gnu-statement-expression>)
if(CMAKE_UNITY_BUILD)  # Files that are compiled together aren't headers of one another.
  target_compile_options(godwit_options INTERFACE -Wno-subobject-linkage)
endif()
target_compile_definitions(godwit_options INTERFACE _GNU_SOURCE _FILE_OFFSET_BITS=64)

function(godwit_library name)
  cmake_parse_arguments(ARG "" "" "SOURCES;DEPS;PROTOS" ${ARGN})
  add_library(godwit_${name} STATIC ${ARG_SOURCES})
  target_link_libraries(godwit_${name} PUBLIC godwit_options ${ARG_DEPS})
  foreach(proto ${ARG_PROTOS})
    godwit_proto(godwit_${name} ${proto})
  endforeach()
  file(GLOB tests CONFIGURE_DEPENDS ${CMAKE_CURRENT_SOURCE_DIR}/*_test.cc)
  if(GODWIT_TESTS AND tests)
    godwit_test(${name} SOURCES ${tests} DEPS godwit_${name})
  endif()
endfunction()

# godwit_test(name SOURCES ... DEPS ...): one gtest program, ctest runs each of its tests; alone on two processors:
# many of them use both, measure, or strike at moments. (Two of the engine's side by side take five times as long.)
function(godwit_test name)
  cmake_parse_arguments(ARG "" "" "SOURCES;DEPS" ${ARGN})
  add_executable(${name}_test ${ARG_SOURCES})
  target_link_libraries(${name}_test PRIVATE ${ARG_DEPS} GTest::gtest GTest::gtest_main Threads::Threads)
  # Code of tests runs once; compiling it is a third of a fresh build, and takes 40 % less this way.
  target_compile_options(${name}_test PRIVATE $<$<CONFIG:RelWithDebInfo>:-O0>)
  include(GoogleTest)
  gtest_discover_tests(${name}_test TEST_PREFIX "${name}." DISCOVERY_MODE PRE_TEST
    PROPERTIES TIMEOUT 300 PROCESSORS 2)
endfunction()

# Generates FOLDER/x.pb.{h,cc} so that it is included as "FOLDER/x.pb.h".
function(godwit_proto target proto)
  get_filename_component(stem ${proto} NAME_WE)
  file(RELATIVE_PATH folder ${CMAKE_SOURCE_DIR}/src ${CMAKE_CURRENT_SOURCE_DIR})
  set(out ${CMAKE_BINARY_DIR}/src/${folder}/${stem}.pb)
  file(MAKE_DIRECTORY ${CMAKE_BINARY_DIR}/src/${folder})
  add_custom_command(OUTPUT ${out}.cc ${out}.h
    COMMAND protobuf::protoc --proto_path=${CMAKE_SOURCE_DIR}/src --cpp_out=${CMAKE_BINARY_DIR}/src
            ${CMAKE_CURRENT_SOURCE_DIR}/${proto}
    DEPENDS ${CMAKE_CURRENT_SOURCE_DIR}/${proto} VERBATIM)
  target_sources(${target} PRIVATE ${out}.cc ${out}.h)
  set_source_files_properties(${out}.cc PROPERTIES COMPILE_OPTIONS -w)
  target_link_libraries(${target} PUBLIC protobuf::libprotobuf)
endfunction()

# The same for gRPC services: FOLDER/x.grpc.pb.{h,cc}, of a proto whose messages another target has. Only
# src/rpc uses it: gRPC's headers cost seconds per translation unit.
function(godwit_grpc target proto)
  get_filename_component(stem ${proto} NAME_WE)
  get_filename_component(source ${proto} ABSOLUTE)
  get_filename_component(source_dir ${source} DIRECTORY)
  file(RELATIVE_PATH folder ${CMAKE_SOURCE_DIR}/src ${source_dir})
  set(out ${CMAKE_BINARY_DIR}/src/${folder}/${stem}.grpc.pb)
  file(MAKE_DIRECTORY ${CMAKE_BINARY_DIR}/src/${folder})
  add_custom_command(OUTPUT ${out}.cc ${out}.h
    COMMAND protobuf::protoc --proto_path=${CMAKE_SOURCE_DIR}/src --grpc_out=${CMAKE_BINARY_DIR}/src
            --plugin=protoc-gen-grpc=$<TARGET_FILE:gRPC::grpc_cpp_plugin> ${source}
    DEPENDS ${source} VERBATIM)
  target_sources(${target} PRIVATE ${out}.cc ${out}.h)
  set_source_files_properties(${out}.cc PROPERTIES COMPILE_OPTIONS "-w;-O1;-g0")
  target_link_libraries(${target} PUBLIC gRPC::grpc++)
endfunction()
