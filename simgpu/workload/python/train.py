"""A training loop as a Python program makes it: the CUDA runtime through ctypes, data from a file in a worker thread.

    LD_LIBRARY_PATH=LIBRARIES python3 train.py --steps 100

LIBRARIES holds libcudart.so.12 and libcuda.so.1. Needs nothing but the standard library. Prints one JSON object:
{"pid", "steps": [{"start_ns", "duration_ns"}]}, times in ns of CLOCK_BOOTTIME.
"""

import argparse
import ctypes
import json
import os
import queue
import tempfile
import threading
import time

MIB = 1 << 20
HOST_TO_DEVICE, DEVICE_TO_HOST = 1, 2
NON_BLOCKING = 1


class Dim3(ctypes.Structure):
    _fields_ = [("x", ctypes.c_uint), ("y", ctypes.c_uint), ("z", ctypes.c_uint)]


class CudaError(RuntimeError):
    """A call of the runtime returned something else than 0."""


class Runtime:
    """The entry points that the loop calls, each checked."""

    SIGNATURES = {
        "cudaSetDevice": [ctypes.c_int],
        "cudaMalloc": [ctypes.POINTER(ctypes.c_void_p), ctypes.c_size_t],
        "cudaFree": [ctypes.c_void_p],
        "cudaHostAlloc": [ctypes.POINTER(ctypes.c_void_p), ctypes.c_size_t, ctypes.c_uint],
        "cudaStreamCreateWithFlags": [ctypes.POINTER(ctypes.c_void_p), ctypes.c_uint],
        "cudaStreamSynchronize": [ctypes.c_void_p],
        "cudaMemcpyAsync": [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_void_p],
        "cudaLaunchKernel": [ctypes.c_void_p, Dim3, Dim3, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p],
    }

    def __init__(self, library):
        self._library = ctypes.CDLL(library)
        self._stubs = []
        for name, arguments in self.SIGNATURES.items():
            function = getattr(self._library, name)
            function.argtypes, function.restype = arguments, ctypes.c_int
            setattr(self, name, self._checked(name, function))
        self._image = (ctypes.c_uint64 * 8)()
        register = self._library.__getattr__("__cudaRegisterFatBinary")
        register.restype = ctypes.c_void_p
        self._binary = register(self._image)

    @staticmethod
    def _checked(name, function):
        def call(*arguments):
            code = function(*arguments)
            if code != 0:
                raise CudaError(f"{name} returned {code}")

        return call

    def kernel(self, name):
        """Registers a kernel, and returns what a launch names."""
        stub = ctypes.c_char_p(name.encode())
        address = ctypes.cast(stub, ctypes.c_void_p)
        self._stubs.append(stub)  # lives as long as its address is registered
        none = ctypes.c_void_p()
        register = self._library.__getattr__("__cudaRegisterFunction")
        register.restype = None
        register(ctypes.c_void_p(self._binary), address, stub, stub, -1, none, none, none, none, none)
        return address

    def allocate(self, size, pinned=False):
        pointer = ctypes.c_void_p()
        if pinned:
            self.cudaHostAlloc(ctypes.byref(pointer), size, 0)
        else:
            self.cudaMalloc(ctypes.byref(pointer), size)
        return pointer

    def stream(self):
        stream = ctypes.c_void_p()
        self.cudaStreamCreateWithFlags(ctypes.byref(stream), NON_BLOCKING)
        return stream


class Loader(threading.Thread):
    """Reads batches from a file into buffers, some steps ahead."""

    def __init__(self, path, batch_bytes, buffers):
        super().__init__(name="loader-0", daemon=True)
        self._path, self._batch_bytes = path, batch_bytes
        self.empty, self.full = queue.Queue(), queue.Queue()
        for buffer in buffers:
            self.empty.put(buffer)

    def run(self):
        with open(self._path, "rb", buffering=0) as file:
            while (buffer := self.empty.get()) is not None:
                file.seek(0)
                view = (ctypes.c_char * self._batch_bytes).from_address(buffer.value)
                file.readinto(view)
                self.full.put(buffer)


def forward(runtime, kernels, blocks, stream):
    for kernel in kernels:
        runtime.cudaLaunchKernel(kernel, Dim3(blocks, 1, 1), Dim3(256, 1, 1), None, 0, stream)


def backward(runtime, kernels, blocks, stream):
    for kernel in reversed(kernels):
        runtime.cudaLaunchKernel(kernel, Dim3(2 * blocks, 1, 1), Dim3(256, 1, 1), None, 0, stream)


def train(arguments):
    runtime = Runtime(arguments.cudart)
    runtime.cudaSetDevice(0)
    kernels = [runtime.kernel(f"layer_{number}") for number in range(arguments.layers)]
    stream = runtime.stream()
    batch_bytes = arguments.batch_mib * MIB
    batch, loss = runtime.allocate(batch_bytes), runtime.allocate(4)
    loss_on_host = ctypes.c_float()
    steps = []
    with tempfile.NamedTemporaryFile(prefix="simgpu-python-") as data:
        data.write(os.urandom(batch_bytes))
        data.flush()
        loader = Loader(data.name, batch_bytes, [runtime.allocate(batch_bytes, pinned=True) for _ in range(2)])
        loader.start()
        for _ in range(arguments.steps):
            start = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
            buffer = loader.full.get()
            runtime.cudaMemcpyAsync(batch, buffer, batch_bytes, HOST_TO_DEVICE, stream)
            forward(runtime, kernels, arguments.blocks, stream)
            backward(runtime, kernels, arguments.blocks, stream)
            runtime.cudaMemcpyAsync(loss, ctypes.byref(loss_on_host), 4, HOST_TO_DEVICE, stream)
            runtime.cudaMemcpyAsync(ctypes.byref(loss_on_host), loss, 4, DEVICE_TO_HOST, stream)
            runtime.cudaStreamSynchronize(stream)
            loader.empty.put(buffer)
            end = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
            steps.append({"start_ns": start, "duration_ns": end - start})
        loader.empty.put(None)
        loader.join()
    runtime.cudaFree(batch)
    runtime.cudaFree(loss)
    return {"pid": os.getpid(), "steps": steps}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cudart", default="libcudart.so.12", help="path or name of the runtime library")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--layers", type=int, default=10, help="kernels forward, and as many backward")
    parser.add_argument("--blocks", type=int, default=800, help="blocks of a forward kernel; simgpu takes 1 µs for one")
    parser.add_argument("--batch-mib", type=int, default=8)
    print(json.dumps(train(parser.parse_args())))


if __name__ == "__main__":
    main()
