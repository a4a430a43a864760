// What every header that both g++ and nvcc read needs; includes nothing of torch.
#pragma once

#ifdef __CUDACC__
#define D2_HD __host__ __device__ __forceinline__
#else
#define D2_HD inline
#endif

// Raw pointers that do not alias, which is what lets the channel loops vectorise.
#define D2_RESTRICT __restrict__
