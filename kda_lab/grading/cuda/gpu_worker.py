"""The process that launches a learner's kernels on the GPU: `python -I gpu_worker.py FD FOLDERS...`.

It is given device code alone (a cubin), so nothing of the learner's runs in it; it is a process of its
own because a kernel can hang or spoil its context. Arrays lie between NaN guard zones.
"""

import ctypes
import re
import socket
import sys

if __name__ == "__main__":
    sys.path += sys.argv[2:]

import torch
import worker

GUARD = 1024  # bytes on both sides of an array


class DriverError(Exception):
    pass


class Device:
    """The driver's functions, in PyTorch's context."""

    def __init__(self, cubin: bytes):
        torch.zeros(1, device="cuda")  # makes the context
        self.cuda = ctypes.CDLL("libcuda.so.1")
        self.cubin = cubin
        self.module = ctypes.c_void_p()
        self.do("cuModuleLoadData", ctypes.byref(self.module), cubin)

    def do(self, name: str, *args) -> None:
        status = getattr(self.cuda, name)(*args)
        if status:
            text = ctypes.c_char_p()
            self.cuda.cuGetErrorString(status, ctypes.byref(text))
            raise DriverError((text.value or b"unknown error").decode())

    def function(self, kernel: str) -> ctypes.c_void_p:
        name = re.search(rb"\.text\.(_Z%d%b\w*)" % (len(kernel), kernel.encode()), self.cubin)
        function = ctypes.c_void_p()
        self.do(
            "cuModuleGetFunction", ctypes.byref(function), self.module, name[1] if name else b""
        )
        return function

    def launch(self, kernel: str, shape: list[int], parameters: list, values: list) -> None:
        """Run a kernel; tensors of `values` are left as it leaves them. Raises DriverError."""
        function, kept, arrays = self.function(kernel), [], []
        pointers = (ctypes.c_void_p * len(values))()
        for i, ((name, kind, _), value) in enumerate(zip(parameters, values, strict=True)):
            if isinstance(value, torch.Tensor):
                raw = value.reshape(-1).view(torch.uint8)
                room = torch.full((raw.numel() + 2 * GUARD,), 255, dtype=torch.uint8, device="cuda")
                room[GUARD : GUARD + raw.numel()] = raw.cuda()
                arrays.append((name, raw, room))
                kept.append(ctypes.c_void_p(room.data_ptr() + GUARD))
            else:
                kept.append(worker.NUMBERS[kind](value))
            pointers[i] = ctypes.addressof(kept[-1])
        torch.cuda.synchronize()
        self.do("cuFuncSetAttribute", function, 8, ctypes.c_int(shape[6]))  # dynamic shared memory
        sizes = [ctypes.c_uint(n) for n in shape]
        self.do("cuLaunchKernel", function, *sizes, None, pointers, None)
        self.do("cuCtxSynchronize")
        for name, raw, room in arrays:
            raw.copy_(room[GUARD : GUARD + raw.numel()].cpu())
            if not bool((room[:GUARD] == 255).all() and (room[GUARD + raw.numel() :] == 255).all()):
                raise DriverError(f"the kernel wrote outside {name}")


def main() -> None:
    sock = socket.socket(fileno=int(sys.argv[1]))
    device = None
    while True:
        request = worker.unpack(worker.receive(sock))
        try:
            if device is None:
                device = Device(bytes(request["cubin"].tolist()))
            device.launch(request["name"], *request["args"])
            reply: dict = {"value": None, "after": tuple(request["args"][2]), "printed": ""}
        except (DriverError, OSError, RuntimeError) as e:
            reply = {"raised": "GpuError", "text": str(e)[:600], "missing": False}
        worker.send(sock, worker.pack(reply))


if __name__ == "__main__":
    main()
