# What Torch's package does where the CUDA toolkit is not there.
message(FATAL_ERROR "Your installed Caffe2 version uses CUDA but I cannot find the CUDA libraries. "
                    "Please set the proper CUDA prefixes and / or install CUDA.")
