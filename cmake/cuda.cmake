# Whether the CUDA codecs are built: sets FASTCOMM_HAS_CUDA, and enables the language CUDA.
#   FASTCOMM_CUDA=AUTO  if nvcc is there and the module is built for a torch with CUDA
#   FASTCOMM_CUDA=ON    also without the Python module; an error where that is not possible
#   FASTCOMM_CUDA=OFF   never: a build for the CPU also works with a torch with CUDA
set(FASTCOMM_CUDA AUTO CACHE STRING "Build the CUDA codecs: AUTO, ON or OFF")
set_property(CACHE FASTCOMM_CUDA PROPERTY STRINGS AUTO ON OFF)

set(FASTCOMM_HAS_CUDA OFF)
if(FASTCOMM_CUDA STREQUAL AUTO)
  if(FASTCOMM_PYTHON AND NOT TORCH_CUDA_VERSION STREQUAL none)
    include(CheckLanguage)
    check_language(CUDA)
    if(CMAKE_CUDA_COMPILER)
      set(FASTCOMM_HAS_CUDA ON)
    else()
      message(STATUS "torch has CUDA ${TORCH_CUDA_VERSION}, but there is no nvcc: for the CPU only")
    endif()
  endif()
elseif(FASTCOMM_CUDA)
  if(FASTCOMM_PYTHON AND TORCH_CUDA_VERSION STREQUAL none)
    message(
      FATAL_ERROR
        "FASTCOMM_CUDA=ON needs a torch with CUDA, and torch ${TORCH_VERSION} has none. Install "
        "one, or leave FASTCOMM_CUDA out")
  endif()
  set(FASTCOMM_HAS_CUDA ON)
endif()

if(FASTCOMM_HAS_CUDA)
  # Warp-wide reductions need compute capability 8.0. Newer GPUs than the last one run its PTX.
  if(NOT DEFINED CMAKE_CUDA_ARCHITECTURES)
    set(CMAKE_CUDA_ARCHITECTURES 80-real 90-real 100-real 100-virtual)
  endif()
  enable_language(CUDA)
  find_package(CUDAToolkit REQUIRED)
  set(CMAKE_CUDA_STANDARD 20)
  set(CMAKE_CUDA_STANDARD_REQUIRED ON)
  set(CMAKE_CUDA_EXTENSIONS OFF)
  # torch brings a runtime of its own wheel; both use the same context of the driver.
  set(CMAKE_CUDA_RUNTIME_LIBRARY Static)
  set(CMAKE_CUDA_FLAGS_RELEASE "-O3")
  message(STATUS "CUDA codecs for ${CMAKE_CUDA_ARCHITECTURES} by ${CMAKE_CUDA_COMPILER}")
endif()
