// The CUDA launchers, with no torch on this side. They return null, or the text of an error; one
// that starts with "no kernel for " names a device that no row of the table serves.
#pragma once

#include "prefill/attention_plan.h"
#include "wlib/params/prefill.h"

namespace wlib::prefill {

// How the call is cut up on this device; `splits` 0 chooses.
const char* attention_cuda_plan(const AttentionParams& p, int splits, int device,
                                AttentionPlan* plan);
// parts: float32 [plan.splits * tokens * heads * (head_dim + 1)] if the keys are split, else null.
const char* attention_cuda(const AttentionParams& p, const AttentionPlan& plan, float* parts,
                           int device, void* stream);

// The table by which attention_cuda chooses, one line per row; for wlib.info().
const char* attention_cuda_rows();

}  // namespace wlib::prefill
