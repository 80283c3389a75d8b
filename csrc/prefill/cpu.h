// The CPU kernels: the executable specification of the family.
#pragma once

#include "wlib/params/prefill.h"

namespace wlib::prefill {

void append_cpu(const AppendParams& p);
void quantize_queries_cpu(const QuantizeQueriesParams& p);
void attention_cpu(const AttentionParams& p);

}  // namespace wlib::prefill
