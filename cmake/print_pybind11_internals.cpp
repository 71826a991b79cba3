// Prints the id under which pybind11 modules of this compiler share their types.
#include <pybind11/detail/internals.h>

#include <cstdio>

int main() { std::puts(PYBIND11_INTERNALS_ID); }
