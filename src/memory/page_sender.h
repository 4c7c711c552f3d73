// Sending the pages of one round: a thread for each stream takes runs from a common queue, reads
// them, leaves zero pages out, and sends frames.
//
// A batch is read in one process_vm_readv and sent in one sendmsg, small enough to stay in the L2
// cache between the two copies and the test for zeros. Pieces of huge pages go to one thread as a
// whole, so that one thread of the target touches each huge page.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "memory/page_source.h"
#include "memory/stream_writer.h"
#include "memory/types.h"

namespace godwit::memory {

inline constexpr std::uint64_t batch_pages = 128;

struct SendJob {
  SpaceId space = 0;
  PageSource* source = nullptr;
  std::vector<PageRun> runs;
  // Results, by page.
  PageSet sent;
  PageSet zero;
  PageSet unreadable;
};

struct SendTotals {
  std::uint64_t pages = 0;
  std::uint64_t pages_zero = 0;
  std::uint64_t pages_dropped = 0;  // Zero now, content before.
};

// Fetches one batch (up to batch_pages in all) and queues its frames on `writer`, flushed.
// The buffer has batch_pages pages, 64-byte aligned.
class BatchSender {
 public:
  explicit BatchSender(StreamWriter& writer, wire::FrameType type = wire::FrameType::data);
  Result<void> send(SendJob& outcome, std::span<const PageRun> runs);
  const SendTotals& totals() const { return totals_; }
  // Zero pages are told as dropped also where the target has nothing: it waits for them.
  void tell_every_zero() { tell_every_zero_ = true; }

 private:
  void queue(SendJob& outcome, const PageRun& run, std::size_t first_index);

  StreamWriter& writer_;
  wire::FrameType type_;
  bool tell_every_zero_ = false;
  struct Free {
    void operator()(std::byte* p) const;
  };
  std::unique_ptr<std::byte[], Free> buffer_;
  std::vector<Verdict> verdicts_;
  SendTotals totals_;
};

// All jobs over all streams. The jobs' results are filled in also on failure, as far as it came.
Result<SendTotals> send_jobs(std::span<SendJob> jobs, std::span<StreamWriter> writers);

}  // namespace godwit::memory
