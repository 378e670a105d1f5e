// That this is compiled gives a program its kernels; nothing in it is called.
#include <tstitch/tensor/cuda/kernels.hpp>
