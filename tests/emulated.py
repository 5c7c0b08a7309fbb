"""The kernels of CUDA sources without a GPU: compiled as C++, a loop over the threads."""

import ctypes
import re
import subprocess

from fltrust_repro.backend import mx, nd
from fltrust_repro.cuda_source import signatures, source_of

# What CUDA adds to C++, as far as the kernels use it.
_CUDA = """
#include <cmath>
#include <cstring>
#define __global__
#define __device__
static inline float __int_as_float(int bits) {
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}
struct Where { int x; };
static Where blockIdx, blockDim, threadIdx;
"""
_LOOP = """
extern "C" void each_{name}({parameters}) {{
    blockDim.x = 256;
    for (blockIdx.x = 0; blockIdx.x * 256 < n; ++blockIdx.x)
        for (threadIdx.x = 0; threadIdx.x < 256; ++threadIdx.x) {name}({arguments});
}}
"""


def launcher(folder, file, *warnings):
    """Return what `cuda_source.kernels_of` returns of a file, for arrays on the CPU."""
    source = source_of(file)
    loops = [
        _LOOP.format(
            name=name,
            parameters=parameters,
            arguments=", ".join(re.findall(r"(\w+)(?:,|$)", parameters)),
        )
        for name, parameters in signatures(source).items()
    ]
    whole, library = folder / f"{file.stem}.cpp", folder / f"{file.stem}.so"
    whole.write_text("\n".join([_CUDA, source, *loops]))
    flags = ["-O2", "-fno-strict-aliasing", "-ffp-contract=off", *warnings]
    made = ["-shared", "-fPIC", "-Wl,-Bsymbolic", "-o", library, whole]
    subprocess.run(["c++", *flags, *made], check=True)
    compiled, wait = ctypes.CDLL(str(library)), mx.base._LIB.MXNDArrayWaitToRead

    def launch(name, *arguments):
        for array in arguments:
            if isinstance(array, nd.NDArray):
                mx.base.check_call(wait(array.handle))
        getattr(compiled, f"each_{name}")(*map(_as_c, arguments))

    return launch


def _as_c(argument):
    if isinstance(argument, nd.NDArray):
        address = ctypes.c_void_p()
        base = mx.base
        base.check_call(base._LIB.MXNDArrayGetData(argument.handle, ctypes.byref(address)))
        return address
    return ctypes.c_float(argument) if isinstance(argument, float) else ctypes.c_int(argument)
