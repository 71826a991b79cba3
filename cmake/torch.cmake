# Asks the installed torch where it is and how it was built, and checks that a module built here
# can exchange Python objects with it. Sets TORCH_VERSION, TORCH_CXX11_ABI, TORCH_CUDA_VERSION,
# TORCH_INCLUDE_DIRS, TORCH_LIBRARIES, TORCH_CUDA_LIBRARIES (empty for a torch
# without CUDA) and TORCH_PYBIND11_INTERNALS.

execute_process(
  COMMAND "${Python_EXECUTABLE}" "${CMAKE_CURRENT_LIST_DIR}/describe_torch.py"
  OUTPUT_VARIABLE torch_description
  OUTPUT_STRIP_TRAILING_WHITESPACE
  RESULT_VARIABLE torch_failed)
if(torch_failed)
  message(
    FATAL_ERROR
      "torch cannot be imported by ${Python_EXECUTABLE}. Install torch 2.11 or later first, then "
      "build against it with: pip install --no-build-isolation .")
endif()
list(GET torch_description 0 TORCH_VERSION)
list(GET torch_description 1 TORCH_CXX11_ABI)
list(GET torch_description 2 TORCH_CUDA_VERSION)
list(GET torch_description 3 TORCH_ROOT)
list(GET torch_description 4 TORCH_RUNNING_INTERNALS)

if(TORCH_VERSION VERSION_LESS 2.11)
  message(FATAL_ERROR "torch ${TORCH_VERSION} is older than 2.11; install a newer one")
endif()

set(TORCH_INCLUDE_DIRS "${TORCH_ROOT}/include" "${TORCH_ROOT}/include/torch/csrc/api/include")
set(TORCH_LIBRARIES "")
foreach(library IN ITEMS c10 torch torch_cpu torch_python)
  find_library(TORCH_LIBRARY_${library} ${library} PATHS "${TORCH_ROOT}/lib" NO_DEFAULT_PATH REQUIRED)
  list(APPEND TORCH_LIBRARIES "${TORCH_LIBRARY_${library}}")
endforeach()
# Of a torch with CUDA: streams. NCCL is reached through virtual functions of c10d.
set(TORCH_CUDA_LIBRARIES "")
if(NOT TORCH_CUDA_VERSION STREQUAL "none")
  find_library(TORCH_LIBRARY_c10_cuda c10_cuda PATHS "${TORCH_ROOT}/lib" NO_DEFAULT_PATH REQUIRED)
  list(APPEND TORCH_CUDA_LIBRARIES "${TORCH_LIBRARY_c10_cuda}")
endif()

# torch's types (ProcessGroup, GradBucket, Future) cross between modules only if both were built
# with the same pybind11 internals: so the headers inside torch are used, and their id is compared
# with that of the running torch.
try_run(
  internals_ran internals_compiled "${CMAKE_BINARY_DIR}/internals"
  "${CMAKE_CURRENT_LIST_DIR}/print_pybind11_internals.cpp"
  CMAKE_FLAGS "-DINCLUDE_DIRECTORIES=${TORCH_ROOT}/include;${Python_INCLUDE_DIRS}"
  COMPILE_DEFINITIONS "-D_GLIBCXX_USE_CXX11_ABI=${TORCH_CXX11_ABI}"
  COMPILE_OUTPUT_VARIABLE internals_log
  RUN_OUTPUT_VARIABLE TORCH_PYBIND11_INTERNALS)
if(NOT internals_compiled)
  message(FATAL_ERROR "the pybind11 headers inside torch do not compile:\n${internals_log}")
endif()
string(STRIP "${TORCH_PYBIND11_INTERNALS}" TORCH_PYBIND11_INTERNALS)
if(TORCH_RUNNING_INTERNALS AND NOT TORCH_PYBIND11_INTERNALS STREQUAL TORCH_RUNNING_INTERNALS)
  message(
    FATAL_ERROR
      "torch ${TORCH_VERSION} runs with pybind11 internals ${TORCH_RUNNING_INTERNALS}, but this "
      "compiler gives ${TORCH_PYBIND11_INTERNALS}. Build with the compiler family that torch was "
      "built with (GCC for the official wheels).")
endif()
message(STATUS "torch ${TORCH_VERSION} at ${TORCH_ROOT}, pybind11 ${TORCH_PYBIND11_INTERNALS}")
