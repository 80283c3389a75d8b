// Instrumented: the loads and stores of the kernels included here call the checker.
#include "probe/sim_atoms.h"

#include <cmath>
#include <stdexcept>

#include "atoms/sm90_finish.h"
#include "atoms/sm90_tasks.h"

namespace wlib::atoms {
namespace {

sim::Report add(sim::Report all, const sim::Report& one) {
  all.findings.insert(all.findings.end(), one.findings.begin(), one.findings.end());
  return all;
}

sim::Buffer partial_buffer(std::vector<float>& partials, bool first_stage) {
  return {partials.data(), partials.size() * 4, "partials", first_stage};
}

}  // namespace

sim::Report simulate_finish(const FinishParams& p, const sim::Options& options,
                            const Buffers& buffers) {
  if (p.rows * p.count == 0) return {};
  return sim::launch({{2, 1, 1}, kFinishThreads, 0}, options, buffers, finish_kernel, p);
}

sim::Report simulate_reconstruct(const ReconstructParams& p, const AtomsLaunch& how,
                                 const Buffers& buffers) {
  const ReconstructTask task = make_task(p);
  if (task.tiles() == 0) return {};
  const int64_t bytes = how.resident ? sum_smem_bytes(p.num_layers, p.num_atoms) : 0;
  if (bytes > kMaxSmem) throw std::invalid_argument("does not fit into shared memory");
  const int ctas = int(std::min<int64_t>(how.ctas, task.tiles()));
  return sim::launch({{ctas, 1, 1}, kSumThreads, size_t(bytes)}, how.options, buffers,
                     how.resident ? reconstruct_kernel<true> : reconstruct_kernel<false>, task);
}

sim::Report simulate_combine(std::span<const ReconstructParams> tensors, bool few,
                             const AtomsLaunch& how, const Buffers& buffers) {
  const int64_t bytes =
      how.resident ? sum_smem_bytes(tensors[0].num_layers, tensors[0].num_atoms) : 0;
  sim::Report report;
  const auto run = [&](const auto& table) {
    using Table = std::remove_cvref_t<decltype(table)>;
    const auto kernel = how.resident ? combine_kernel<true, Table> : combine_kernel<false, Table>;
    report = add(report,
                 sim::launch({{std::min(how.ctas, table.tiles), 1, 1}, kSumThreads, size_t(bytes)},
                             how.options, buffers, kernel, table));
    return 0;
  };
  few ? fill_tables<FewTensors>(tensors, run) : fill_tables<ManyTensors>(tensors, run);
  return report;
}

sim::Report simulate_backward(ReconstructBackwardParams p, const AtomsLaunch& how,
                              const Buffers& buffers) {
  const int64_t items = chunk_grid(p).items();
  std::vector<float> partials(items * p.num_layers * p.num_atoms + 1, NAN);
  p.partials = partials.data();
  const BackwardTask task = make_task(p);
  const int64_t bytes = how.resident ? backward_smem_bytes(p.num_layers, p.num_atoms) : 0;
  if (bytes > kMaxSmem) throw std::invalid_argument("does not fit into shared memory");
  const bool updates = p.update.rule != UpdateRule::kNone;
  const auto kernel = how.resident
                          ? updates ? backward_kernel<true, true> : backward_kernel<true, false>
                      : updates ? backward_kernel<false, true>
                                : backward_kernel<false, false>;
  Buffers all = buffers;
  all.push_back(partial_buffer(partials, true));
  sim::Report report;
  if (items > 0) {
    const int ctas = int(std::min<int64_t>(how.ctas, items));
    report = sim::launch({{ctas, 1, 1}, kBackwardThreads, size_t(bytes)}, how.options, all, kernel,
                         task);
  }
  if (!report.ok()) return report;
  all.back() = partial_buffer(partials, false);
  return simulate_finish(make_finish(p), how.options, all);
}

}  // namespace wlib::atoms
