"""The path of GPU tensors: a program in Triton kernels, how they are launched, and checks of them that need no GPU."""
