// A log-linear histogram of durations, for one writer and any number of readers.
//
// Values below 32 ns have a cell each; above, every power of two is cut into 32 cells, so a
// quantile is off by at most 1/32. 2^40 ns (18 minutes) and more share the last cell.
#pragma once

#include <array>
#include <atomic>
#include <bit>
#include <cstddef>
#include <cstdint>

namespace sluice::ctl {

class Histogram {
 public:
  static constexpr uint32_t kSubBits = 5;
  static constexpr uint32_t kSub = 1u << kSubBits;
  static constexpr uint32_t kMaxBits = 40;  // the largest value that has a cell of its own
  static constexpr size_t kCells = (kMaxBits - kSubBits + 1) * kSub;

  static constexpr size_t CellOf(uint64_t value) {
    if (value < kSub) return value;
    const uint32_t bits = static_cast<uint32_t>(std::bit_width(value)) - 1;
    if (bits >= kMaxBits) return kCells - 1;
    const uint32_t shift = bits - kSubBits;
    return (shift + 1) * kSub + ((value >> shift) & (kSub - 1));
  }
  // The smallest value of a cell.
  static constexpr uint64_t LowOf(size_t cell) {
    if (cell < kSub) return cell;
    const size_t shift = cell / kSub - 1;
    return (uint64_t{kSub} + cell % kSub) << shift;
  }

  // By the one writer.
  void Add(uint64_t value) {
    std::atomic<uint64_t>& cell = cells_[CellOf(value)];
    cell.store(cell.load(std::memory_order_relaxed) + 1, std::memory_order_relaxed);
  }
  uint64_t At(size_t cell) const { return cells_[cell].load(std::memory_order_relaxed); }

 private:
  std::array<std::atomic<uint64_t>, kCells> cells_{};
};

// Counts taken out of histograms: added up over threads, subtracted over time.
struct HistogramCounts {
  std::array<uint64_t, Histogram::kCells> cells{};

  void Add(const Histogram& histogram) {
    for (size_t i = 0; i < cells.size(); ++i) cells[i] += histogram.At(i);
  }
  HistogramCounts Since(const HistogramCounts& earlier) const {
    HistogramCounts difference;
    for (size_t i = 0; i < cells.size(); ++i) difference.cells[i] = cells[i] - earlier.cells[i];
    return difference;
  }
  uint64_t Total() const {
    uint64_t total = 0;
    for (const uint64_t n : cells) total += n;
    return total;
  }
  // The value below which a share `q` (0..1) of the samples lies; 0 without samples.
  uint64_t Quantile(double q) const {
    const uint64_t total = Total();
    if (total == 0) return 0;
    const double wanted = q * static_cast<double>(total);
    uint64_t seen = 0;
    for (size_t i = 0; i < cells.size(); ++i) {
      seen += cells[i];
      if (cells[i] != 0 && static_cast<double>(seen) >= wanted) return Histogram::LowOf(i);
    }
    return Histogram::LowOf(cells.size() - 1);
  }
};

}  // namespace sluice::ctl
