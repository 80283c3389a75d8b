// The launchers of the cache's writer and of the quantiser of queries, with no torch on this side:
// null, or the text of an error.
#pragma once

#include "wlib/params/prefill.h"

namespace wlib::prefill {

const char* append_cuda(const AppendParams& p, int device, void* stream);
const char* quantize_queries_cuda(const QuantizeQueriesParams& p, int device, void* stream);

}  // namespace wlib::prefill
