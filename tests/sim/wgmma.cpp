// wgmma: asynchronous, in order per warpgroup, evaluated at some moment between issue and wait.
#include <cuda_fp16.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>

#include "sim/machine.h"
#include "wlib/numerics/e4m3.h"
#include "wlib/numerics/e5m2.h"

namespace wlib::sim {
namespace {

int element_bytes(dev::Element e) {
  return e == dev::Element::kE4M3 || e == dev::Element::kE5M2 ? 1 : 2;
}

float decode(dev::Element type, const uint8_t* p) {
  static const auto tables = [] {
    std::array<std::array<float, 256>, 2> t;
    for (int i = 0; i < 256; ++i) {
      t[0][i] = e4m3_to_float(uint8_t(i));
      t[1][i] = e5m2_to_float(uint8_t(i));
    }
    return t;
  }();
  if (element_bytes(type) == 1) return tables[type == dev::Element::kE5M2][*p];
  return sixteen_bits(type, uint16_t(p[0] | p[1] << 8));
}

// An operand behind a 64-bit matrix descriptor (PTX ISA, "Matrix descriptor"), 128-byte swizzle:
// groups of eight 128-byte rows, `stride` apart, in which address bits 4..6 are XORed with bits
// 7..9. K-major: a row is one of the operand, and there is one column of groups. MN-major: a row is
// one of k, columns of groups are `leading` apart.
struct Operand {
  uint32_t start, leading, stride;
  bool mn_major;
  int bytes;  // of an element
  Operand(uint64_t d, bool mn_major_operand, int element)
      : start(uint32_t(d & 0x3fff) << 4),
        leading(uint32_t(d >> 16 & 0x3fff) << 4),
        stride(uint32_t(d >> 32 & 0x3fff) << 4),
        mn_major(mn_major_operand),
        bytes(element) {}
  static bool supported(uint64_t d) { return d >> 62 == 1 && (d >> 49 & 7) == 0; }
  uint32_t address(int mn, int k) const {  // in the shared window
    const uint32_t row = mn_major ? k : mn, byte = (mn_major ? mn : k) * bytes;
    const uint32_t column = mn_major ? byte / 128 * leading + byte % 128 : byte;
    const uint32_t a = start + row % 8 * 128 + row / 8 * stride + column;
    return a ^ (a >> 7 & 7) << 4;
  }
};

// Hopper's FP8 accumulation, as observed: addends are aligned to the largest and truncated.
float truncated_sum(const std::vector<float>& terms) {
  constexpr int kZero = -1000;
  int top = kZero;
  for (const float t : terms) {
    if (!std::isfinite(t)) return NAN;
    if (t != 0) top = std::max(top, std::ilogb(t));
  }
  if (top == kZero) return 0;
  double sum = 0;
  for (const float t : terms) sum += std::trunc(std::ldexp(double(t), 13 - top));
  return float(std::ldexp(sum, top - 13));
}

using Matrix = std::vector<float>;

// d[64, n] = a[64, k] * b[n, k]^T (+ d)
void multiply(const dev::WgmmaShape& s, const Matrix& a, const Matrix& b, bool accumulate,
              bool truncate, Matrix& d) {
  std::vector<float> terms(s.k + 1);
  for (int m = 0; m < 64; ++m) {
    for (int n = 0; n < s.n; ++n) {
      float& out = d[m * s.n + n];
      if (!accumulate) out = 0;
      for (int k = 0; k < s.k; ++k) terms[k] = a[m * s.k + k] * b[n * s.k + k];
      if (truncate) {
        terms[s.k] = out;
        out = truncated_sum(terms);
      } else {
        float sum = 0;
        for (int k = 0; k < s.k; ++k) sum += terms[k];
        out += sum;
      }
    }
  }
}

Matrix fragments(const WgmmaOp& op) {
  const dev::WgmmaShape& s = op.shape;
  const int values = 64 * s.k / kWarpgroup;
  Matrix a(64 * s.k);
  for (int t = 0; t < kWarpgroup; ++t) {
    const auto* regs = reinterpret_cast<const uint8_t*>(op.a_regs[t]);
    for (int v = 0; v < values; ++v) {
      const int mk = s.a_coord[t * values + v];
      a[mk % 64 * s.k + mk / 64] = decode(s.a, regs + v * element_bytes(s.a));
    }
  }
  return a;
}

Matrix tile(const dev::WgmmaShape& s, dev::Element type, const uint8_t* shared, uint64_t descriptor,
            int rows) {
  const Operand from(descriptor, s.mn_major, element_bytes(type));
  Matrix out(rows * s.k);
  for (int r = 0; r < rows; ++r) {
    for (int k = 0; k < s.k; ++k)
      out[r * s.k + k] = decode(type, shared + from.address(r, k) - kSharedWindow);
  }
  return out;
}

// FP16 accumulators in the registers `d`.
float half_of(const float* d, int v) {
  __half_raw half;
  std::memcpy(&half.x, reinterpret_cast<const uint16_t*>(d) + v, sizeof half.x);
  return __half2float(__half(half));
}
void half_to(float* d, int v, __half value) {
  const __half_raw half(value);
  std::memcpy(reinterpret_cast<uint16_t*>(d) + v, &half.x, sizeof half.x);
}

}  // namespace

void Machine::evaluate(Warpgroup& group) {
  const WgmmaOp& op = group.ops.front();
  const dev::WgmmaShape& s = op.shape;
  const uint8_t* shared = group.cta->shared;
  const Matrix a = s.a_in_registers ? fragments(op) : tile(s, s.a, shared, op.a_desc, 64);
  const Matrix b = tile(s, s.b, shared, op.b_desc, s.n);
  Matrix d(64 * s.n);
  const auto accumulators = [&](auto&& move) {
    const int numbers = 64 * s.n / kWarpgroup;
    for (int t = 0; t < kWarpgroup; ++t) {
      for (int v = 0; v < numbers; ++v) {
        const int mn = s.d_coord[t * numbers + v];
        move(op.d_regs[t], v, d[mn % 64 * s.n + mn / 64]);
      }
    }
  };
  const bool truncate = options.truncate_fp8 && element_bytes(s.b) == 1;
  accumulators([&](const float* d, int v, float& to) { to = s.half_d ? half_of(d, v) : d[v]; });
  multiply(s, a, b, op.accumulate, truncate, d);
  accumulators([&](float* d, int v, float from) {
    if (s.half_d)
      half_to(d, v, truncate ? __float2half_rz(from) : __float2half_rn(from));
    else
      d[v] = from;
  });
  group.ops.pop_front();
  ++group.evaluated;
  ++report.wgmmas;
  wake(group.waiters);
}

// Schedules the evaluation of the oldest wgmma, once all threads have issued it.
void Machine::arm(Warpgroup& group) {
  if (group.armed || group.ops.empty() || group.ops.front().joined < kWarpgroup) return;
  group.armed = true;
  schedule(group.ops.front().due, [this, &group] {
    group.armed = false;
    evaluate(group);
    arm(group);
  });
}

namespace dev {
namespace {

bool is_dirty(const Thread& t, const void* p, size_t bytes) {
  const auto low = (reinterpret_cast<uintptr_t>(p) - t.fiber.stack_low()) / 4;
  const auto from = t.dirty.begin() + low;
  return std::find(from, from + bytes / 4, true) != from + bytes / 4;
}

bool is_held(const Thread& t, const float* d) {
  return std::any_of(t.held.begin(), t.held.end(), [d](const HeldRegisters& h) {
    return h.accumulator && h.low == reinterpret_cast<uintptr_t>(d);
  });
}

// The in-flight home of this thread's accumulator; taken over from the kernel's array on first use.
float* hold_accumulator(Machine& m, float* d, int count, uint32_t op) {
  Thread& t = *m.self;
  const auto low = reinterpret_cast<uintptr_t>(d), high = low + count * sizeof(float);
  for (HeldRegisters& h : t.held) {
    if (h.accumulator && h.low == low && h.high == high) {
      h.op = op;
      return h.value.data();
    }
    if (low < h.high && high > h.low) {
      m.find("wgmma-register", "accumulator overlaps other registers of a wgmma in flight");
    }
  }
  t.held.push_back({low, high, op, true, std::vector<float>(d, d + count)});
  // Whoever looks before the wait sees NaN, as FP32 and as FP16, besides being reported.
  std::fill(d, d + count, __builtin_bit_cast(float, 0x7fff7fffu));
  return t.held.back().value.data();
}

// One warp reads rows x 32 bytes of an operand through the async proxy, 16 bytes at a time.
void check_operand(Machine& m, const WgmmaShape& shape, uint64_t descriptor, int row0, int rows,
                   const Access& by) {
  const Operand o(descriptor, shape.mn_major, element_bytes(shape.b));
  if (!Operand::supported(descriptor) || (o.start >> 7 & 7)) {
    m.find("wgmma-descriptor",
           "only tiles with 128-byte swizzle at a 1024-byte boundary are modelled");
    m.abandon();
  }
  Cta& cta = *m.self->cta;
  const int piece = 16 / o.bytes;
  for (int r = row0; r < row0 + rows; r += o.mn_major ? piece : 1) {
    for (int k = 0; k < shape.k; k += o.mn_major ? 1 : piece) {
      const uint32_t a = o.address(r, k);
      if (a < kSharedWindow || a + 16 > kSharedWindow + m.config.smem_bytes) {
        m.find("smem-bounds", "wgmma descriptor points outside shared memory");
        m.abandon();
      }
      m.report_conflict(cta.shadow.read(by, a - kSharedWindow, 16), by, "wgmma operand", cta);
    }
  }
}

WgmmaOp& join_op(Machine& m, Warpgroup& g, uint32_t index, const WgmmaShape& shape, uint64_t a_desc,
                 uint64_t b_desc, bool accumulate) {
  while (index - g.evaluated >= g.ops.size()) g.ops.emplace_back();
  WgmmaOp& op = g.ops[index - g.evaluated];
  if (op.joined++ == 0) {
    op.shape = shape;
    op.a_desc = a_desc, op.b_desc = b_desc, op.accumulate = accumulate;
  } else if (op.shape.a_coord != shape.a_coord || op.shape.d_coord != shape.d_coord ||
             op.a_desc != a_desc || op.b_desc != b_desc || op.accumulate != accumulate) {
    m.find("wgmma-divergence", "threads of a warpgroup issue different wgmmas");
  }
  return op;
}

}  // namespace

void wgmma_fence() {
  Thread& t = *WLIB_SIM_ENTER().self;
  std::fill(t.dirty.begin() + t.dirty_low, t.dirty.begin() + t.dirty_high, false);
  t.dirty_low = t.dirty_high = 0;
}

void wgmma_issue(const WgmmaShape& shape, float* d, const uint32_t* a_regs, uint64_t a_desc,
                 uint64_t b_desc, bool accumulate) {
  Machine& m = WLIB_SIM_ENTER();
  Thread& t = *m.self;
  Warpgroup& g = t.cta->warpgroups[t.warp() / 4];
  const uint32_t index = t.wgmmas_issued++;
  WgmmaOp& op = join_op(m, g, index, shape, a_desc, b_desc, accumulate);

  const size_t a_bytes = a_regs ? 16 : 0, d_bytes = size_t(shape.d_regs) * 4;
  // Accumulators of the previous wgmma need no fence.
  if ((a_regs && is_dirty(t, a_regs, a_bytes)) || (!is_held(t, d) && is_dirty(t, d, d_bytes))) {
    m.find("wgmma-fence",
           m.own_name() + " issues a wgmma on registers touched after the last wgmma.fence");
  }
  const int lane = t.id % kWarpgroup;
  op.d_regs[lane] = hold_accumulator(m, d, shape.d_regs, index);
  op.a_regs[lane] = a_regs;
  if (a_regs) {
    const auto low = reinterpret_cast<uintptr_t>(a_regs);
    t.held.push_back({low, low + a_bytes, index, false, {}});
  }

  // A warp may rely only on what all of its lanes know to be in shared memory.
  Knowledge& warp_known = op.warp_known[lane / kWarp];
  if (warp_known.agents() == 0) {
    warp_known = t.known;
  } else {
    warp_known.meet(t.known);
  }
  if (op.joined < kWarpgroup) return;
  for (int w = 0; w < 4; ++w) {
    const int agent = m.wgmma_agent(t) - t.warp() % 4 + w;
    const Access by = m.access_by(agent, index + 1, true, op.warp_known[w]);
    check_operand(m, shape, op.b_desc, 0, shape.n, by);
    if (!a_regs) check_operand(m, shape, op.a_desc, 16 * w, 16, by);
  }
  op.due = m.draw_due();
  m.arm(g);
}

void wgmma_commit() {
  Thread& t = *WLIB_SIM_ENTER().self;
  t.wgmma_groups.push_back(t.wgmmas_issued);
}

void wgmma_wait(int pending) {
  Machine& m = WLIB_SIM_ENTER();
  Thread& t = *m.self;
  while (int(t.wgmma_groups.size()) > pending) {
    t.wgmmas_retired = t.wgmma_groups.front();
    t.wgmma_groups.pop_front();
  }
  Warpgroup& g = t.cta->warpgroups[t.warp() / 4];
  const auto describe = [&t] {
    return "in wgmma.wait_group for wgmma " + std::to_string(t.wgmmas_retired - 1) +
           " of warpgroup " + std::to_string(t.warp() / 4) +
           ", which not all of its 128 threads have issued";
  };
  m.block_until(g.waiters, describe, [&] { return g.evaluated >= t.wgmmas_retired; });

  for (const HeldRegisters& h : t.held) {
    if (h.op < t.wgmmas_retired && h.accumulator) {
      std::copy(h.value.begin(), h.value.end(), reinterpret_cast<float*>(h.low));
    }
  }
  std::erase_if(t.held, [&](const HeldRegisters& h) { return h.op < t.wgmmas_retired; });
  t.known.see(m.wgmma_agent(t), t.wgmmas_retired);
}

}  // namespace dev
}  // namespace wlib::sim
