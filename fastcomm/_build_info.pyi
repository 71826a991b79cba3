"""What fastcomm was built with; CMake writes the module."""

TORCH_VERSION: str
TORCH_CUDA_VERSION: str
CXX11_ABI: int
PYBIND11_INTERNALS: str
COMPILER: str
CUDA_ARCHITECTURES: str
