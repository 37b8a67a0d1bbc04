"""The path of CPU tensors: a program as native code, compiled by the system's compiler."""
