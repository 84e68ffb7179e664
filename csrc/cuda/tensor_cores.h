// A thread's place in its block, asynchronous copies and the instructions of the tensor cores, sm_80 and later.
#pragma once

#include <cstdint>

namespace fastflow {

struct TensorCoreBlock {
  __device__ int64_t index() const { return blockIdx.x; }
  __device__ int index_y() const { return blockIdx.y; }
  __device__ int index_z() const { return blockIdx.z; }
  // Read anew each time, so that nothing that follows from it stays in registers from one use to the next.
  __device__ int thread() const {
    int thread;
    asm volatile("mov.u32 %0, %%tid.x;" : "=r"(thread));
    return thread;
  }
  __device__ void barrier() const { __syncthreads(); }
  __device__ void warp_barrier() const { __syncwarp(); }
  // The compiler moves no memory access across.
  __device__ void fence() const { asm volatile("" ::: "memory"); }
  __device__ uint32_t ballot(bool vote) const { return __ballot_sync(0xffffffffu, vote); }

  // 16 bytes, or zeros where they are not `present`, on their way until a wait().
  __device__ void copy(void* shared, const void* global, bool present) const {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(address(shared)), "l"(global),
                 "r"(present ? 16 : 0)
                 : "memory");
  }
  __device__ void commit() const { asm volatile("cp.async.commit_group;" ::: "memory"); }
  // All but the `later` latest groups of copies of this thread are there.
  template <int later>
  __device__ void wait() const {
    asm volatile("cp.async.wait_group %0;" ::"n"(later) : "memory");
  }

  // Four 8x8 matrices of 16-bit entries: lane l gives row l % 8 of matrix l / 8 and gets entries 2 (l % 4) and the next
  // of row l / 4 of each, or of column l / 4 when transposed.
  __device__ void load(uint32_t (&to)[4], const void* row) const {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "r"(address(row))
                 : "memory");
  }
  __device__ void load_transposed(uint32_t (&to)[4], const void* row) const {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "r"(address(row))
                 : "memory");
  }

  // sum [16, 8] += a [16, 16] b [16, 8]
  __device__ void multiply_bf16(float (&sum)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) const {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
  }
  // sum [16, 8] += a [16, 8] b [8, 8]
  __device__ void multiply_tf32(float (&sum)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) const {
    asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
  }

  __device__ static uint32_t address(const void* shared) { return uint32_t(__cvta_generic_to_shared(shared)); }
};

}  // namespace fastflow
