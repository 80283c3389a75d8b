#include "atoms/reconstruct_cuda.h"
#include "atoms/sm90_reconstruct.h"
#include "atoms/sm90_tasks.h"
#include "cuda_device.h"
#include "wlib/sm90/launch.h"

namespace wlib::atoms {
namespace {

// As many CTAs as the device runs at a time, shared memory being the limit, or as there are tiles.
template <class Task>
cudaError_t launch(void (*kernel)(Task), int64_t tiles, int smem_bytes, cudaStream_t stream,
                   const Task& task) {
  int sms = 0, device = 0;
  if (const cudaError_t error = cudaGetDevice(&device)) return error;
  if (const cudaError_t error =
          cudaDeviceGetAttribute(&sms, cudaDevAttrMultiProcessorCount, device))
    return error;
  const int64_t per_sm = std::clamp<int64_t>(kMaxSmem / (smem_bytes + 1024), 1, 4);
  const dim3 grid(unsigned(std::min(tiles, sms * per_sm)));
  return sm90::launch(kernel, grid, kSumThreads, smem_bytes, 1, stream, task);
}

}  // namespace

const char* reconstruct_cuda(const ReconstructParams& p, int device, void* stream) {
  if (const char* refusal = refuse_device(device)) return refusal;
  const ReconstructTask task = make_task(p);
  if (task.tiles() == 0) return nullptr;
  const int64_t bytes = sum_smem_bytes(p.num_layers, p.num_atoms);
  const bool fits = bytes <= kMaxSmem;
  const auto kernel = fits ? reconstruct_kernel<true> : reconstruct_kernel<false>;
  const cudaError_t error =
      launch(kernel, task.tiles(), fits ? int(bytes) : 0, static_cast<cudaStream_t>(stream), task);
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}

const char* combine_cuda(std::span<const ReconstructParams> tensors, int device, void* stream) {
  if (const char* refusal = refuse_device(device)) return refusal;
  if (tensors.empty()) return nullptr;
  const int64_t inputs = tensors[0].num_atoms, outputs = tensors[0].num_layers;
  if (inputs + outputs > ManyTensors::kMaxPointers)
    return "no kernel for P + S > 3072 lists (rows: up to 3072)";
  const int64_t bytes = sum_smem_bytes(outputs, inputs);
  const bool fits = bytes <= kMaxSmem;
  const auto run = [&](const auto& table) {
    using Table = std::remove_cvref_t<decltype(table)>;
    const auto kernel = fits ? combine_kernel<true, Table> : combine_kernel<false, Table>;
    return launch(kernel, table.tiles, fits ? int(bytes) : 0, static_cast<cudaStream_t>(stream),
                  table);
  };
  const int64_t pointers = (inputs + outputs) * int64_t(tensors.size());
  const bool few =
      tensors.size() <= FewTensors::kMaxTensors && pointers <= FewTensors::kMaxPointers;
  const cudaError_t error =
      few ? fill_tables<FewTensors>(tensors, run) : fill_tables<ManyTensors>(tensors, run);
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}

}  // namespace wlib::atoms
