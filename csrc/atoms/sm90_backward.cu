#include "atoms/finish_cuda.h"
#include "atoms/reconstruct_cuda.h"
#include "atoms/sm90_backward.h"
#include "atoms/sm90_tasks.h"
#include "cuda_device.h"
#include "wlib/sm90/launch.h"

namespace wlib::atoms {

int64_t partial_items(const ReconstructBackwardParams& p) { return chunk_grid(p).items(); }

const char* reconstruct_backward_cuda(const ReconstructBackwardParams& p, int device,
                                      void* stream) {
  if (const char* refusal = refuse_device(device)) return refusal;
  const BackwardTask task = make_task(p);
  const int64_t bytes = backward_smem_bytes(p.num_layers, p.num_atoms);
  const bool fits = bytes <= kMaxSmem, updates = p.update.rule != UpdateRule::kNone;
  const auto kernel = fits ? updates ? backward_kernel<true, true> : backward_kernel<true, false>
                      : updates ? backward_kernel<false, true>
                                : backward_kernel<false, false>;
  if (const int64_t items = task.grid.items(); items > 0) {
    const dim3 grid(unsigned(std::min(items, (int64_t(1) << 31) - 1)));
    const cudaError_t error = sm90::launch(kernel, grid, kBackwardThreads, fits ? int(bytes) : 0, 1,
                                           static_cast<cudaStream_t>(stream), task);
    if (error != cudaSuccess) return cudaGetErrorString(error);
  }
  return finish_cuda(make_finish(p), stream);
}

}  // namespace wlib::atoms
