// Marks functions that both a CPU and a GPU run.
#pragma once

#ifdef __CUDACC__
#define FASTFLOW_HOST_DEVICE __host__ __device__
#else
#define FASTFLOW_HOST_DEVICE
#endif
